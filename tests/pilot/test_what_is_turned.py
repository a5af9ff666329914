"""What policies ask for is what happens to the run: against closed forms, literal loops and untouched twins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pilot.runs import Loop, assert_same
from scripted import Asks, GrowsOnce
from torch import Tensor, nn
from torch.optim import lr_scheduler

from optland.optim import SAM
from optland.optim.saddle import NegativeCurvature
from optland.pilot import Policy, Proposal
from optland.train import BatchLoader

STEPS, PEAK, FACTOR = 200, 0.02, 0.25


def linear() -> nn.Module:
    return nn.Linear(5, 1).double()


def quadratic(model: nn.Module, batch: Any) -> Tensor:
    """Mean of (x w + b - y)^2 / 2."""
    return 0.5 * (model(batch[0]).squeeze(1) - batch[1]).square().mean()


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=PEAK, momentum=0.9)


def loop(make: Callable[[Any], Any] = sgd, script: dict[int, Any] | None = None, **options: Any) -> Loop:
    """A linear model in float64 under a scripted policy."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(64, 5, generator=draw).double()
    tensors = [x, 3 * x.sum(1) + 0.5 * torch.randn(64, generator=draw).double()]
    given = {"policies": [] if script is None else [Asks(script)], "batch": 8, "epochs": 50} | options
    return Loop(make, model=linear, tensors=tensors, loss_fn=quadratic, **given)


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

    def schedule(optimizer: Any) -> Any:
        made = make(optimizer)
        if name == "plateau":
            plain = made.step
            made.step = lambda: plain(1.0)
        return made

    script = {1: [("lr_factor", 0.5)], 2: [("lr_factor", FACTOR)], 150: [("lr_factor", 2 * FACTOR)]}
    run = loop(script=script, schedule=schedule, total_steps=STEPS).run(STEPS - 1)
    for k, applied in enumerate(run.applied):
        factor = 1.0 if k < 1 else 0.5 if k < 2 else FACTOR if k < 150 else 2 * FACTOR
        assert applied == pytest.approx(factor * closed_form(k), rel=1e-9), k
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(closed_form(STEPS - 1), rel=1e-9)


def test_a_factor_grows_at_most_twofold_a_decision() -> None:
    run = loop(script={1: [("lr_factor", 0.1)], 2: [("lr_factor", 5.0)]}).run(4)
    assert run.applied == pytest.approx([PEAK, 0.1 * PEAK, 0.2 * PEAK, 0.2 * PEAK])
    assert [d.new for d in run.pilot.decisions] == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize("form", ["closure", "phases", "scaler"])
def test_caps_and_the_factor_bound_the_rate_in_every_form_of_loop(form: str) -> None:
    """The least of factor x user, factor cap x user and cap; each acts from the next update on."""

    def cap(what: str, new: float) -> Proposal:
        return Proposal(what, new, "as scripted", cap=True)

    script = {
        1: [("lr_factor", 0.5)], 2: [cap("lr_factor", 0.25)], 3: [cap("lr", 0.1 * PEAK)],
        4: [cap("lr_factor", math.inf)], 5: [cap("lr", math.inf)],
    }  # fmt: skip
    run = loop(script=script, form=form).run(7)
    assert run.applied == pytest.approx([PEAK * x for x in (1.0, 0.5, 0.25, 0.1, 0.1, 0.5, 0.5)])
    assert run.optimizer.param_groups[0]["lr"] == PEAK
    applied = [row["lr/applied"] for row in run.log.rows]
    assert applied == pytest.approx(run.applied)
    names = {0.0: "user", 1.0: "edge", 3.0: "guard"}
    bound = [names[row["lr/binding"]] for row in run.log.rows]
    assert bound == ["user", "guard", "guard", "edge", "edge", "guard", "guard"]


def test_groups_keep_their_ratio_under_a_cap() -> None:
    def make(params: Any) -> torch.optim.Optimizer:
        weight, bias = params
        return torch.optim.SGD([{"params": [weight], "lr": 0.02}, {"params": [bias], "lr": 0.005}])

    seen: list[list[float]] = []
    run = loop(make, {1: [Proposal("lr", 0.004, "as scripted", cap=True)]})
    read = run.optimizer._init_group

    def noted(group: Any, *rest: Any) -> Any:
        seen.append([g["lr"] for g in run.optimizer.param_groups])
        return read(group, *rest)

    run.optimizer._init_group = noted
    run.run(2)
    assert seen[0] == [0.02, 0.005]
    assert seen[-1] == pytest.approx([0.004, 0.001])


# ---------------------------------------------------------------- rewinds, stop, clip


def test_a_rate_beyond_the_edge_is_halved_until_it_is_stable_without_any_policy() -> None:
    run = loop(lambda p: torch.optim.SGD(p, lr=3.0), total_steps=300).run(300)
    rewinds = run.decided("rewind")
    assert rewinds
    assert run.applied[-1] == pytest.approx(3.0 * 0.5 ** len(rewinds))
    assert max(float(w.abs().max()) for w in run.weights()) < 10  # the solution has 3 in every coordinate
    off = loop(lambda p: torch.optim.SGD(p, lr=3.0), mode="off").run(300)
    assert not max(float(w.abs().max()) for w in off.weights()) < 1e6


def test_after_a_rewind_nothing_grows_for_a_while() -> None:
    """The wreck is told with update 10, so that the run goes back before update 11."""
    script = {k: [("lr_factor", 1.0)] for k in range(1, 60)}
    run = loop(script=script, told={10: 1e6}, total_steps=60).run(60)
    (rewind,) = run.decided("rewind")
    asked = run.decided("lr_factor")
    held = [d for d in asked if not d.taken]
    assert rewind.step == 10
    assert [d.step for d in held] == list(range(11, 31))
    assert all("held back" in d.reason for d in held)
    assert run.applied[-1] == PEAK


def test_stop_ends_the_batches() -> None:
    run = loop(script={7: [("stop", 1.0)]}).run()
    assert run.pilot.step == 7


def test_clip_bounds_the_gradient_inside_the_closure() -> None:
    free = loop().run(3)
    run = loop(script={2: [("clip", 0.05)], 4: [("clip", 0.0)]}).run(6)
    assert run.norms[:2] == free.norms[:2]
    assert run.norms[2:4] == pytest.approx([0.05, 0.05], rel=1e-4)
    assert run.norms[4] > 0.05


def test_momentum_and_decay_act_from_the_next_update() -> None:
    """Against the recursion written out."""
    run = loop(script={2: [("momentum", 0.5), ("weight_decay", 0.1)]})
    w = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    buffer, twin = torch.zeros_like(w), iter(BatchLoader(run.loader.tensors, 8, epochs=1, seed=0))
    for k in range(1, 6):
        x, y = next(twin)
        z = x @ w[:5] + w[5]
        g = torch.cat([((z - y)[:, None] * x).mean(0), (z - y).mean()[None]])
        beta, decay = (0.9, 0.0) if k <= 2 else (0.5, 0.1)
        g = g + decay * w
        buffer = g if k == 1 else beta * buffer + g
        w = w - PEAK * buffer
    run.run(5)
    assert torch.allclose(torch.cat([p.flatten() for p in run.weights()]), w, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- SAM, Adam, the batch


def test_a_closed_gate_costs_one_evaluation_an_update() -> None:
    script = {4: [("gate", 0.0)], 8: [("gate", 1.0)]}
    run = loop(lambda p: SAM(sgd(p), rho=0.05), script).run(10)
    assert run.evaluations == [2] * 4 + [1] * 4 + [2] * 2
    assert run.pilot.budget.train_ge == 8 * sum(run.evaluations)
    assert run.pilot.host.expected_evaluations == pytest.approx(1.6)


def test_the_users_own_gate_comes_back() -> None:
    script = {4: [("gate", 0.0)], 8: [("gate", 1.0)]}
    run = loop(lambda p: SAM(sgd(p), rho=0.05, gate=lambda o: run_of["calls"] % 2 == 0), script)
    run_of = {"calls": 0}
    for k in range(1, 13):
        run_of["calls"] = k
        run.run(k)
    assert run.evaluations == [1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 2]


def test_rho_is_that_of_every_group() -> None:
    run = loop(lambda p: SAM(sgd(p), rho=0.1, telemetry_every=1), {2: [("rho", 0.02)]}).run(4)
    assert [row["sam/rho"] for row in run.log.rows] == pytest.approx([0.1, 0.1, 0.02, 0.02])
    assert run.optimizer.param_groups[0]["sam_rho"] == 0.02


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "NAdam", "RAdam"])
@pytest.mark.parametrize("wrapped", [0, 1, 2])
def test_adam_is_known_by_any_of_its_names_below_any_wrapper(kind: str, wrapped: int) -> None:
    """In PyTorch 2.6 AdamW is no kind of Adam; NAdam and RAdam are none anywhere."""

    def make(params: Any) -> Any:
        optimizer: Any = getattr(torch.optim, kind)(params, lr=0.01)
        optimizer = SAM(optimizer) if wrapped else optimizer
        return NegativeCurvature(optimizer) if wrapped == 2 else optimizer

    host = loop(make).pilot.host
    assert host.is_adam
    assert host.two_pass is (wrapped > 0)
    assert (host.read("beta1"), host.read("rho")) == (0.9, 0.05 if wrapped else None)
    assert not loop().pilot.host.is_adam


@pytest.mark.parametrize("adam", [True, False])
def test_the_rate_and_adams_memory_follow_the_batch(adam: bool) -> None:
    """Doubled with a noise scale of one batch: SGD by (1 + 1) / (1 + 1/2), Adam by the root."""
    policy = GrowsOnce(5)
    run = loop((lambda p: torch.optim.Adam(p, lr=0.01)) if adam else sgd, policies=[policy]).run(20)
    assert [len(run.decided(name)) for name in ("batch_size", "lr_factor")] == [1, 1]
    assert run.loader.batch_size == 16
    assert run.applied[4] == pytest.approx(0.01 if adam else PEAK)
    assert run.applied[-1] == pytest.approx(0.01 * math.sqrt(2) if adam else PEAK * 4 / 3)
    if adam:
        assert run.optimizer.param_groups[0]["betas"] == pytest.approx((0.8, 0.998))
    assert max(run.sizes[:5]) == 8
    assert max(run.sizes[5:]) == 16
    assert run.pilot.samples == sum(run.sizes) == run.loader.samples_served


def test_the_schedule_counts_samples_where_the_batch_grows() -> None:
    """A batch that grows at update 5: the progress is that of the samples seen, in the middle of each batch."""
    asked: list[float] = []

    class Noting(Asks):
        def decide(self, history: Any) -> Any:
            asked.append(history.progress)
            return []

    run = loop(policies=[Noting({}), GrowsOnce(5, scale_lr=False)], epochs=2).run()
    assert sum(run.sizes) == run.pilot.samples == 128
    seen = [sum(run.sizes[:k]) for k in range(len(run.sizes))]
    assert asked == pytest.approx([(s + (8 if k < 5 else 16) / 2) / 128 for k, s in enumerate(seen)])


# ---------------------------------------------------------------- the order of hooks


def test_hooks_of_the_users_see_the_final_weights() -> None:
    """Registered before the pilot and after it: both see what the update has become, and the user's own rate."""
    seen: dict[str, list[Any]] = {"before": [], "after": []}

    def noting(name: str) -> Callable[..., None]:
        def hook(optimizer: Any, *_: Any) -> None:
            weights = [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]
            seen[name].append((weights, optimizer.param_groups[0]["lr"]))

        return hook

    def make(params: Any) -> torch.optim.Optimizer:
        optimizer = sgd(params)
        optimizer.register_step_post_hook(noting("before"))
        return optimizer

    run = loop(make, policies=["auto_lr"], total_steps=40)
    run.optimizer.register_step_post_hook(noting("after"))
    for k in range(1, 6):
        run.run(k)
        for weights, lr in (seen["before"][-1], seen["after"][-1]):
            assert_same(weights, run.weights())
            assert lr == PEAK


def test_policies_are_given_the_loss_one_update_later_in_every_form_of_loop() -> None:
    class Noting(Policy):
        name = "noting"
        reads = frozenset({"train/loss"})

        def __init__(self) -> None:
            self.seen: list[tuple[int, int | None, float]] = []

        def decide(self, history: Any) -> list[Proposal]:
            found = history.new("train/loss")
            if found is not None:
                self.seen.append((history.step, history.age("train/loss"), found.value))
            return []

    for form in ("closure", "phases", "scaler"):
        policy = Noting()
        run = loop(policies=[policy], form=form).run(5)
        assert policy.seen == [(k, 1, pytest.approx(run.losses[k - 2])) for k in range(2, 6)]


# ---------------------------------------------------------------- the saddle


class Product(nn.Module):
    """y = W2 W1 x from zero weights: no gradient at all, and a strict saddle on every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(3, 4))
        self.second = nn.Parameter(torch.zeros(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.first.T @ self.second.T


class Leaves(Policy):
    """Asks for an escape after every update, until one is made."""

    name = "leaves"
    reads = frozenset({"curv/ncr"})
    turns = frozenset({"escape"})
    done = False

    def decide(self, history: Any) -> list[Proposal]:
        return [] if self.done else [Proposal("escape", 1.0, "as scripted")]

    def told(self, decision: Any) -> None:
        self.done = self.done or decision.taken


def stuck(budget: float) -> Loop:
    """Steps from the saddle, with a policy that wants to leave it."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=draw)
    tensors = [x, x @ torch.randn(4, 2, generator=draw)]

    def loss_fn(net: nn.Module, batch: Any) -> Tensor:
        return (net(batch[0]) - batch[1]).square().mean()

    return Loop(
        lambda p: torch.optim.SGD(p, lr=0.05), model=Product, tensors=tensors, loss_fn=loss_fn, batch=32, epochs=30,
        policies=[Leaves()], budget=budget,
    ).run()  # fmt: skip


def test_a_saddle_is_left_once_the_look_is_paid_for_and_the_decision_says_why() -> None:
    run = stuck(budget=1.0)
    *before, taken = run.decided("escape")
    assert "no earlier batch can certify it yet" in before[0].reason
    assert all("gradient evaluations and" in d.reason and "are left" in d.reason for d in before[1:])
    assert not any(d.taken for d in before)
    assert taken.taken
    assert "as scripted; strict saddle: moved by" in taken.reason
    assert taken.signals["curv/lambda_min"] < 0
    assert sum(run.losses[-8:]) < 0.5 * sum(run.losses[:8])
    assert run.pilot.budget.spent["curvature"] <= run.pilot.budget.train_ge


def test_an_escape_that_cannot_be_paid_is_not_taken() -> None:
    run = stuck(budget=0.05)
    found = run.decided("escape")
    assert len(found) == run.pilot.step == 240
    assert not any(d.taken for d in found)
    assert not any(p.any() for p in run.model.parameters())
