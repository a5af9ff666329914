"""The progress of a run: updates made of how many, or samples seen, where the batch grows or they are counted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from optland.pilot.policies.facts import HostFacts

__all__ = ["Progress"]

SHORT, LONG = 0.9, 1.1
"""A run that ends below the one, or passes the other share of its stated length, has been told a wrong length."""

FEWEST = 4
"""Updates below which a stated number of samples cannot be a run's: it is a number of steps, most likely."""


def _length(loader: Any) -> int | None:
    """Batches of an epoch; None where nobody knows, as with a loader over a stream, whose ``len`` raises."""
    try:
        return len(loader)
    except TypeError:
        return None


def _whole(name: str, given: Any) -> int:
    """A length as a whole number.

    Raises:
        ValueError: It is none, or below 1.
    """
    try:
        whole = int(given)
    except (TypeError, ValueError, OverflowError):
        whole = 0
    if whole < 1 or whole != given:
        raise ValueError(f"{name}={given!r} must be a whole number, at least 1")
    return whole


class Progress:
    """The length of a run and the part of it that is done.

    Args:
        total_steps: Updates of the whole run.
        total_samples: Samples that the whole run sees, epochs x size of the training set. One of the two, or neither.
        open_ended: Nobody knows the length; :meth:`decay` says when the end begins.

    Attributes:
        samples: Seen so far.

    Raises:
        ValueError: Both are given, or a length below 1.
    """

    def __init__(
        self, total_steps: int | None = None, total_samples: int | None = None, *, open_ended: bool = False
    ) -> None:
        if total_steps is not None and total_samples is not None:
            raise ValueError(
                f"total_steps={total_steps} and total_samples={total_samples} are two lengths of one run; give one"
            )
        self.total_steps = None if total_steps is None else _whole("total_steps", total_steps)
        self.total_samples = None if total_samples is None else _whole("total_samples", total_samples)
        self.open_ended = open_ended
        self.samples = 0
        self._tail: tuple[int, int] | None = None
        self._said = False
        self._before: tuple[int | None, int | None] = (None, None)  # the length when a state was taken
        self._learnt = False  # whether the length is that of a loader

    @property
    def known(self) -> bool:
        """Whether the length of the run is known."""
        return self.total_steps is not None or self.total_samples is not None

    def steps(self, batch_size: int | None) -> int | None:
        """Updates of the whole run at this batch size; None where that cannot be told."""
        if self.total_steps is not None:
            return self.total_steps
        return max(self.total_samples // batch_size, 1) if self.total_samples and batch_size else None

    def in_samples(self, batch_size: int) -> float:
        """Samples of the whole run; infinite where its length is unknown."""
        if self.total_samples is not None:
            return float(self.total_samples)
        return math.inf if self.total_steps is None else float(self.total_steps * batch_size)

    def learn(self, loader: Any, epochs: int | None, *, by_samples: bool) -> None:
        """Take the length from a loader, where it was not given; or hold what was given against it.

        Args:
            loader: Has ``total_steps`` and ``total_samples`` of the whole run, or a length per epoch.
            epochs: Passes over it; None for one, or the loader's own.
            by_samples: Count samples, since a policy turns the batch size.

        Raises:
            ValueError: The length of one epoch was given as that of several, or taken from a loader that is now read
                again, or it cannot be counted in samples.
        """
        if self._learnt and self.samples and not hasattr(loader, "total_steps"):
            raise ValueError(
                f"the length of this run was taken from the first pilot.batches(): {self._length}, and now there is a "
                "second pass; give pilot.batches(loader, epochs=...) the number of epochs, or the Pilot total_steps="
            )
        steps = getattr(loader, "total_steps", None)
        samples = getattr(loader, "total_samples", None)
        if steps is None and (length := _length(loader)) is not None:
            steps = (epochs or 1) * length
        if by_samples and self.total_steps is not None:
            raise ValueError(
                f"total_steps={self.total_steps} cannot be kept while a policy turns the batch size; "
                "give total_samples=epochs * len(dataset)"
            )
        passes = int(getattr(loader, "epochs", 1) or 1) if epochs is None else _whole("epochs", epochs)
        self._hold_against("total_steps", self.total_steps, steps, passes)
        self._hold_against("total_samples", self.total_samples, samples, passes)
        if self.known or self.open_ended:
            return
        self._learnt = True
        if by_samples:
            self.total_samples = samples
        else:
            self.total_steps = steps

    def _hold_against(self, name: str, given: int | None, found: int | None, epochs: int) -> None:
        """Refuse the length of one epoch given as that of several; a run may be stopped before its loader ends."""
        if given is None or found is None or epochs < 2:
            return
        one = found / epochs
        if SHORT * one <= given <= LONG * one:
            raise ValueError(
                f"{name}={given} is the length of one epoch, and the run has {epochs}, which make {found}; leave "
                f"{name} out, or give the length of the whole run"
            )

    def check_first(self, samples: int) -> None:
        """Refuse a number of samples that the first batch shows to be no length of a run.

        Raises:
            ValueError: Fewer than four batches.
        """
        if self.total_samples is not None and self.total_samples < FEWEST * samples:
            raise ValueError(
                f"total_samples={self.total_samples} are fewer than {FEWEST} batches of {samples}; if that is the "
                f"number of updates, write total_steps={self.total_samples}"
            )

    def at(self, step: int, batch_size: int) -> float | None:
        """Share of the run done at the middle of update number ``step``, from 1; None when the length is unknown.

        Args:
            step: Number of the update.
            batch_size: Its samples, of all ranks.
        """
        if self.total_steps is not None:
            return (step - 0.5) / self.total_steps
        if self.total_samples is not None:
            return (self.samples + 0.5 * batch_size) / self.total_samples
        return None

    def done(self, step: int) -> float | None:
        """Share of the run done after so many updates; None when the length is unknown."""
        if self.total_steps is not None:
            return step / self.total_steps
        return None if self.total_samples is None else self.samples / self.total_samples

    def count(self, samples: int, step: int) -> None:
        """Take in the samples of an update; says once where the run passes its length.

        Args:
            samples: Of the update, of all ranks.
            step: Updates made, with this one.
        """
        self.samples += samples
        done = self.done(step)
        if done is not None and done > LONG and not self._said:
            self._warn(
                f"has passed its length: {done:.0%} of {self._length} are done, and the rate of a schedule is 0"
            )

    def end(self, step: int) -> None:
        """The run is over; says where it was shorter than it was told to be."""
        done = self.done(step)
        if done is not None and 0 < done < SHORT and not self._said:
            self._warn(f"ended after {done:.0%} of {self._length}, so its schedule has not come to its end")

    def _warn(self, what: str) -> None:
        self._said = True
        warnings.warn(
            f"the run {what}; the pilot counts updates, one after_step() each: was the length given in another unit?",
            RuntimeWarning,
            stacklevel=3,
        )

    @property
    def _length(self) -> str:
        if self.total_steps is not None:
            return f"total_steps={self.total_steps}"
        return f"total_samples={self.total_samples}"

    def decay(self, step: int, steps: int) -> None:
        """Begin the end of a run of unknown length.

        Args:
            step: Updates made.
            steps: Updates from now to the end.

        Raises:
            ValueError: Fewer than one update.
            RuntimeError: The run has a length, or its end has begun.
        """
        if steps < 1:
            raise ValueError(f"num_steps {steps} must be at least 1: what is left of the run")
        if self.known or not self.open_ended:
            raise RuntimeError("decay() is for runs that were begun with open_ended=True")
        if self._tail is not None:
            raise RuntimeError(f"the end of this run began at update {self._tail[0]}")
        self._tail = (step, steps)

    def tail(self, step: int) -> float | None:
        """Shape of a run of unknown length in the middle of update ``step``: 1 until its end has begun.

        Args:
            step: Number of the update, from 1.

        Returns:
            1, then linear to 0; None for a run that was not begun with ``open_ended=True``.
        """
        if self._tail is None:
            return 1.0 if self.open_ended else None
        begun, length = self._tail
        return max(0.0, 1.0 - (step - 0.5 - begun) / length)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint."""
        return {
            "samples": self.samples,
            "tail": None if self._tail is None else list(self._tail),
            "total_steps": self.total_steps,
            "total_samples": self.total_samples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.samples = state["samples"]
        self._tail = None if state["tail"] is None else (state["tail"][0], state["tail"][1])
        self._before = (state["total_steps"], state["total_samples"])

    def stretched(self, facts: HostFacts | None, tell: Callable[[HostFacts], None]) -> HostFacts | None:
        """The progress at the time of a saved state, at the length that the run has now.

        Args:
            facts: What was known; None before the first update.
            tell: Called with what is returned, where the length is another one.
        """
        was, now = self._before, (self.total_steps, self.total_samples)
        factors = [b / a for a, b in zip(was, now, strict=True) if a and b and a != b]
        if facts is None or facts.steps is None or not factors:
            return facts
        self._before = now
        passes = None if facts.passes is None else facts.passes * factors[0]
        facts = replace(facts, steps=round(facts.steps * factors[0]), passes=passes)
        tell(facts)
        return facts
