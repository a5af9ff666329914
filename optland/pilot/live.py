"""The doctor in the loop: what the pilot knows anyway, held against the rules as the run goes on.

Cost: no pass and no wait. Signals are those of the pilot; the rules run at updates 10, 25, 50, 100 and then at every
half as much again, so that their time is nothing beside that of the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from optland.doctor import Diagnosis, Finding, diagnose
from optland.doctor.histories import Histories
from optland.doctor.looks import facts_of_weights
from optland.doctor.spread import Spread
from optland.doctor.watching import Watch
from optland.pilot.host import Host
from optland.pilot.measure import Layout
from optland.pilot.signal import Signal

__all__ = ["Live"]

FIRST, GROWTH = (10, 25, 50, 100), 1.5
SURE = 0.6
"""Weight of the evidence from which on a finding is said while the run goes on."""


class Live:
    """Findings as they appear, once each until they change.

    Args:
        host: The run.
        watch: A watch on the same loop, which sees more; without it the doctor has the pilot's signals.
        paced: Whether a policy sets the length of the steps, so that there is no rate to find fault with.
    """

    def __init__(self, host: Host, watch: Watch | None = None, *, paced: bool = False) -> None:
        self.host, self.watch = host, watch
        self.histories = Histories() if watch is None else watch.histories
        self.histories.facts["paced"] = paced
        self.spread = Spread()
        self._said: set[str] = set()
        self._next = FIRST[0]

    def begin(self, groups: Sequence[Mapping[str, Any]], total_steps: int | None) -> None:
        """Facts of the run, before its first update.

        Args:
            groups: Parameter groups of the optimizers; of momentum, decay and rate the largest is taken.
            total_steps: Updates of the whole run; None where it is unknown.
        """
        held = [p for group in groups for p in group["params"]]
        facts = self.histories.facts
        facts |= facts_of_weights(self.host.model, held)
        betas = [group.get("betas", (group.get("momentum", 0.0),))[0] or 0.0 for group in groups]
        facts["momentum"] = float(max(betas, default=0.0))
        facts["weight_decay"] = float(max((group.get("weight_decay", 0.0) for group in groups), default=0.0))
        facts["lr"] = float(max((group["lr"] for group in groups if "lr" in group), default=math.nan))
        facts["optimizer"] = type(self.host.inner[0]).__name__
        if total_steps is not None:
            facts["total_steps"] = total_steps

    def gradients(
        self, step: int, norm: float, sizes: Sequence[float], layout: Layout, scale: Any = None
    ) -> None:
        """The norms of an update's gradients, which are on the host anyway, and now and then their spread.

        Args:
            step: The update.
            norm: Of all of them.
            sizes: Of each.
            layout: That of the parameters.
            scale: What a gradient scaler multiplied the loss by; None without one.
        """
        if step >= self.spread.next:
            names = [layout.names[i] for i in layout.matrices]
            params = [layout.params[i] for i in layout.matrices]
            self.spread.look(step, names, params, 1.0 if scale is None else float(scale))
        row = {"update/grad_norm": norm}
        matrices, roots = layout.matrices, layout.roots
        if self.watch is None and len(matrices) > 1:
            first, last = matrices[0], matrices[-1]
            row["layer/depth"] = float(len(matrices))
            if sizes[last] > 0:
                row["layer/first_over_last"] = sizes[first] / roots[first] * roots[last] / sizes[last]
        self.histories.put(step, row)

    def measured(self, step: int, loss: float | None, signals: Iterable[Signal]) -> None:
        """What an update brought: its loss, once it is on the host, and what probes measured.

        Args:
            step: The update.
            loss: Its loss; None where it has not come to the host. With a watch it is the watch that has the losses.
            signals: Those that are not valid are left out.
        """
        row = {s.name: s.value for s in signals if s.valid}
        if loss is not None and self.watch is None:
            row["train/loss"] = loss
        self.histories.put(step, row)

    def row(self) -> dict[str, float]:
        """The last values of what is measured layer by layer, for the log."""
        kept = {
            name: self.histories.raw(name)
            for name in ("layer/first_over_last", "layer/depth", "layer/dead_max")
        }
        return {name: values[-1] for name, values in kept.items() if values} | self.spread.row()

    def told(self, batch: Any, loss: Any) -> AbstractContextManager[None]:
        """Tell the watch of an update; what happens inside are the pilot's own passes, at which it does not look.

        Args:
            batch: Of the update.
            loss: Of the update.

        Returns:
            A context for the pilot's part of ``after_step``.
        """
        if self.watch is None:
            return nullcontext()
        self.watch.after_step(batch, loss)
        return self.watch.paused()

    def diagnosis(self) -> Diagnosis:
        """All findings so far."""
        return diagnose(self.histories)

    def news(self, step: int, signals: Sequence[Signal]) -> list[Finding]:
        """Take in what probes measured; findings that were not said yet, where it is time to look.

        Args:
            step: The update.
            signals: Measured in it.

        Returns:
            Findings of a confidence of at least 0.6; one that went away and came back is said again.
        """
        if signals:
            self.measured(step, None, signals)
        if step < self._next:
            return []
        self._next = next((s for s in FIRST if s > step), math.ceil(GROWTH * step))
        found = [f for f in self.diagnosis().findings if f.confidence >= SURE]
        fresh = [f for f in found if f.symptom.value not in self._said]
        self._said = {f.symptom.value for f in found}
        return fresh

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        return {
            "said": sorted(self._said),
            "next": self._next,
            "spread": self.spread.next,
            "histories": self.histories.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self._said, self._next = set(state["said"]), state["next"]
        self.spread.next = state.get("spread", self.spread.next)
        self.histories.load_state_dict(state["histories"])
