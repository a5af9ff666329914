"""The promise about cost, for every policy, optimizer, form of the loop and mode: counted here, not by the pilot."""

from __future__ import annotations

from typing import Any

import pytest
from pilot.contract.loops import BATCH, FORMS, OPTIMIZERS, Run, can_run
from tiers import slow

from optland.pilot import AutoLR, NoiseBatch, Plateau, Policy, Probe, Proposal
from optland.pilot.policies import POLICIES

pytestmark = pytest.mark.filterwarnings("ignore:the gradient of update:RuntimeWarning")

LOOK = BATCH / 3
"""Cost of the first look at ``loss_fn``, a forward pass."""

MODES = ("monitor", "shadow", "control")


class Doubles(Policy):
    """The batch is doubled at update 20, whatever is measured, and the edge is read."""

    name = "doubles"
    reads = frozenset({"edge/eta_c"})
    turns = frozenset({"batch_size"})

    def decide(self, history: Any) -> list[Proposal]:
        size = history.setting("batch_size")
        return [Proposal("batch_size", 2 * size, "scripted")] if history.step == 20 else []


class Leaves(Plateau):
    """An escape is asked for again and again, whatever is measured."""

    def decide(self, history: Any) -> list[Proposal]:
        super().decide(history)
        return [Proposal("escape", 1.0, "scripted")] if history.step % 10 == 0 else []


class Restless(Policy):
    """An escape is asked for again and again, and no curvature is read."""

    name = "restless"
    turns = frozenset({"escape"})

    def decide(self, history: Any) -> list[Proposal]:
        return [Proposal("escape", 1.0, "scripted")] if history.step % 10 == 0 else []


OWN: dict[str, Any] = {
    "doubles": Doubles,
    "leaves": Leaves,
    "restless": Restless,
    "auto_lr, capped": lambda: AutoLR(ceiling=1.0),
    "noise_batch, curvature": lambda: NoiseBatch(scale="curvature"),
}


def policies(name: str) -> list[Any]:
    return [OWN[name]() if name in OWN else name]


class Watch:
    """Holds the promises against what is counted here, update by update."""

    def __init__(self, run: Run) -> None:
        assert run.pilot is not None
        self.run, self.pilot = run, run.pilot
        self.paid: dict[str, bool] = {}
        """Whether the share of a probe alone had paid for all its runs when it ran last."""

    def update(self) -> None:
        before, step = self.run.trained, self.pilot.step
        room = {probe.name for probe in self.read() if self.has_room(probe, before)}
        self.run.update()
        self.cost()
        if self.pilot.step > step:
            self.ages(room, before)

    def read(self) -> list[Probe]:
        """The probes that a policy reads."""
        return [p for p in self.pilot.looks.probes if p.yields & self.pilot.controls.reads]

    def paid_for(self, probe: Probe, trained: float) -> float:
        """The part of the budget that a probe may have used by now, the first look at ``loss_fn`` paid."""
        budget = self.pilot.budget
        return budget.shares[probe.name] * (budget.fraction * trained - LOOK)

    def has_room(self, probe: Probe, trained: float) -> bool:
        spent = self.pilot.budget.spent[probe.name] + probe.cost(self.pilot.host)
        return 1.001 * spent < self.paid_for(probe, trained)

    def cost(self) -> None:
        budget, trained = self.pilot.budget, self.run.trained
        spent, f = budget.probe_ge, budget.fraction
        at = f"update {len(self.run.losses)}: {budget.spent} of {trained} trained"
        assert budget.train_ge == pytest.approx(trained, rel=1e-12), at
        assert spent <= 1.01 * f * trained + budget.advance, at
        # What the module says more exactly: the advance is spread, and is not on top. loss_fn is tried once besides.
        assert spent - LOOK <= 1.01 * max(f, 0.25) * trained, at
        assert self.run.meter.evaluations <= spent * 1.0001 + 1e-6, (
            f"{at}; the calls cost {self.run.meter.evaluations}"
        )

    def ages(self, room: set[str], before: float) -> None:
        """What is read is as fresh as the budget lets it be; once it is paid for, no older than twice the interval."""
        pilot, intervals = self.pilot, self.pilot.looks.intervals()
        last = self.run.sizes[-1]
        for probe in self.read():
            ran = pilot.looks.last.get(probe.name)
            if ran == pilot.step:
                self.paid[probe.name] = pilot.budget.spent[probe.name] <= self.paid_for(probe, before)
            age = pilot.step - (ran or 0)
            if probe.name in room and last == max(self.run.sizes[-3:]):  # a smaller batch is not probed
                assert age < probe.every + 1, f"{probe.name} has room at {pilot.step} and ran last at {ran}"
            if self.paid.get(probe.name):
                assert age <= 2 * intervals[probe.name] + 1, (
                    f"{probe.name} ran last at {ran}, now {pilot.step}"
                )


def every_cell() -> list[tuple[str, str, str, str, float]]:
    return [
        (policy, optimizer, form, mode, budget)
        for policy in [*POLICIES, *OWN]
        for optimizer in OPTIMIZERS
        for form in FORMS
        for mode in MODES
        for budget in (0.05, 1.0)
        if can_run(optimizer, form)
    ]


FEW = [
    ("safe_lr", "sam_every", "plain", "control", 0.05),
    ("safe_lr", "negative_curvature", "plain", "control", 0.05),
    ("noise_batch", "sam", "accumulated", "control", 0.05),
    ("plateau", "adamw", "scaled", "control", 1.0),
    ("restless", "sam", "plain", "control", 1.0),
    ("doubles", "looksam", "plain", "control", 0.05),
    ("edge_monitor", "muon", "accumulated", "control", 0.05),
    ("curvature_monitor", "sam", "plain", "control", 1.0),
    ("auto_lr", "muon", "scaled", "shadow", 0.05),
]


@pytest.mark.parametrize(
    ("policy", "optimizer", "form", "mode", "budget"),
    [*FEW, *slow(*(cell for cell in every_cell() if cell not in FEW))],
)
def test_the_budget_is_kept_at_every_update(
    policy: str, optimizer: str, form: str, mode: str, budget: float
) -> None:
    run = Run(optimizer, form, policies=policies(policy), mode=mode, budget=budget)
    watch = Watch(run)
    for _ in range(run.updates):
        watch.update()
    assert run.pilot is not None
    if run.pilot.progress.total_steps is not None:
        assert run.pilot.budget.probe_ge <= 1.01 * budget * run.trained + LOOK, "the advance is not paid back"
    if (policy, optimizer, mode, budget) == ("restless", "sam", "control", 1.0):
        assert run.pilot.budget.spent["curvature"] > 0.0, "no look was ever affordable"
    assert run.pilot.lost == (len(run.poisoned) if form == "scaled" else 0)
