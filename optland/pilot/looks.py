"""The probes of a run: which are in use, when each is due, and what happens to one that fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from optland.pilot.budget import Budget
from optland.pilot.history import History
from optland.pilot.host import Host
from optland.pilot.notices import say_off
from optland.pilot.probes import SHOWN, Probe, standard_probes
from optland.pilot.signal import Signal

__all__ = ["Looks"]


class Looks:
    """Runs probes inside the budget; their signals go into the history.

    Args:
        host: What they look at.
        history: Where their signals go.
        budget: What they may cost.
        reads: Signals that policies read.
        shown: Whether those run too that nobody reads, for the log.
        own: Probes of the user's.
        seed: Of their randomness.

    Attributes:
        probes: Those in use.
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
        own: Sequence[Probe] = (),
        seed: int = 0,
    ) -> None:
        self.host, self.history, self.budget = host, history, budget
        show = SHOWN | {p.name for p in own} if shown else frozenset()
        known = [*standard_probes(seed), *own] if budget.fraction > 0 else []
        self.probes = [p for p in known if p.yields & reads or p.name in show]
        budget.use({p.name: p.weight for p in self.probes})
        self.last: dict[str, int] = {}
        self.seconds = 0.0

    def is_due(self, probe: Probe, step: int) -> bool:
        """Whether it runs at ``step``: often enough apart, and its declared cost fits the budget."""
        if step - self.last.get(probe.name, -probe.every) < probe.every or not self.host.knows_batch_size:
            return False
        return self.budget.affords(probe.name, probe.cost(self.host))

    def needs_weights_before(self, step: int) -> bool:
        """Whether a probe that looks along the update will run at ``step``."""
        return any(p.along_update and self.is_due(p, step) for p in self.probes)

    def run(self) -> list[Signal]:
        """Run the probes that are due, and return what they measured."""
        started, found = time.perf_counter(), []
        for probe in list(self.probes):
            found += self._run(probe)
        self.seconds += time.perf_counter() - started
        return found

    def _run(self, probe: Probe) -> list[Signal]:
        """One that fails is off from there on, and training goes on."""
        host = self.host
        try:
            probe.see(host)
            if probe.whole_batches and host.is_ragged(host.count(host.batch)):
                return []
            if (probe.along_update and not host.before) or not self.is_due(probe, host.step):
                return []
            signals = probe.measure(host)
        except Exception as error:
            self.probes = [p for p in self.probes if p is not probe]
            say_off(f"the {probe.name} probe", host.step, error)
            return []
        self.budget.spend(probe.name, probe.spent)
        self.last[probe.name] = host.step
        self.history.put(signals)
        return signals

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

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to look as the unbroken one would."""
        return {
            "probes": {p.name: p.state_dict() for p in self.probes},
            "last": dict(self.last),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; a probe that was off stays off."""
        self.probes = [p for p in self.probes if p.name in state["probes"]]
        for probe in self.probes:
            probe.load_state_dict(state["probes"][probe.name])
        self.last, self.seconds = dict(state["last"]), state["seconds"]
