"""The promise about cost, for every policy, optimizer, form of the loop and mode: counted here, not by the pilot."""

from __future__ import annotations

from typing import Any

import pytest
from pilot.contract.loops import BATCH, FORMS, OPTIMIZERS, Run, can_run
from tiers import slow

from optland.pilot import POLICIES, AutoLR, History, NoiseBatch, Pilot, Plateau, Policy, Proposal

pytestmark = pytest.mark.filterwarnings("ignore:the gradient of update:RuntimeWarning")

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


OWN: dict[str, Any] = {
    "doubles": Doubles,
    "leaves": Leaves,
    "auto_lr, capped": lambda: AutoLR(ceiling=1.0),
    "noise_batch, curvature": lambda: NoiseBatch(scale="curvature"),
}


def policies(name: str) -> list[Any]:
    return [OWN[name]() if name in OWN else name]


def paid_by_the_share(pilot: Pilot, trained: float, name: str) -> bool:
    """Whether all runs of a probe so far, and a further one, fit its share of the budget without the advance."""
    budget = pilot.budget
    return budget.spent[name] <= budget.fraction * budget.shares[name] * trained


class Watch:
    """Holds the promises against what is counted here, update by update."""

    def __init__(self, run: Run) -> None:
        assert run.pilot is not None
        self.run, self.pilot = run, run.pilot
        self.paid: dict[str, tuple[int, bool]] = {}  # when a probe last ran, and whether its share had paid for it

    def update(self) -> None:
        self.run.update()
        self.cost()
        self.ages()

    def cost(self) -> None:
        budget, trained = self.pilot.budget, self.run.trained
        spent, f = budget.probe_ge, budget.fraction
        at = f"update {len(self.run.losses)}: {budget.spent} of {trained} trained"
        assert budget.train_ge == pytest.approx(trained, rel=1e-12), at
        assert spent <= 1.01 * f * trained + budget.advance, at
        # What the module says more exactly: the advance is spread, and is not on top. loss_fn is tried once besides.
        first = BATCH / 3
        assert spent - first <= 1.01 * max(f, 0.25) * trained, at
        assert self.run.meter.evaluations <= spent * 1.0001 + 1e-6, f"{at}; the calls cost {self.run.meter.evaluations}"

    def ages(self) -> None:
        """No value that is read is older than twice the interval, once a probe is paid by its share alone."""
        pilot, reads = self.pilot, self.pilot.controls.reads
        intervals = pilot.looks.intervals()
        for probe in pilot.looks.probes:
            if not probe.yields & reads:
                continue
            ran = pilot.looks.last.get(probe.name)
            if ran == pilot.step:
                self.paid[probe.name] = ran, paid_by_the_share(pilot, self.run.trained, probe.name)
            before, paid = self.paid.get(probe.name, (0, False))
            room = pilot.budget.spent[probe.name] + probe.cost(pilot.host) <= (
                pilot.budget.fraction * pilot.budget.shares[probe.name] * self.run.trained
            )
            if not (paid or room):
                continue
            # One update more than that: a smaller batch is not probed.
            assert pilot.step - before <= 2 * intervals[probe.name] + 1, (
                f"{probe.name} ran last at {before}, now {pilot.step}"
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
    ("safe_lr", "sgd", "plain", "control", 0.05),
    ("safe_lr", "sam_every", "plain", "control", 0.05),
    ("safe_lr", "negative_curvature", "plain", "control", 0.05),
    ("noise_batch", "sam", "accumulated", "control", 0.05),
    ("plateau", "adamw", "scaled", "control", 1.0),
    ("leaves", "sgd", "accumulated", "control", 1.0),
    ("doubles", "looksam", "plain", "control", 0.05),
    ("spike_guard", "msam", "scaled", "shadow", 1.0),
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
    assert run.pilot.lost == (len(run.poisoned) if form == "scaled" else 0)
