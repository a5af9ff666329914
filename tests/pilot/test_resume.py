"""Killed and resumed at any moment, a run goes on bit for bit: weights, state, random numbers, decisions and log."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from pilot.runs import Loop, adamw, assert_same, mlp, sgd, through_a_file
from scripted import WRECK, Asks, GrowsOnce
from tiers import slow
from torch import Tensor, nn

from optland.optim import SAM
from optland.pilot import AutoLR, Plateau, Proposal, SafeLR

QUIET = ("ignore:the gradient of update .* is not finite", "ignore:the second pass has updated")


def sam(model: nn.Module) -> list[Any]:
    return [SAM(sgd(model.parameters()), rho=0.05, model=model)]


def both(model: nn.Module) -> list[Any]:
    weights = [p for p in model.parameters() if p.ndim >= 2]
    return [sgd(weights), adamw([p for p in model.parameters() if p.ndim < 2])]


def cosine(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)


def cap(new: float) -> Proposal:
    return Proposal("lr_factor", new, "as scripted", cap=True)


EVERYTHING: dict[str, dict[str, Any]] = {
    # Most signals; a wreck told with update 12, so that call 13 goes back; a bad batch; the batch grows.
    "auto_lr": {
        "make": sam, "policies": lambda: [
            AutoLR(), GrowsOnce(36), "edge_monitor", "noise_monitor", "spike_guard",
        ],
    },
    "safe_lr": {
        "make": sgd, "form": "scaler", "schedule": cosine, "policies": lambda: [SafeLR(initial_lr=0.01), GrowsOnce(36)],
    },
    "plateau": {"make": both, "form": "phases", "policies": lambda: [Plateau(window=16), "edge_monitor"]},
    "asked": {
        "make": adamw, "schedule": cosine, "policies": lambda: [Asks({
            5: [("lr_factor", 0.5)], 9: [cap(0.25)], 14: [("beta1", 0.8), ("weight_decay", 0.3)], 20: [cap(2.0)],
            22: [("clip", 0.3)], 36: [("lr_factor", 0.9)],
        })],
    },
    "none": {"make": sam, "form": "phases", "policies": list},
}  # fmt: skip

STOPS = {
    "before the first update": 0,
    "after the first": 1,
    "a wreck is told and not judged": 12,
    "after a rewind": 13,
    "while nothing may grow": 20,
    "before a bad batch": 29,
    "after it": 30,
    "the batch has just grown": 38,
    "in the middle": 41,
}


OTHERS = [name for name in EVERYTHING if name != "auto_lr"]
MIDDLE = "in the middle"
FIVE = (
    MIDDLE,
    "after a rewind",
    "a wreck is told and not judged",
    "before a bad batch",
    "the batch has just grown",
)


def fresh(name: str, mode: str = "control") -> Loop:
    """A run of this kind from its start."""
    options = dict(EVERYTHING[name])
    make, policies = options.pop("make"), options.pop("policies")()
    several = make in (sam, both)
    return Loop(
        make,
        several=several,
        policies=policies,
        budget=0.8,
        epochs=7,
        bad=[30],
        told={12: WRECK},
        mode=mode,
        **options,
    )


@cache
def whole(name: str, mode: str = "control") -> Loop:
    return fresh(name, mode).run()


def rows(run: Loop) -> list[dict[str, Any]]:
    """The log but for wall times."""
    return [{k: v for k, v in row.items() if k != "budget/probe_ms"} for row in run.log.rows]


def scrambled(run: Loop) -> Loop:
    """With other weights and other random numbers, as a new process has them."""
    torch.manual_seed(99)
    with torch.no_grad():
        for p in [*run.model.parameters(), *run.model.buffers()]:
            p.copy_(torch.rand_like(p) if p.is_floating_point() else p)
    return run


@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize(
    ("name", "stop"),
    [
        *[("auto_lr", stop) for stop in FIVE],
        *[(name, MIDDLE) for name in OTHERS],
        *slow(*[("auto_lr", stop) for stop in STOPS if stop not in FIVE]),
        *slow(*[(name, stop) for name in OTHERS for stop in STOPS if stop != MIDDLE]),
    ],
)  # fmt: skip
def test_a_resumed_run_is_the_unbroken_one(name: str, stop: str) -> None:
    unbroken, at = whole(name), STOPS[stop]
    first = fresh(name).run(at)
    state = first.state()
    second = scrambled(fresh(name)).load(state).run()
    assert second.calls == unbroken.calls
    second.losses = first.losses + second.losses
    assert_same(unbroken.bits(), second.bits())
    assert first.applied + second.applied == pytest.approx(unbroken.applied, rel=0, abs=0, nan_ok=True)
    assert [d.to_dict() for d in unbroken.pilot.decisions] == [d.to_dict() for d in second.pilot.decisions]
    assert_same(rows(unbroken), rows(first) + rows(second))
    assert (second.pilot.step, second.pilot.lost) == (unbroken.pilot.step, unbroken.pilot.lost)
    known = [run.pilot.state_dict() | {"seconds": 0.0} for run in (unbroken, second)]
    for state in known:
        state["looks"]["seconds"] = 0.0
    assert_same(*known, where="pilot")


@pytest.mark.filterwarnings(*QUIET)
def test_the_runs_above_have_what_a_resume_could_get_wrong() -> None:
    run = whole("auto_lr")
    decided = {d.actuator for d in run.pilot.decisions if d.taken}
    assert decided >= {"rewind", "batch_size"}
    assert run.pilot.lost >= 2
    assert min(run.pilot.budget.spent[name] for name in ("edge", "noise")) > 0
    (rewind,) = run.decided("rewind")
    assert rewind.step == 12
    assert run.sizes[:38] == [16] * 38
    assert 32 in run.sizes[38:41]
    assert {d.actuator for d in whole("asked").pilot.decisions} >= {
        "lr_factor",
        "beta1",
        "weight_decay",
        "clip",
    }


@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize("mode", ["monitor", "shadow"])
def test_so_is_one_that_only_looks(mode: str) -> None:
    unbroken, first = whole("auto_lr", mode), fresh("auto_lr", mode).run(21)
    state = first.state()
    second = scrambled(fresh("auto_lr", mode)).load(state).run()
    second.losses = first.losses + second.losses
    assert_same(unbroken.bits(), second.bits())
    assert_same(rows(unbroken), rows(first) + rows(second))
    assert [d.to_dict() for d in unbroken.pilot.decisions] == [d.to_dict() for d in second.pilot.decisions]


@pytest.mark.filterwarnings(*QUIET)
def test_a_run_may_be_broken_again_and_again() -> None:
    """After every call, through a file."""
    run = fresh("none")
    losses: list[float] = []
    for k in range(1, 41):
        run.run(k)
        losses += run.losses
        state = run.state()
        run = scrambled(fresh("none")).load(state)
    run.run()
    unbroken = whole("none")
    run.losses = losses + run.losses
    assert_same(unbroken.bits(), run.bits())


def test_a_resumed_run_audits_the_curvature_when_the_unbroken_one_does() -> None:
    """So long a run that audits lie behind the stop."""

    def long() -> Loop:
        def net() -> nn.Module:
            return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

        return Loop(model=net, mode="monitor", batch=32, epochs=130, budget=1.0)

    unbroken = long().run(301)
    state = unbroken.state()
    unbroken.run()
    second = scrambled(long()).load(state).run()
    trackers: list[Any] = [
        next(p for p in r.pilot.looks.probes if p.name == "curvature") for r in (unbroken, second)
    ]
    assert trackers[0].tracker.num_audits >= 2
    assert_same(trackers[0].tracker.state_dict(), trackers[1].tracker.state_dict())
    spectra = [[{k: v for k, v in row.items() if k.startswith("curv/")} for row in r.log.rows if row["step"] > 301]
               for r in (unbroken, second)]  # fmt: skip
    assert_same(*spectra)
    assert any(spectra[0])


def test_the_state_is_tensors_and_plain_values() -> None:
    """What a reader that runs no code can load; as large as weights, optimizer state and a few batches allow."""
    run = fresh("auto_lr").run(28)
    state = run.pilot.state_dict()
    assert_same(through_a_file(state), state)

    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        if isinstance(value, dict):
            return [t for v in value.values() for t in tensors(v)]
        return [t for v in value for t in tensors(v)] if isinstance(value, list | tuple) else []

    held = sum(t.numel() for t in tensors({k: v for k, v in state.items() if k != "recent"}))
    weights = sum(p.numel() for p in run.model.parameters())
    # Two snapshots of weights, buffers and one momentum; the gradients of the coherence; the tracker's vectors.
    assert held < 12 * weights + 4096


def test_a_probe_that_was_off_stays_off() -> None:
    run = fresh("auto_lr").run(5)
    probe = run.pilot.looks.probes[0]
    run.pilot.looks.probes = run.pilot.looks.probes[1:]
    state = run.state()
    resumed = scrambled(fresh("auto_lr")).load(state)
    assert probe.name not in {p.name for p in resumed.pilot.looks.probes}


def test_wall_time_adds_up() -> None:
    run = Loop(model=mlp).run(3)
    before = run.pilot.seconds
    resumed = Loop(model=mlp).load(run.state()).run(5)
    assert resumed.pilot.seconds > before > 0
