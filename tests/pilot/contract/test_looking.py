"""Looking changes nothing, names are their objects, and a killed run goes on: bit for bit, for every kind of run."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from pilot.contract.loops import FORMS, OPTIMIZERS, Run, can_run, differences
from pilot.contract.test_budget import OWN, policies
from tiers import slow

from optland.pilot import Plateau, SpikeGuard
from optland.pilot.policies import POLICIES

pytestmark = pytest.mark.filterwarnings("ignore:the gradient of update:RuntimeWarning")

UPDATES = 42


@cache
def without(optimizer: str, form: str) -> dict[str, Any]:
    """The run that nobody looks at."""
    return Run(optimizer, form, updates=UPDATES).train().bits()


def looking_cells() -> list[tuple[str, str, str, str]]:
    return [
        (mode, policy, optimizer, form)
        for mode in ("off", "monitor", "shadow")
        for policy in ([*POLICIES, *OWN] if mode == "shadow" else ["auto_lr"])
        for optimizer in OPTIMIZERS
        for form in FORMS
        if can_run(optimizer, form)
    ]


LOOKING = [
    ("off", "auto_lr", "sgd", "plain"),
    ("monitor", "auto_lr", "sam", "plain"),
    ("monitor", "auto_lr", "muon", "scaled"),
    ("shadow", "auto_lr", "sam_every", "scaled"),
    ("shadow", "safe_lr", "negative_curvature", "plain"),
    ("shadow", "noise_batch", "looksam", "accumulated"),
]


@pytest.mark.cell("plain loop", "pilot monitor")
@pytest.mark.parametrize(
    ("mode", "policy", "optimizer", "form"),
    [*LOOKING, *slow(*(cell for cell in looking_cells() if cell not in LOOKING))],
)
def test_a_run_that_is_looked_at_is_the_run_without(
    mode: str, policy: str, optimizer: str, form: str
) -> None:
    expected = without(optimizer, form)
    run = Run(optimizer, form, policies=policies(policy), mode=mode, budget=1.0, updates=UPDATES).train()
    assert differences(expected, run.bits()) == []
    assert run.pilot is not None
    assert not any(d.taken for d in run.pilot.decisions)
    if mode != "off":
        # The noise in the curvature's metric is so dear that nothing is left for another probe in so short a run.
        rich = optimizer == "sam" and policy != "noise_batch, curvature"
        seen = {"edge", "noise", "curvature"} if rich else {"edge", "noise"}
        assert seen <= set(run.pilot.looks.last)


def acting_cells() -> list[tuple[str, str, str]]:
    return [(p, o, f) for p in POLICIES for o in OPTIMIZERS for f in FORMS if can_run(o, f)]


NAMED = [("auto_lr", "sgd", "plain"), ("auto_lr", "sam", "plain"), ("noise_batch", "sam", "accumulated"),
         ("safe_lr", "adamw", "plain"), ("spike_guard", "sgd", "scaled")]  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "optimizer", "form"),
    [*NAMED, *slow(*(cell for cell in acting_cells() if cell not in NAMED))],
)
def test_a_name_is_its_object(policy: str, optimizer: str, form: str) -> None:
    (bits, said), again = (
        (run.train().bits(), [d.to_dict() for d in run.pilot.decisions] if run.pilot else [])
        for p in (policy, POLICIES[policy]())
        for run in [Run(optimizer, form, policies=[p], budget=0.3, updates=UPDATES)]
    )
    assert differences((bits, said), again) == []
    if policy == "auto_lr":
        assert differences(without(optimizer, form)["model"], bits["model"]) != [], (
            "the policy does nothing here"
        )


BUSY: dict[str, Any] = {
    "plateau, busy": lambda: Plateau(window=16),
    "spike_guard, busy": lambda: SpikeGuard(z=0.1, num_spikes=1, within=5, persist=4),
}
"""With constants that make them act within a tiny run."""


@pytest.mark.parametrize(
    "policy", ["safe_lr", "plateau, busy", *slow("auto_lr", "spike_guard, busy", "noise_batch")]
)
def test_shadow_decides_first_what_control_does_first(policy: str) -> None:
    """Up to the first decision that is carried out both are one run."""

    def first(mode: str) -> str:
        chosen = [BUSY[policy]()] if policy in BUSY else policies(policy)
        run = Run("sgd", policies=chosen, mode=mode, budget=1.0).train()
        assert run.pilot is not None
        decided = [d for d in run.pilot.decisions if d.actuator != "alarm"]
        assert all(d.reason for d in decided)
        return repr(decided[0].to_dict() | {"taken": True}) if decided else "nothing"

    assert first("shadow") == first("control")
    assert policy in ("auto_lr", "noise_batch") or first("control") != "nothing"


@pytest.mark.cell("plain loop", "pilot control")
@pytest.mark.parametrize(
    "policy",
    ["auto_lr", "safe_lr", *slow(*(p for p in [*POLICIES, *OWN] if p not in ("auto_lr", "safe_lr")))],
)
def test_a_run_that_a_policy_steers_learns(policy: str) -> None:
    run = Run("adamw", policies=policies(policy), updates=90, budget=1.0).train()
    assert sum(run.losses[-10:]) / 10 < 0.85 * sum(run.losses[:5]) / 5


class Rows:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def log(self, metrics: Any) -> None:
        self.rows.append(metrics)

    def event(self, event: Any) -> None:
        self.rows.append(event)

    def close(self) -> None:
        self.rows = []


@pytest.mark.parametrize(
    ("policy", "optimizer"),
    [("auto_lr", "sam"), ("plateau, busy", "sgd"), *slow(("safe_lr", "adamw"), ("auto_lr, capped", "muon"))],
)
def test_a_log_changes_nothing(policy: str, optimizer: str) -> None:
    found = []
    both: list[dict[str, Any]] = [{}, {"log": Rows(), "log_every": 1}]
    for options in both:
        chosen = [BUSY[policy]()] if policy in BUSY else policies(policy)
        run = Run(optimizer, policies=chosen, budget=1.0, updates=UPDATES, **options).train()
        assert run.pilot is not None
        found.append(
            [run.bits(), [d.to_dict() for d in run.pilot.decisions], run.pilot.controls.state_dict()]
        )
        if options:
            assert len(options["log"].rows) >= UPDATES
    assert differences(*found) == []


RESUMED = [("auto_lr", "sam", "scaled", 8), ("safe_lr", "muon", "accumulated", 17), ("doubles", "sgd", "plain", 25),
           ("plateau, busy", "looksam", "plain", 30), ("curvature_monitor", "negative_curvature", "plain", 37),
           ("noise_batch, curvature", "sgd", "plain", 19)]  # fmt: skip


def resumed_cells() -> list[tuple[str, str, str, int]]:
    return [
        (p, o, f, at)
        for p in [*POLICIES, *OWN, *BUSY]
        for o in OPTIMIZERS
        for f in FORMS
        for at in (8, 26)
        if can_run(o, f)
    ]


@pytest.mark.parametrize(
    ("policy", "optimizer", "form", "at"),
    [*RESUMED, *slow(*(cell for cell in resumed_cells() if cell not in RESUMED))],
)
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    policy: str, optimizer: str, form: str, at: int
) -> None:
    def made() -> Run:
        chosen = [BUSY[policy]()] if policy in BUSY else policies(policy)
        return Run(optimizer, form, policies=chosen, budget=1.0, updates=UPDATES)

    whole = made().train()
    expected = whole.bits()
    saved = (
        made().train(at).saved()
    )  # made() seeds the generators, so one run is over before the next is made
    second = made().load(saved).train()
    assert differences(expected, second.bits()) == []
    assert whole.trained == second.trained
    assert whole.pilot is not None
    assert second.pilot is not None
    kept, found = whole.pilot.state_dict(), second.pilot.state_dict()
    for state in (kept, found):  # wall time is reported, and never decided on
        state.pop("seconds")
        state["looks"].pop("seconds")
    assert differences(kept, found) == []
