"""What step policies ask for is what happens to the run: against closed forms, literal loops and untouched twins."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scripted import GrowsOnce
from torch import Tensor, nn
from torch.optim import lr_scheduler

from optland.control import Plateau, Proposal, SpikeGuard, StepPolicy, StepView
from optland.control.policies import POLICIES
from optland.optim import SAM
from optland.optim.saddle import NegativeCurvature
from optland.train import BatchLoader, Pilot
from optland.train.executor import actuators_of, is_adam

STEPS, PEAK, FACTOR = 200, 0.02, 0.25


class Asks(StepPolicy):
    """A policy with a script: what to ask for after which step."""

    name = "asks"

    def __init__(self, script: dict[int, list[tuple[str, float]]]) -> None:
        self.script = script
        kinds = frozenset(kind for asked in script.values() for kind, _ in asked)
        self.needs = kinds  # type: ignore[misc]

    def propose(self, view: StepView) -> list[Proposal]:
        old = {"lr_factor": view.factor, "rho": view.rho or 0.0}
        return [
            Proposal(kind, old.get(kind, 0.0), new, "as scripted")  # type: ignore[arg-type]
            for kind, new in self.script.get(view.step, [])
        ]


def quadratic(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean of (x w + b - y)^2 / 2."""
    return 0.5 * (model(batch[0]).squeeze(1) - batch[1]).square().mean()


class Loop:
    """A linear model in float64, one pilot, one loop."""

    def __init__(
        self, optimizer: Callable[[Any], Any], *, n: int = 64, batch: int = 8, epochs: int = 50, **pilot: Any
    ):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(n, 5, generator=generator).double()
        data = [x, 3 * x.sum(1) + 0.5 * torch.randn(n, generator=generator).double()]
        self.model = nn.Linear(5, 1).double()
        self.optimizer = optimizer(self.model.parameters())
        self.loader = BatchLoader(data, batch, epochs=epochs, seed=0)
        self.pilot = Pilot(
            self.optimizer,
            self.model,
            quadratic,
            **({"total_samples": self.loader.total_samples, "budget": 0.0, "policies": []} | pilot),
        )
        self.applied: list[float] = []
        self.norms: list[float] = []
        self.evaluations: list[int] = []

    def run(self, steps: int, corrupt: Any = (), scheduler: Any = None, metric: Any = None) -> Loop:
        for batch in self.pilot.batches(self.loader):
            bad = self.pilot.step + 1 in corrupt
            seen = (batch[0] * math.nan, batch[1]) if bad else batch
            inside: list[float] = []

            def closure(seen: Any = seen, inside: list[float] = inside) -> Tensor:
                inside.append(self.optimizer.param_groups[0]["lr"])
                self.optimizer.zero_grad()
                loss = quadratic(self.model, seen)
                loss.backward()
                return loss

            loss = self.optimizer.step(closure)
            self.applied.append(float(inside[0]))
            self.evaluations.append(len(inside))
            self.norms.append(float(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm()))
            if scheduler is not None:
                scheduler.step(*(() if metric is None else (metric(self.pilot.step),)))
            self.pilot.after_step(seen, loss)
            if self.pilot.step >= steps:
                break
        return self

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=PEAK, momentum=0.9)


# ---------------------------------------------------------------- the factor never compounds


def _one_cycle(k: int) -> float:
    """PyTorch's two phases: up over the first 30 % (peak at 59), down to 1e-4 of the start; k counts from 0."""
    top, start, end = 0.3 * STEPS - 1, PEAK / 25, PEAK / 25 / 1e4
    if k <= top:
        return start + (PEAK - start) * (1 - math.cos(math.pi * k / top)) / 2
    return PEAK + (end - PEAK) * (1 - math.cos(math.pi * (k - top) / (STEPS - 1 - top))) / 2


SCHEDULES: dict[str, tuple[Any, Callable[[int], float]]] = {
    "cosine": (
        lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
        lambda k: PEAK * (1 + math.cos(math.pi * k / STEPS)) / 2,
    ),
    "step": (lambda o: lr_scheduler.StepLR(o, 50, gamma=0.5), lambda k: PEAK * 0.5 ** (k // 50)),
    "linear": (
        lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=STEPS),
        lambda k: PEAK * (1 - 0.9 * k / STEPS),
    ),
    "plateau": (
        # a metric that never improves after the first: one cut after every 11 bad steps, the first seen at step 1
        lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=10),
        lambda k: PEAK * 0.5 ** (max(k - 1, 0) // 11),
    ),
    "one_cycle": (
        lambda o: lr_scheduler.OneCycleLR(o, PEAK, total_steps=STEPS, cycle_momentum=False),
        _one_cycle,
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_factor_never_compounds_with_a_schedule(name: str) -> None:
    """The rate inside the step is factor x schedule; outside it is the schedule alone, at all 200 steps."""
    make, closed_form = SCHEDULES[name]
    loop = Loop(
        sgd,
        policies=[
            Asks({1: [("lr_factor", 0.5)], 2: [("lr_factor", FACTOR)], 150: [("lr_factor", 2 * FACTOR)]})
        ],
    )
    scheduler = make(loop.optimizer)
    loop.run(STEPS - 1, scheduler=scheduler, metric=(lambda _: 1.0) if name == "plateau" else None)
    for k, applied in enumerate(loop.applied):
        factor = 1.0 if k < 1 else 0.5 if k < 2 else FACTOR if k < 150 else 2 * FACTOR
        assert applied == pytest.approx(factor * closed_form(k), rel=1e-9), k
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(closed_form(STEPS - 1), rel=1e-9)


def test_a_factor_grows_at_most_twofold_a_decision() -> None:
    loop = Loop(sgd, policies=[Asks({1: [("lr_factor", 0.1)], 2: [("lr_factor", 5.0)]})]).run(4)
    assert loop.applied == pytest.approx([PEAK, 0.1 * PEAK, 0.2 * PEAK, 0.2 * PEAK])


# ---------------------------------------------------------------- skip, rollback, stop, clip


@pytest.mark.parametrize(
    "base",
    [sgd, lambda p: torch.optim.AdamW(p, lr=PEAK), lambda p: SAM(sgd(p), rho=0.05, check_finite=False)],
)
def test_a_skipped_step_leaves_no_trace(base: Any) -> None:
    """NaN batches under the spike guard: weights and optimizer state bit for bit as before them, momentum too."""
    loop = Loop(base, policies=["spike_guard"]).run(20)
    weights, state = loop.weights(), copy.deepcopy(loop.optimizer.state_dict()["state"])
    loop.run(22, corrupt=(21, 22))
    assert all(torch.equal(a, b) for a, b in zip(loop.weights(), weights, strict=True))
    after = loop.optimizer.state_dict()["state"]
    for key, entry in state.items():
        for name, value in entry.items():
            same = (
                torch.equal(value, after[key][name])
                if isinstance(value, Tensor)
                else value == after[key][name]
            )
            assert same, (key, name)
    assert [d.actuator for d in loop.pilot.decisions] == ["skip", "skip"]
    assert all(torch.isfinite(w).all() for w in loop.run(30).weights())


def test_a_skipped_first_step_leaves_an_empty_state() -> None:
    loop = Loop(sgd, policies=["spike_guard"]).run(1, corrupt=(1,))
    assert not loop.optimizer.state_dict()["state"]


def test_rollback_goes_to_the_last_good_snapshot_and_the_data_go_on() -> None:
    loop = Loop(sgd, policies=[Asks({31: [("rollback", 1.0)]})])
    loop.run(20)  # 400 steps in the run: a snapshot every 20
    twenty = loop.weights()
    loop.run(31)
    decision = loop.pilot.decisions[-1]
    assert (decision.actuator, decision.taken) == ("rollback", True)
    newest_is_dropped = not all(torch.equal(a, b) for a, b in zip(loop.weights(), twenty, strict=True))
    assert newest_is_dropped  # with one recent snapshot the first of all is what is left
    assert loop.loader.samples_served == 31 * 8


def test_guards_are_on_without_any_policy() -> None:
    """A rate far beyond the edge, no policy: control mode rewinds and halves the factor until it is stable."""
    loop = Loop(lambda p: torch.optim.SGD(p, lr=3.0)).run(300)
    rewinds = [d for d in loop.pilot.decisions if d.actuator == "rewind"]
    assert rewinds
    assert loop.applied[-1] == pytest.approx(3.0 * 0.5 ** len(rewinds))
    assert max(float(w.abs().max()) for w in loop.weights()) < 10  # the solution has 3 in every coordinate
    off = Loop(lambda p: torch.optim.SGD(p, lr=3.0), mode="off").run(300)
    assert not max(float(w.abs().max()) for w in off.weights()) < 1e6


def test_after_a_rewind_nothing_grows_for_a_while() -> None:
    script = {k: [("lr_factor", 1.0)] for k in range(1, 60)}
    loop = Loop(lambda p: torch.optim.SGD(p, lr=3.0), policies=[Asks(script)]).run(60)
    first = next(d.step for d in loop.pilot.decisions if d.actuator == "rewind")
    held = [d for d in loop.pilot.decisions if d.actuator == "lr_factor" and first < d.step <= first + 20]
    assert held
    assert all("held back" in d.reason and not d.taken for d in held)


def test_stop_ends_the_batches() -> None:
    loop = Loop(sgd, policies=[Asks({7: [("stop", 1.0)]})]).run(100)
    assert loop.pilot.step == 7


def test_clip_bounds_the_gradient_inside_the_closure() -> None:
    free = Loop(sgd).run(3)
    loop = Loop(sgd, policies=[Asks({2: [("clip", 0.05)], 4: [("clip", 0.0)]})]).run(6)
    assert loop.norms[:2] == free.norms[:2]
    assert loop.norms[2:4] == pytest.approx([0.05, 0.05], rel=1e-4)
    assert loop.norms[4] > 0.05


# ---------------------------------------------------------------- SAM, Adam, the batch


def test_sam_duty_zero_costs_one_evaluation_a_step() -> None:
    loop = Loop(lambda p: SAM(sgd(p), rho=0.05), policies=["late_sam"], epochs=5).run(40)
    assert loop.evaluations == [1] * 34 + [2] * 6  # 40 steps: off from the first, on after 85 %
    assert loop.pilot.budget.train_ge == 8 * sum(loop.evaluations)


def test_rho_follows_the_schedule() -> None:
    loop = Loop(lambda p: SAM(sgd(p), rho=0.1), policies=["rho"], epochs=5).run(20)
    assert loop.optimizer.param_groups[0]["sam_rho"] == pytest.approx(0.1 * (0.1 + 0.9 * 0.5), rel=0.02)


@pytest.mark.parametrize("decoupled", [False, True])
def test_gi_adam_is_adam_with_v0(decoupled: bool) -> None:
    """Against the recursion written out, bias corrections kept, from v_0 = g_0^2."""
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    loop = Loop(lambda p: kind(p, lr=0.01, weight_decay=0.1), policies=["gi_adam"])
    w = torch.cat([p.detach().flatten() for p in loop.model.parameters()])
    m, v = torch.zeros_like(w), None
    twin = BatchLoader(loop.loader.tensors, 8, epochs=50, seed=0)
    for k, (x, y) in zip(range(1, 6), twin, strict=False):
        z = x @ w[:5] + w[5]
        g = torch.cat([((z - y)[:, None] * x).mean(0), (z - y).mean()[None]])
        g = g if decoupled else g + 0.1 * w
        v = g * g if v is None else v
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w * (1 - 0.01 * 0.1) if decoupled else w
        w = w - 0.01 * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
    loop.run(5)
    found = torch.cat([p.flatten() for p in loop.weights()])
    assert torch.allclose(found, w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "NAdam", "RAdam"])
@pytest.mark.parametrize("wrapped", [0, 1, 2])
def test_adam_is_known_by_any_of_its_names_below_any_wrapper(kind: str, wrapped: int) -> None:
    """In PyTorch 2.6 AdamW is no kind of Adam; NAdam and RAdam are none anywhere."""
    model = nn.Linear(2, 1)
    optimizer: Any = getattr(torch.optim, kind)(model.parameters(), lr=0.01)
    assert ("adam_v0" in actuators_of(optimizer)) == (kind in ("Adam", "AdamW"))
    optimizer = SAM(optimizer) if wrapped else optimizer
    optimizer = NegativeCurvature(optimizer) if wrapped == 2 else optimizer
    assert is_adam(optimizer)
    assert wrapped == 0 or "adam_v0" not in actuators_of(optimizer)
    assert not is_adam(torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize(("name", "optimizer"), [("gi_adam", sgd), ("late_sam", sgd), ("rho", sgd)])
def test_a_host_without_the_actuator_is_refused(name: str, optimizer: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} needs"):
        Loop(optimizer, policies=[name])
    Loop(optimizer, policies=[name], mode="shadow").run(3)


def test_seesaw_needs_a_loader_that_can_grow() -> None:
    pilot = Loop(sgd, policies=["seesaw"]).pilot
    with pytest.raises(TypeError, match="seesaw cannot change the batch size of a list"):
        next(iter(pilot.batches([])))


def test_the_rate_and_adams_memory_follow_the_batch() -> None:
    policy = GrowsOnce(30, scale_lr=True)
    loop = Loop(lambda p: torch.optim.Adam(p, lr=0.01), policies=[policy], budget=5.0).run(60)
    grown = [d for d in loop.pilot.decisions if d.actuator == "batch_size"]
    assert len(grown) == 1
    assert loop.applied[-1] == pytest.approx(0.01 * math.sqrt(2))
    assert loop.optimizer.param_groups[0]["betas"] == pytest.approx((0.8, 0.998))


# ---------------------------------------------------------------- the saddle


class Product(nn.Module):
    """y = W2 W1 x from zero weights: no gradient at all, and a strict saddle on every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(3, 4))
        self.second = nn.Parameter(torch.zeros(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.first.T @ self.second.T


def stuck(budget: float) -> tuple[Product, Pilot, list[float]]:
    """Steps from the saddle, with the policy that may leave it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=generator)
    y = x @ torch.randn(4, 2, generator=generator)
    model = Product()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    loader = BatchLoader([x, y], 32, epochs=8, seed=0)

    def loss_fn(net: nn.Module, batch: Any) -> Tensor:
        return (net(batch[0]) - batch[1]).square().mean()

    pilot = Pilot(
        optimizer,
        model,
        loss_fn,
        policies=[Plateau(window=16)],
        budget=budget,
        total_samples=loader.total_samples,
    )
    losses = []
    for batch in pilot.batches(loader):

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
        pilot.after_step(batch, losses[-1])
    return model, pilot, losses


def test_a_plateau_at_a_saddle_is_left_and_says_why() -> None:
    _, pilot, losses = stuck(budget=5.0)
    found = [d for d in pilot.decisions if d.actuator == "escape"]
    assert [d.taken for d in found] == [False, True]  # the first is not paid for yet
    assert "are left" in found[0].reason
    assert "strict saddle: moved by" in found[1].reason
    assert found[1].signals["curv/lambda_min"] < 0
    assert found[1].signals["train/loss_after"] < found[1].signals["train/loss"]
    assert sum(losses[-8:]) < 0.25 * sum(losses[:8])
    assert pilot.budget.spent["curvature"] <= pilot.budget.allowance("curvature")


def test_an_escape_that_cannot_be_paid_is_not_taken() -> None:
    model, pilot, _ = stuck(budget=1.0)
    found = [d for d in pilot.decisions if d.actuator == "escape"]
    assert found
    assert not any(d.taken for d in found)
    assert "are left" in found[0].reason
    assert not any(p.any() for p in model.parameters())
    assert pilot.budget.spent["curvature"] <= pilot.budget.allowance("curvature")


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("name", ["spike_guard", "plateau", "late_sam", "rho", "edge_monitor"])
def test_a_resumed_run_goes_on_bit_for_bit(name: str) -> None:
    made = {"plateau": Plateau(window=16), "spike_guard": SpikeGuard(window=16)}

    def start() -> Loop:
        policy = copy.deepcopy(made.get(name, name))
        return Loop(lambda p: SAM(sgd(p), rho=0.05), policies=[policy], epochs=6, budget=0.5)

    whole = start().run(40, corrupt=(18, 20, 22))
    first, second = start().run(21, corrupt=(18, 20, 22)), start()
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.loader.load_state_dict(first.loader.state_dict())
    second.pilot.load_state_dict(copy.deepcopy(first.pilot.state_dict()))
    second.run(40, corrupt=(18, 20, 22))
    assert all(torch.equal(a, b) for a, b in zip(whole.weights(), second.weights(), strict=True))
    assert repr(whole.pilot.decisions) == repr(second.pilot.decisions)  # NaN in both is the same


def test_every_name_is_registered_under_its_own() -> None:
    assert all(POLICIES[name].name == name for name in POLICIES)
    assert len(POLICIES) == 12
