"""Run the probes of a run inside the budget: which are in use, when each is due, failed ones off.

One update goes through three calls. :meth:`Looks.plan`, before the step: which probes are due, as far apart as they
want to be and inside the budget, so that the weights are copied where one of them looks along the update.
:meth:`Looks.told`, with the gradient in hand: what rank 0 has planned holds for all ranks. :meth:`Looks.run`, after the
update is counted: they measure, their real cost is booked, their signals go into the history.

A probe never ends a run: one that raises is off from there on, with one warning that says why. A run without probes
pays for none of this.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn

from optland.context.modules import preserve_buffers, preserve_modes
from optland.context.notes import notes_of
from optland.context.rng import preserve_rng
from optland.pilot.budget import Budget
from optland.pilot.history import History
from optland.pilot.host import Host
from optland.pilot.notices import say_idle, say_off
from optland.pilot.probes import SHOWN, standard_probes
from optland.pilot.probes.base import Probe
from optland.pilot.probes.curvature import CurvatureProbe
from optland.pilot.signal import Signal

__all__ = ["Looks"]


class Looks:
    """Runs probes inside the budget; their signals go into the history.

    Args:
        host: What they look at.
        history: Where their signals go.
        budget: What they may cost.
        reads: Signals that policies read.
        shown: Whether ours run too that nobody reads, for the log.
        escapes: Whether a policy may ask for an escape, whose look is paid from the curvature probe's part.
        own: Probes of the user's, which run whether anybody reads them or not.
        seed: Of their randomness.

    Attributes:
        probes: Those in use.
        due: Those that run in the present update.
        seconds: Wall time spent; reported, never decided on.
    """

    def __init__(
        self,
        host: Host,
        history: History,
        budget: Budget,
        *,
        reads: frozenset[str],
        shown: bool,
        escapes: bool = False,
        own: Sequence[Probe] = (),
        seed: int = 0,
    ) -> None:
        self.host, self.history, self.budget = host, history, budget
        given = {p.name for p in own}  # one of ours that is given is used as it is given
        show = SHOWN | given if shown else given
        if len(given) < len(own):
            raise ValueError(
                f"two probes have one name, of {[p.name for p in own]}; each is a line of the budget"
            )
        self._own = list(own)
        self._seed = seed
        ours = [p for p in standard_probes(seed) if p.name not in given]
        known = [*ours, *own] if budget.fraction > 0 else []
        self.probes = [p for p in known if p.yields & reads or p.name in show]
        weights = {p.name: p.weight for p in self.probes}
        budget.use(weights | ({CurvatureProbe.name: CurvatureProbe.weight} if escapes else {}))
        self.ranks = host.ranks
        if self.ranks.synced_norms and self.probes:
            names = ", ".join(p.name for p in self.probes)
            say_off(
                f"probes ({names})", 0, "SyncBatchNorm waits for all ranks, and probes run on one of them"
            )
            self.probes = []
        self.due: list[Probe] = []
        self.last: dict[str, int] = {}
        self.seconds = 0.0

    def is_due(self, probe: Probe, step: int) -> bool:
        """Whether it runs at ``step``: often enough apart, and its declared cost fits the budget.

        Args:
            probe: One of those in use.
            step: The update.

        Returns:
            False too before the size of a batch is known, on which its cost depends.
        """
        if step - self.last.get(probe.name, -probe.every) < probe.every or not self.host.knows_batch_size:
            return False
        return self.budget.affords(probe.name, probe.cost(self.host), ahead=probe.ahead)

    def plan(self, step: int) -> list[float]:
        """Choose the probes that run at ``step``; 1 for each that does, 0 for each that does not.

        Args:
            step: The update that is about to be made.

        Returns:
            One number for each probe in use, to send to the other ranks; empty where there are none.
        """
        if not self.probes:
            self.due = []
            return []
        self.due = [p for p in list(self.probes) if self._plans(p, step)]
        return [float(p in self.due) for p in self.probes]

    def _plans(self, probe: Probe, step: int) -> bool:
        try:
            return self.is_due(probe, step)
        except Exception as error:
            self._off(probe, _in_words(error))
            return False

    def told(self, chosen: Sequence[float]) -> None:
        """Take over what rank 0 has chosen.

        Args:
            chosen: What :meth:`plan` gave on rank 0, for the same probes in the same order.
        """
        if chosen or self.probes:
            self.due = [p for p, due in zip(self.probes, chosen, strict=True) if due]

    @property
    def along_update(self) -> bool:
        """Whether a probe that looks along the update is due here."""
        return any(p.along_update and self.ranks.measures(joint=p.joint) for p in self.due)

    @property
    def needs_rate(self) -> bool:
        """Whether a probe that is due here needs the rate of the update just made."""
        reading = (p for p in self.due if p.reads_rate or p.along_update)
        return any(self.ranks.measures(joint=p.joint) for p in reading)

    def run(self) -> list[Signal]:
        """Run the probes that are due, and return what they measured.

        Returns:
            Signals of all that ran, in the order of the probes. One that skipped this batch costs nothing and is due
            again at the next update.
        """
        if not self.probes:
            self.due = []
            return []
        started = time.perf_counter()
        for probe in list(self.probes):
            self._see(probe)
        found: list[Signal] = []
        for probe in [p for p in self.due if p in self.probes]:
            signals, spent, failed = self.ranks.from_first(
                self._measured(probe) if self.ranks.measures(joint=probe.joint) else None
            )
            if failed:
                self._off(probe, failed)
            elif signals is not None:
                self.budget.spend(probe.name, spent)
                self.last[probe.name] = self.host.step
                self.history.put(signals)
                found += signals
        self.due = []
        self.seconds += time.perf_counter() - started
        return found

    def _see(self, probe: Probe) -> None:
        try:
            probe.see(self.host)
        except Exception as error:
            self._off(probe, _in_words(error))

    def _measured(self, probe: Probe) -> tuple[list[Signal] | None, float, str]:
        """The signals of one probe (none where it skips this batch), and why it failed where it did."""
        host = self.host
        try:
            ragged = probe.whole_batches and host.is_ragged(host.count(host.batch))
            if self.ranks.evaluate_together or (probe.joint and self.ranks.replicas is not None):
                ragged = self.ranks.any(ragged, host.device)
            if ragged or (probe.along_update and not host.before):
                return None, 0.0, ""
            with preserved(host.model, self._seed + host.step) if probe in self._own else nullcontext():
                found = probe.measure(host)
            _check(probe, found)
            return found, probe.spent, ""
        except Exception as error:
            return None, 0.0, _in_words(error)

    def _off(self, probe: Probe, why: str) -> None:
        """One that fails is off from there on, and training goes on."""
        self.probes = [p for p in self.probes if p is not probe]
        say_off(f"the {probe.name} probe", self.host.step, why)

    def intervals(self) -> dict[str, float]:
        """Updates between two runs of each probe, as the budget has it now; no value that is read gets twice as old."""
        host = self.host
        update = host.batch_size * host.expected_evaluations
        return {
            p.name: max(float(p.every), self.budget.interval(p.name, p.cost(host), update))
            for p in self.probes
        }

    def ages(self) -> dict[str, float]:
        """Updates since each probe ran, under the keys of the log."""
        return {f"probe/age_{name}": float(self.host.step - at) for name, at in self.last.items()}

    def never_ran(self, probes: Sequence[Probe] | None = None) -> str:
        """Which probes have not run once, and what would give them room.

        Args:
            probes: Of these; None for all in use.

        Returns:
            A sentence, with the smallest budget or the length of run that each fits; empty where all have run.
        """
        idle = [p for p in self.probes if p.name not in self.last and (probes is None or p in probes)]
        named = "; ".join(f"{p.name}, {self._why_idle(p)}" for p in idle)
        return f"Probes that have not run: {named}." if named else ""

    def _why_idle(self, probe: Probe) -> str:
        try:
            declared = probe.cost(self.host) if self.host.knows_batch_size else math.inf
        except Exception as error:
            return f"whose cost cannot be told ({_in_words(error)})"
        return self.budget.why_not(probe.name, declared) or "for no update came that it could look at"

    def end(self) -> None:
        """The run is over: a probe of the user's own that never ran is said once."""
        if never := self.never_ran(self._own):
            say_idle(never)

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs to probe as an unbroken one would."""
        return {
            "probes": {p.name: p.state_dict() for p in self.probes},
            "last": dict(self.last),
            "seconds": self.seconds,
            "verdicts": notes_of(self.host.model).state_dict(),  # comparisons that are paid for
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; a probe that was off stays off."""
        self.probes = [p for p in self.probes if p.name in state["probes"]]
        for probe in self.probes:
            probe.load_state_dict(state["probes"][probe.name])
        self.last, self.seconds = dict(state["last"]), state["seconds"]
        notes_of(self.host.model).load_state_dict(state["verdicts"])


@contextmanager
def preserved(model: nn.Module, seed: int) -> Iterator[None]:
    """Random state, modes and buffers as they were, whatever a probe of the user's does: ours see to that themselves.

    Args:
        model: What is looked at.
        seed: Of the random state inside.
    """
    with preserve_rng(seed), preserve_modes(model), preserve_buffers(model):
        yield


def _check(probe: Probe, found: Any) -> None:
    """Refuse what cannot be taken into the history and the budget; said as any failure of a probe is.

    Raises:
        TypeError: Something measured is no signal.
        ValueError: What it spent is no cost.
    """
    wrong = [s for s in found or () if not isinstance(s, Signal)]
    if wrong:
        raise TypeError(f"measure() gave {wrong[0]!r} among its signals")
    if not 0 <= probe.spent < math.inf:
        raise ValueError(f"it says to have spent {probe.spent} gradient evaluations")


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
