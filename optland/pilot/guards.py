r"""The rewind guard: when a quarter of all progress is lost, go back and halve the pace.

With L_ref the loss of the first step, m the bias-corrected moving average of the batch loss and b its running
minimum, there is trouble when the loss is not finite, or

.. math::
    L > 3\,L_\mathrm{ref} \quad\text{or}\quad
    m > b + \max\bigl(\tfrac14 (L_\mathrm{ref} - b),\ 0.05\,L_\mathrm{ref},\
    5\,\sigma \sqrt{e_m^2 + e_b^2}\bigr).

sigma is the noise of one batch's loss, 1.4826 med |L_k - L_{k-1}| / sqrt(2) over the last 64, and e the standard error
of the average in units of it, sqrt((1 - beta) (1 + beta^n) / ((1 + beta) (1 - beta^n))) after n losses: one at the
first, 0.23 in the long run. Without it a run that starts from a checkpoint, where batches differ more than anything has
been learnt yet, is slowed down by chance before it begins. The median leaves sigma alone when the loss jumps.

The first condition is on one loss against one other, and batches of fewer than eight samples differ by more than a
factor of three. Of these it has to hold against each of the last 64 losses too, and while fewer than eight losses have
been seen, twice in a row or a thousand times over. Where the run went back to its start, L_ref becomes the larger of
the losses there. Of larger batches a wreck is to be told at once: what follows it would pass for noise.

The test is relative to the progress made so far, so it sees a collapse to the trivial predictor (loss back at ln C),
which "loss above its own average by half" misses. Halving without rewinding is not enough: dead units and a huge
momentum stay. Cost: none, the losses are those of the training steps.

Source: development runs on small image and text models; the constants are kept at the values fixed there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optland.statistics import step_noise

__all__ = ["FEW_SAMPLES", "ClipWatch", "CollapseGuard", "CoolDown", "RewindGuard"]

FEWEST = 8
"""Losses before the average is judged: from fewer nobody can tell how noisy they are."""

BEYOND_DOUBT = 1000.0
"""Multiple of the ceiling at which one loss is trouble before anything is known of the noise."""

FEW_SAMPLES = 8
"""Samples of a batch from which on its loss does not differ threefold from that of another by chance."""

NOISE_WINDOW = 64
"""Losses that show how batches differ."""


@dataclass
class RewindGuard:
    """Watches the training loss and says when to rewind.

    Attributes:
        beta: Weight of the past in the loss average; 0.9.
        lost: Share of the progress whose loss is trouble; 0.25.
        slack: Share of the first loss that noise may take; 0.05.
        errors: Standard errors of the averages that noise may take; 5, since b is the least of many averages.
        ceiling: Multiple of the first loss that is trouble at once; 3.
        first: L_ref, the first finite loss; NaN before it.
        best: b, the least average so far; infinite before the first.
    """

    beta: float = 0.9
    lost: float = 0.25
    slack: float = 0.05
    errors: float = 5.0
    ceiling: float = 3.0
    first: float = field(default=math.nan, init=False)
    best: float = field(default=math.inf, init=False)
    _sum: float = field(default=0.0, init=False)
    _weight: float = field(default=0.0, init=False)
    _count: int = field(default=0, init=False)
    _best_error: float = field(default=1.0, init=False)
    _recent: list[float] = field(default_factory=list, init=False)
    _high: bool = field(default=False, init=False)  # whether the last loss was above the ceiling

    @property
    def average(self) -> float:
        """The bias-corrected moving average m of the loss; NaN before the first."""
        return self._sum / self._weight if self._weight else math.nan

    def observe(self, loss: float, *, few: bool = False) -> str | None:
        """Take in the loss of a step; returns None, or the trouble in words.

        Args:
            loss: The mean loss of the step's batch.
            few: Whether the batch has so few samples (below :data:`FEW_SAMPLES`) that one loss says little.

        Returns:
            A sentence with the figures, for the record. From the average there is none in the first seven losses; from
            a loss that is not finite or above the ceiling there may be.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if math.isnan(self.first):
            self.first = loss
        elif few and self._count == 0:  # back at the start
            self.first = max(self.first, loss)
        if self._is_wreck(loss, few=few):
            self._high = False
            return f"the loss {loss:.3g} is above {self.ceiling:g} times the first loss {self.first:.3g}"
        self._sum = self.beta * self._sum + (1 - self.beta) * loss
        self._weight = self.beta * self._weight + (1 - self.beta)
        self._count += 1
        self._recent = [*self._recent, loss][-NOISE_WINDOW:]
        if self.average <= self.best:
            self.best, self._best_error = self.average, self._error()
        if self._count < FEWEST:
            return None
        rise = self.average - self.best
        if rise <= max(self.lost * (self.first - self.best), self.slack * abs(self.first)) or self._is_noise(
            rise
        ):
            return None
        return (
            f"the average loss rose from {self.best:.3g} to {self.average:.3g}, "
            f"more than {self.lost:.0%} of all progress since {self.first:.3g}"
        )

    def _is_wreck(self, loss: float, *, few: bool) -> bool:
        """Whether one loss is trouble by itself, and no batch that differs from the first as batches do."""
        if not few:
            return loss > self.ceiling * abs(self.first)
        known, twice = len(self._recent) >= FEWEST, self._high
        top = self.ceiling * max(abs(self.first), *(self._recent if known else ()), 0.0)
        self._high = loss > top
        return self._high and (known or twice or loss > BEYOND_DOUBT * top > 0)

    def _is_noise(self, rise: float) -> bool:
        """Whether batches that differ as much as the last ones did may have made the average rise."""
        return rise <= self.errors * step_noise(self._recent) * math.hypot(self._error(), self._best_error)

    def _error(self) -> float:
        """Standard error of the average in units of that."""
        forgotten = 1.0 - self._weight  # beta^n
        return math.sqrt((1 - self.beta) / (1 + self.beta) * (1 + forgotten) / (1 - forgotten))

    def mark(self) -> dict[str, float]:
        """The loss record that belongs to a snapshot of the weights.

        Returns:
            Plain numbers for :meth:`rewind`; the recent losses, which only tell the noise, are not in it.
        """
        return {
            "best": self.best,
            "best_error": self._best_error,
            "sum": self._sum,
            "weight": self._weight,
            "count": self._count,
        }

    def rewind(self, mark: dict[str, float]) -> None:
        """Go back to the loss record of a snapshot; the first loss stays.

        Args:
            mark: As :meth:`mark` gave it when the snapshot was taken.
        """
        self.best, self._best_error, self._sum = mark["best"], mark["best_error"], mark["sum"]
        self._weight, self._count = mark["weight"], int(mark["count"])
        self._high = False

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint."""
        return {"first": self.first, "recent": list(self._recent), **self.mark(), "high": self._high}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.first, self._recent = state["first"], list(state["recent"])
        self.rewind(state)
        self._high = state["high"]


@dataclass
class CollapseGuard:
    """Detects a dead network, by gradients that vanish without progress; the loss alone does not show it.

    A net whose units are dead predicts a constant. Its loss is that of the trivial predictor, never above the first,
    and looks like an initial plateau; the gradient shows which. Either all of it has vanished while the loss is no
    better than at the start, or it is *exactly* zero in a whole weight matrix that had one before, update after update
    (a ReLU layer with every unit below zero), while there is still something to learn.

    Attributes:
        vanished: Share of the gradient norm's running maximum below which it counts as vanished; 1e-3.
        trivial: Share of the first loss above which nothing has been learnt; 0.9.
        learnt: Share of the first loss below which a matrix may rest, since nothing is left to learn; 0.01.
        patience: Updates in a row that must say so; 10, since one batch may miss a layer by chance.
        first: The loss of the first update whose loss and gradients were finite.
        largest: Largest gradient norm so far.
        votes: Updates in a row in which all of the gradient had vanished.
        alive: Weight matrices that have had a gradient.
    """

    vanished: float = 1e-3
    trivial: float = 0.9
    learnt: float = 0.01
    patience: int = 10
    first: float = field(default=math.nan, init=False)
    largest: float = field(default=0.0, init=False)
    votes: int = field(default=0, init=False)
    silent: int = field(default=0, init=False)
    """Updates in a row with a silent matrix."""
    alive: set[str] = field(default_factory=set, init=False)

    def observe(self, loss: float, norms: Mapping[str, float]) -> str | None:
        """Take in the loss and the gradient's norm in each weight matrix; returns None, or the trouble in words.

        Args:
            loss: The mean loss of the step's batch.
            norms: Euclidean norm of the gradient of each weight matrix, by name.

        Returns:
            A sentence with the figures, for the record, after ``patience`` updates in a row.
        """
        norm = math.hypot(*norms.values())
        if not norms or not (math.isfinite(loss) and math.isfinite(norm)):
            return None
        if math.isnan(self.first):
            self.first = loss
        self.largest = max(self.largest, norm)
        silent: list[str] = []
        if len(self.alive) < len(norms) or 0.0 in norms.values():
            silent = [name for name, size in norms.items() if size == 0.0 and name in self.alive]
            self.alive.update([name for name, size in norms.items() if size > 0.0])
        self.silent = self.silent + 1 if silent and loss > self.learnt * abs(self.first) else 0
        dead = norm < self.vanished * self.largest and loss > self.trivial * self.first
        self.votes = self.votes + 1 if dead else 0
        if self.silent >= self.patience:
            return (
                f"the gradient of {len(silent)} of {len(norms)} weight matrices has been exactly zero for "
                f"{self.silent} updates: the net has collapsed"
            )
        if self.votes < self.patience:
            return None
        return (
            f"the network is dead: the loss {loss:.3g} is no better than the first {self.first:.3g} and the gradient "
            f"norm {norm:.2g} is below {self.vanished:g} of its largest, {self.largest:.2g}"
        )

    @property
    def since(self) -> int:
        """Updates that the net has been dead for."""
        return max(self.silent, self.votes)

    def forget(self) -> None:
        """After a rewind the count begins again."""
        self.votes = self.silent = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return {
            "first": self.first,
            "largest": self.largest,
            "votes": self.votes,
            "silent": self.silent,
            "alive": sorted(self.alive),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.first, self.largest, self.votes = state["first"], state["largest"], state["votes"]
        self.silent, self.alive = state["silent"], set(state["alive"])


@dataclass
class CoolDown:
    """Forbids growth of rate and batch for a while after a rewind.

    Attributes:
        steps: Length of the while; 20.
        until: Last update of the while; 0 before any rewind.
    """

    steps: int = 20
    until: int = field(default=0, init=False)

    def start(self, step: int) -> None:
        """A rewind happened at ``step``."""
        self.until = step + self.steps

    def allows(self, step: int, old: float, new: float) -> bool:
        """Whether a change from ``old`` to ``new`` may be made at ``step``; a reduction always may.

        Args:
            step: The present update.
            old: The present value.
            new: The value asked for.

        Example:
            >>> cool = CoolDown()
            >>> cool.start(100)
            >>> cool.allows(110, 1.0, 2.0), cool.allows(110, 1.0, 0.5), cool.allows(121, 1.0, 2.0)
            (False, True, True)
        """
        return new <= old or step > self.until


@dataclass
class ClipWatch:
    """Detects gradients that were clipped before the step: their norm is the same number again and again.

    Attributes:
        window: Norms that are looked at; 16.
        many: How many of them have to be equal, and the largest; 12.
        rtol: Relative difference up to which two count as equal; 1e-4: clipping divides by the norm plus 1e-6.
        norms: The last ones.

    Example:
        >>> watch = ClipWatch()
        >>> [watch.observe(min(norm, 1.0)) for norm in (1.5, 0.8, *[2.0] * 12)][-1]
        1.0
    """

    window: int = 16
    many: int = 12
    rtol: float = 1e-4
    norms: list[float] = field(default_factory=list, init=False)

    def observe(self, norm: float) -> float | None:
        """Take in a norm; returns what the gradients are clipped to, None where they are not.

        Args:
            norm: Of all gradients of an update, as the optimizer sees them; one that is not finite is left out.
        """
        if not math.isfinite(norm):
            return None
        norms = self.norms = [*self.norms, norm][-self.window :]
        if len(norms) < self.many:
            return None
        most = max(norms)
        equal = sum(map(((1.0 - self.rtol) * most).__le__, norms))
        return most if most > 0 and equal >= self.many else None
