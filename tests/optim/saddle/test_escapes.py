"""Every wrapper and solver leaves every saddle, says what it found, and stays within its calls."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiers import slow
from torch import Tensor, nn

from optland.objective import Objective
from optland.optim import SAM
from optland.optim.saddle import (
    CubicNewton,
    NegativeCurvature,
    NoisyGradient,
    PerturbedGradient,
    SaddleFreeNewton,
    Trigger,
    TrustRegionNewton,
)
from optland.optim.saddle.evaluations import Evaluations
from optland.optim.saddle.models import cubic_step, model_change, saddle_free_step, trust_region_step
from optland.problems import Octopus

Function = Callable[[Tensor], Tensor]


def double_well(w: Tensor) -> Tensor:
    """x^2/2 - y^2/2 + y^4/4: saddle at 0, minima of -1/4."""
    return w[0] ** 2 / 2 - w[1] ** 2 / 2 + w[1] ** 4 / 4


def two_factors(w: Tensor) -> Tensor:
    """(xy - 1)^2 / 2: saddle at 0 with value 1/2, minimum 0."""
    return (w[0] * w[1] - 1) ** 2 / 2


def monkey(w: Tensor) -> Tensor:
    """x^3 - 3 x y^2 + r^4/10: degenerate at 0, minimum -105.47."""
    return w[0] ** 3 - 3 * w[0] * w[1] ** 2 + 0.1 * (w[0] ** 2 + w[1] ** 2) ** 2


def many(d: int) -> Function:
    """A strict saddle in d dimensions with one negative direction, bounded below by -1/4."""
    a = torch.linspace(0.5, 2.0, d - 1, dtype=torch.float64)
    return lambda w: 0.5 * (a * w[1:] ** 2).sum() - w[0] ** 2 / 2 + w[0] ** 4 / 4


STARTS: dict[str, tuple[Function, list[float], float]] = {
    "stable ridge": (double_well, [1.0, 0.0], -0.2),
    "near the ridge": (double_well, [1.0, 1e-6], -0.2),
    "exact saddle": (double_well, [0.0, 0.0], -0.2),
    "two factors": (two_factors, [0.0, 0.0], 0.1),
    "two factors, on the ridge": (two_factors, [1e-4, -1e-4], 0.1),
    "monkey": (monkey, [1e-3, 1e-3], -50.0),
}

Maker = Callable[[list[nn.Parameter], int], torch.optim.Optimizer]


def sgd(params: list[nn.Parameter], lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr)


def gentle(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The valleys of the monkey saddle have a curvature of 60, beyond what SGD endures at a rate of 0.1."""
    return torch.optim.SGD(params, 0.01)


CURVED: dict[str, Maker] = {
    "negative curvature": lambda p, s: NegativeCurvature(gentle(p), seed=s),
    "negative curvature over SAM": lambda p, s: NegativeCurvature(SAM(gentle(p), rho=1e-3), seed=s),
    "negative curvature over Adam": lambda p, s: NegativeCurvature(torch.optim.Adam(p, 0.05), seed=s),
    "saddle-free": lambda p, s: SaddleFreeNewton(p, seed=s),
    "cubic": lambda p, s: CubicNewton(p, seed=s),
    "trust region": lambda p, s: TrustRegionNewton(p, seed=s),
}
SOLVERS = ("saddle-free", "cubic", "trust region")
KICKED: dict[str, Maker] = {
    "kick": lambda p, s: PerturbedGradient(sgd(p), seed=s),
    "noise": lambda p, s: NoisyGradient(sgd(p), radius=0.01, seed=s),
}


class Training:
    """Steps from a start, which may go on after a look at where they are; counts its steps and closure calls."""

    def __init__(self, f: Function, start: list[float], make: Maker, seed: int = 0) -> None:
        self.f, self.w = f, nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.optimizer: Any = make([self.w], seed)
        self.steps = self.calls = 0

    def closure(self) -> Tensor:
        self.calls += 1
        self.optimizer.zero_grad()
        loss = self.f(self.w)
        loss.backward()
        return loss

    def loss(self) -> float:
        with torch.no_grad():
            return self.f(self.w).item()

    def go(self, steps: int, until: float = -math.inf) -> float:
        """The loss after ``steps`` steps in all, or once it has fallen below ``until``."""
        while self.steps < steps:
            self.optimizer.step(self.closure)
            self.steps += 1
            if until > -math.inf and self.loss() < until:
                break
        return self.loss()


def train(
    f: Function, start: list[float], make: Maker, steps: int, seed: int = 0, until: float = -math.inf
) -> tuple[float, Any, int]:
    """Loss after at most ``steps`` steps, the optimizer, and all closure calls until the loss fell below ``until``."""
    run = Training(f, start, make, seed)
    return run.go(steps, until), run.optimizer, run.calls


# Every start by one wrapper, and every method at one saddle; all pairs in the slow tier.
QUICK = [("negative curvature", start) for start in STARTS] + [(name, "exact saddle") for name in CURVED][1:]


@pytest.mark.parametrize(
    ("name", "start"),
    [*QUICK, *slow(*((n, s) for n in CURVED for s in STARTS if (n, s) not in QUICK))],
)
def test_negative_curvature_leaves_every_saddle_within_a_hundred_calls(name: str, start: str) -> None:
    f, at, below = STARTS[start]
    saddle_value = 0.5 if f is two_factors else 0.0
    run = Training(f, at, CURVED[name])
    optimizer = run.optimizer
    assert run.go(400, until=saddle_value - 1e-3) < saddle_value - 1e-3
    # What a look and its escape cost; before it SGD has to come to rest, which is its own affair.
    assert (optimizer.closure_calls if isinstance(optimizer, NegativeCurvature) else run.calls) <= 100
    assert run.go(500 if isinstance(optimizer, NegativeCurvature) else 30) < below
    assert all(e.verdict != "minimum up to tau" or e.loss < saddle_value - 1e-3 for e in optimizer.events)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("start", ["exact saddle", "two factors"])
@pytest.mark.parametrize("name", KICKED)
def test_kicks_leave_strict_saddles_and_claim_nothing(name: str, start: str, seed: int) -> None:
    f, at, below = STARTS[start]
    loss, optimizer, _ = train(f, at, KICKED[name], 200, seed)
    assert loss < below
    assert optimizer.verdict == "unknown"


@pytest.mark.parametrize("d", [2, 30, 1000])
@pytest.mark.parametrize("name", CURVED)
def test_the_dimension_costs_little(name: str, d: int) -> None:
    loss, optimizer, calls = train(many(d), [0.0] * d, CURVED[name], 20, until=-1e-3)
    assert loss < -1e-3
    assert calls <= 100
    assert "strict saddle" in {e.verdict for e in optimizer.events}


@pytest.mark.parametrize(("d", "median"), [(2, 31), (100, 40), (10_000, 54)])
def test_a_kick_takes_a_logarithm_of_the_dimension(d: int, median: int) -> None:
    """f = x^2 - y^2 and more x: from a ball of 0.01, rate 1.2 a step, steps to |y| = 1 near the known medians."""
    steps = []
    for seed in range(15):
        w = nn.Parameter(torch.zeros(d, dtype=torch.float64))
        optimizer = PerturbedGradient(sgd([w]), radius=0.01, seed=seed)

        def closure(w: nn.Parameter = w, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = (w[1:] ** 2).sum() - w[0] ** 2
            loss.backward()
            return loss

        count = 0
        while abs(float(w.detach()[0])) < 1 and count < 200:
            optimizer.step(closure)
            count += 1
        steps.append(count)
    assert sorted(steps)[7] == pytest.approx(
        median + 1, abs=4
    )  # one step more to see that the gradient is zero


@pytest.mark.parametrize(
    "name",
    [
        *["negative curvature", "cubic"],
        *slow("negative curvature over SAM", "negative curvature over Adam", "saddle-free", "trust region"),
    ],
)
def test_degenerate_points_are_never_called_minima_and_are_left_by_a_kick(name: str) -> None:
    """The three-factor net (abc - 1)^2 / 2 and the monkey saddle have a Hessian of zero at the origin."""
    three: Function = lambda w: (w[0] * w[1] * w[2] - 1) ** 2 / 2  # noqa: E731
    for f, at, below in ((three, [0.0] * 3, 0.4), (monkey, [0.0, 0.0], -50.0)):
        loss, optimizer, _ = train(f, at, CURVED[name], 30 if name in SOLVERS else 400)
        first = optimizer.events[0]
        assert first.verdict == "degenerate"
        assert first.kind == "kick"
        assert loss < below


def test_a_minimum_is_a_minimum_and_costs_little() -> None:
    f: Function = lambda w: (w**2).sum()  # noqa: E731
    loss, optimizer, _ = train(f, [0.0, 0.0, 0.0], CURVED["negative curvature"], 300)
    assert loss == 0.0
    assert optimizer.verdict == "minimum up to tau"
    assert {e.kind for e in optimizer.events} == {"probe"}
    assert optimizer.closure_calls <= 110
    flat: Function = lambda w: (w[0] ** 2) + 0.0 * w[1]  # noqa: E731
    _, optimizer, _ = train(flat, [0.0, 0.0], CURVED["cubic"], 3)
    assert optimizer.verdict == "degenerate"


@pytest.mark.parametrize("name", ["negative curvature", "cubic"])
def test_a_budget_that_is_too_small_to_tell_says_so(name: str) -> None:
    """d = 500, ten products on diag(-1, 1 ... 499): nothing negative is seen, and nothing is claimed."""
    h = torch.cat([torch.tensor([-1.0]), torch.arange(1.0, 500.0)]).double()
    makers: dict[str, Maker] = {
        "negative curvature": lambda p, s: NegativeCurvature(sgd(p, 1e-4), max_matvecs=10, seed=s),
        "cubic": lambda p, s: CubicNewton(p, max_matvecs=10, seed=s),
    }
    _, optimizer, _ = train(lambda w: 0.5 * (h * w**2).sum(), [0.0] * 500, makers[name], 3)
    assert optimizer.verdict == "unknown"


def test_training_is_the_bases_own_until_a_sign_shows() -> None:
    def run(wrap: bool) -> tuple[Tensor, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        optimizer: Any = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        if wrap:
            optimizer = NegativeCurvature(optimizer, model=model, trigger=Trigger(("gradient",), small=1e-6))
        x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
        for i in range(40):
            batch = slice(8 * (i % 8), 8 * (i % 8) + 8)

            def closure(batch: slice = batch) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
                loss.backward()
                return loss

            optimizer.step(closure)
        state = torch.cat([v.flatten().double() for v in model.state_dict().values()])
        return torch.cat([state, torch.rand(3).double()]), optimizer

    plain, _ = run(False)
    wrapped, optimizer = run(True)
    assert torch.equal(plain, wrapped)
    assert optimizer.events == []


def test_a_look_leaves_random_numbers_and_buffers_to_training() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    x = torch.randn(16, 3)

    def run(looks: bool) -> tuple[Tensor, Tensor, int]:
        torch.manual_seed(1)
        twin = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        twin.load_state_dict(model.state_dict())
        trigger = Trigger(("every",), every=2) if looks else Trigger(())
        optimizer = NegativeCurvature(
            torch.optim.SGD(twin.parameters(), 0.0), model=twin, trigger=trigger, max_matvecs=2
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = twin(x).square().mean()
            loss.backward()
            return loss

        for _ in range(6):
            optimizer.step(closure)
        moved = sum(e.kind in ("escape", "kick") for e in optimizer.events)
        assert not looks or optimizer.events
        return twin[1].running_mean.clone(), torch.rand(4), moved

    plain, plain_random, _ = run(False)
    looked, random, moved = run(True)
    assert torch.equal(random, plain_random)
    if not moved:
        assert torch.equal(looked, plain)


@pytest.mark.parametrize("name", [*CURVED, *KICKED])
def test_a_run_resumes_bit_for_bit(name: str) -> None:
    make = {**CURVED, **KICKED}[name]
    more = 10 if name in SOLVERS else 40  # a wrapper waits between its looks, a solver looks in every step

    def fresh() -> tuple[nn.Parameter, Any, Callable[[], Tensor]]:
        w = nn.Parameter(torch.tensor([0.3, 0.0, 0.0], dtype=torch.float64))
        optimizer = make([w], 5)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = double_well(w) + w[2] ** 2
            loss.backward()
            return loss

        return w, optimizer, closure

    w, optimizer, closure = fresh()
    for _ in range(12):
        optimizer.step(closure)
    saved, at = copy.deepcopy(optimizer.state_dict()), w.detach().clone()
    for _ in range(more):
        optimizer.step(closure)
    other, resumed, again = fresh()
    resumed.load_state_dict(saved)
    with torch.no_grad():
        other.copy_(at)
    for _ in range(more):
        resumed.step(again)
    assert torch.equal(other, w)
    assert resumed.verdict == optimizer.verdict
    # As texts, in which a number has all its digits and nan is nan.
    assert repr(getattr(resumed, "events", [])) == repr(getattr(optimizer, "events", []))


def test_groups_frozen_parameters_and_schedulers() -> None:
    a = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    b = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    frozen = nn.Parameter(torch.ones(1, dtype=torch.float64), requires_grad=False)
    base = torch.optim.SGD([{"params": [a, frozen]}, {"params": [b], "lr": 0.2}], lr=0.1)
    optimizer = NegativeCurvature(base)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (a**2 - b**2 + b**4).sum()
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
        scheduler.step()
    assert closure().item() == pytest.approx(-0.25, abs=1e-2)
    assert float(frozen) == 1.0
    assert [g["lr"] for g in base.param_groups] == pytest.approx([0.025, 0.05])


def test_half_precision_weights_escape() -> None:
    w = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    optimizer = NegativeCurvature(torch.optim.SGD([w], lr=0.1))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = double_well(w.float())
        loss.backward()
        return loss

    for _ in range(60):
        optimizer.step(closure)
    assert closure().item() < -0.2


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda p: NegativeCurvature(sgd(p), max_matvecs=1), ValueError, "max_matvecs=1"),
        (lambda p: NegativeCurvature(sgd(p), radius=0.0), ValueError, "radius 0.0"),
        (lambda p: PerturbedGradient(sgd(p), radius=-1.0), ValueError, "radius -1.0"),
        (lambda p: PerturbedGradient(sgd(p), wait=0), ValueError, "wait 0"),
        (lambda p: NoisyGradient(SAM(sgd(p))), TypeError, "takes two"),
        (lambda p: CubicNewton(p, sigma=0.0), ValueError, "sigma 0.0"),
        (lambda p: TrustRegionNewton(p, trust=-1.0), ValueError, "trust -1.0"),
        (lambda p: SaddleFreeNewton(p, damping=0.0), ValueError, "damping 0.0"),
        (lambda p: SaddleFreeNewton(p, lr=2.0), ValueError, "lr 2.0"),
        (lambda p: NegativeCurvature(sgd(p), trigger=Trigger(("loss",))), ValueError, "'loss' is not known"),
        (lambda p: NegativeCurvature(sgd(p), trigger=Trigger(("every",))), ValueError, "every=None"),
        (lambda p: NegativeCurvature(torch.optim.SGD), TypeError, "optimizer instance"),
    ],
)
def test_bad_values_are_refused(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words.replace(".", r"\.")):
        make([nn.Parameter(torch.zeros(2))])


@pytest.mark.parametrize("name", [*CURVED, *KICKED])
def test_a_step_without_a_closure_says_how_to_write_one(name: str) -> None:
    optimizer = {**CURVED, **KICKED}[name]([nn.Parameter(torch.zeros(2))], 0)
    with pytest.raises(TypeError, match="needs a closure"):
        optimizer.step()


def test_saddle_free_newton_jumps_to_where_the_formula_says() -> None:
    """x^2 - y^2 at (1, 1/2): Newton goes to (0, 0), |H|^-1 to (0, 1); damping takes y to 1 + lam / (lam + delta)."""
    values = torch.tensor([-2.0, 2.0], dtype=torch.float64)
    slope = torch.tensor([-1.0, 2.0], dtype=torch.float64)  # of y, x at (1, 1/2)
    assert (torch.tensor([0.5, 1.0]).double() + saddle_free_step(values, slope, 0.0)).tolist() == [1.0, 0.0]
    damped = 0.5 + float(saddle_free_step(values, slope, 2.0)[0])
    assert damped / 0.5 == pytest.approx(1 + 2 / (2 + 2))


def test_the_cubic_model_at_zero_gradient() -> None:
    """Curvature -2 and M = 6 (sigma = 3): length 2a/M = 2/3, decrease (2/3) a^3 / M^2 = 0.14815."""
    values, slope = torch.tensor([-2.0, 1.0]).double(), torch.zeros(2).double()
    s = cubic_step(values, slope, 3.0)
    assert float(s.norm()) == pytest.approx(2 / 3)
    assert model_change(values, slope, s, 3.0) == pytest.approx(-2 / 3 * 8 / 36)


@pytest.mark.parametrize("seed", range(5))
def test_model_steps_are_global_minimisers(seed: int) -> None:
    """No point of a fine random search is lower than the cubic or the trust-region step, hard case included."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.sort(torch.randn(3, generator=generator, dtype=torch.float64)).values
    slope = torch.randn(3, generator=generator, dtype=torch.float64)
    if seed % 2:
        slope[0] = 0.0
    points = 3.0 * torch.randn(40_000, 3, generator=generator, dtype=torch.float64)
    quadratic = points @ slope + 0.5 * (points**2 * values).sum(1)
    cubic = quadratic + 1.5 / 3 * points.norm(dim=1) ** 3
    s = cubic_step(values, slope, 1.5)
    assert model_change(values, slope, s, 1.5) <= float(cubic.min()) + 1e-9
    inside = points.norm(dim=1) <= 1.3
    t = trust_region_step(values, slope, 1.3)
    assert float(t.norm()) <= 1.3 + 1e-9
    assert model_change(values, slope, t) <= float(quadratic[inside].min()) + 1e-9


def test_a_first_trust_region_step_along_negative_curvature_has_the_length_of_the_radius() -> None:
    values, slope = torch.tensor([-1.0, 2.0]).double(), torch.tensor([0.1, 0.0]).double()
    assert float(trust_region_step(values, slope, 0.7).norm()) == pytest.approx(0.7)


def test_products_by_differences_are_exact_on_quadratics() -> None:
    A = torch.tensor([[2.0, 1.0], [1.0, -3.0]], dtype=torch.float64)
    w = nn.Parameter(torch.tensor([0.4, -1.0], dtype=torch.float64))

    def closure() -> Tensor:
        w.grad = None
        loss = 0.5 * w @ A @ w
        loss.backward()
        return loss

    seen = Evaluations(closure, [w])
    v = torch.tensor([0.3, 2.0], dtype=torch.float64)
    torch.testing.assert_close(seen.product([v])[0], A @ v, rtol=1e-9, atol=1e-9)
    assert seen.calls == 2
    assert seen.doubt([v], float(v @ A @ v)) < 1e-8


def test_looks_with_an_objective_need_a_certificate_from_other_batches() -> None:
    """A saddle that is there on every batch is left; one that noise makes on the probe batches alone is not."""

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def run(mean: float, seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        model = Point()

        def loss_fn(m: nn.Module, b: Tensor) -> Tensor:
            x, y = m.w
            return (0.5 * b * y**2 + 0.5 * x**2 + 0.25 * y**4).mean()

        def batches() -> Objective:
            noise = torch.randn(8, 16, generator=generator, dtype=torch.float64)
            return Objective(model, loss_fn, list(mean + noise))

        optimizer = NegativeCurvature(
            sgd(list(model.parameters())), probe=batches(), check=batches(), seed=seed
        )
        batch = mean + torch.randn(16, generator=generator, dtype=torch.float64)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            return loss

        for _ in range(4):
            optimizer.step(closure)
        return [e.kind for e in optimizer.events]

    assert all("escape" in run(-0.7, s) for s in range(5))
    assert all("escape" not in run(0.1, s) for s in range(20))


def test_jitter_and_healthy_training_wait_for_the_share_and_rest_does_not() -> None:
    """The allowance is for a smooth loss or a zero gradient; on a jittering one there is the share alone."""
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    w.grad = torch.ones_like(w)
    draw = torch.Generator().manual_seed(0)
    smooth, noisy, zero = Trigger(), Trigger(), Trigger()
    for k in range(400):
        smooth.observe([w], 0.96**k, 1)
        noisy.observe([w], float(torch.rand((), generator=draw)), 1)
        assert not noisy.affords(9)
    assert smooth.affords(100)
    smooth.looked(1000, moved=True)  # an escape has paid for itself
    assert smooth.affords(100)
    assert noisy.affords(8)
    noisy.looked(8, moved=True)  # but not on minibatches, where many small ones would outweigh the training
    assert not noisy.affords(1)
    w.grad = torch.zeros_like(w)
    zero.observe([w], 1.0, 1)
    assert zero.affords(100)


@pytest.mark.parametrize("name", ["kick", "negative curvature"])
def test_the_octopus_costs_the_same_at_every_saddle(name: str) -> None:
    def calls(d: int) -> int:
        f = Octopus(d)
        make = {**CURVED, **KICKED}[name]
        make = (lambda p, s: NegativeCurvature(sgd(p), seed=s)) if name == "negative curvature" else make
        loss, _, made = train(f, [0.0] * d, make, 3000, until=f.minimum + 0.1)
        assert loss < f.minimum + 0.1
        return made

    few, more = calls(4), calls(12)
    assert more < 4 * few
