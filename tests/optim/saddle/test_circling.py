"""Saddles that a two-pass base circles, and the sign that tells: weights that go round on an exact loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optland.optim import ASAM, MSAM, SAM, Every
from optland.optim.saddle import NegativeCurvature, PerturbedGradient, Trigger
from optland.optim.saddle.circling import Circling
from optland.problems import Octopus

Function = Callable[[Tensor], Tensor]


def wells(w: Tensor) -> Tensor:
    """sum(x^4 - x^2): all directions lead off the origin; minima of -d/4."""
    return (w**4 - w**2).sum()


def ridge(w: Tensor) -> Tensor:
    """x^2 - y^2 + y^4: one direction leads off, and SAM swings in the other."""
    return w[0] ** 2 - w[1] ** 2 + w[1] ** 4


def one_of_many(w: Tensor) -> Tensor:
    a = torch.linspace(0.5, 2.0, len(w) - 1, dtype=w.dtype)
    return 0.5 * (a * w[1:] ** 2).sum() - w[0] ** 2 / 2 + w[0] ** 4 / 4


def calls_to_leave(
    f: Function, start: Tensor, make: Callable[[list[nn.Parameter]], Any], most: int, depth: float
) -> tuple[int | None, Any]:
    """Closure calls until the loss is below ``-depth``, and the optimizer."""
    w, made = nn.Parameter(start.clone()), 0
    optimizer = make([w])

    def closure() -> Tensor:
        nonlocal made
        made += 1
        optimizer.zero_grad()
        loss = f(w)
        loss.backward()
        return loss

    while made < most:
        optimizer.step(closure)
        if float(f(w.detach())) < -depth:
            return made, optimizer
    return None, optimizer


def sgd(params: list[nn.Parameter], momentum: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=momentum)


def near(d: int, length: float, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return length * torch.randn(d, generator=draw, dtype=torch.float64)


GRID = [
    pytest.param(f, d, depth, rho, length, marks=[] if (rho, length) in quick else [pytest.mark.slow])
    for f, d, depth, quick in (
        (wells, 2, 0.25, [(0.01, 1e-3)]),
        (wells, 10, 1.25, [(0.1, 1e-6)]),
        (ridge, 2, 0.125, [(0.01, 1e-6)]),
        (one_of_many, 20, 0.125, [(0.1, 1e-3)]),
    )
    for rho in (0.01, 0.1)
    for length in (1e-6, 1e-3)
]


@pytest.mark.parametrize(("f", "d", "depth", "rho", "length"), GRID)
def test_a_saddle_that_sam_circles_is_left_within_four_times_the_calls_of_sgd(
    f: Function, d: int, depth: float, rho: float, length: float
) -> None:
    start = near(d, length)
    plain, _ = calls_to_leave(f, start, sgd, 1000, depth)
    assert plain is not None
    most = 4 * plain
    assert calls_to_leave(f, start, lambda p: SAM(sgd(p), rho=rho), most, depth)[0] is None
    made, optimizer = calls_to_leave(f, start, lambda p: NegativeCurvature(SAM(sgd(p), rho=rho)), most, depth)
    assert made is not None
    assert made <= most
    assert optimizer.events[0].verdict == "strict saddle"


CIRCLING = {
    "SAM over momentum": lambda p: SAM(sgd(p, 0.9), rho=0.01),
    "SAM over Adam": lambda p: SAM(torch.optim.Adam(p, 0.01), rho=0.1),
    "SAM every third step": lambda p: SAM(sgd(p), rho=0.1, gate=Every(3)),
    "ASAM": lambda p: ASAM(sgd(p), rho=0.5, eta=0.5),
}


@pytest.mark.parametrize("name", CIRCLING)
def test_other_bases_that_circle_are_led_off(name: str) -> None:
    start = near(4, 1e-6)
    assert calls_to_leave(ridge, start, CIRCLING[name], 600, 0.1)[0] is None
    made, _ = calls_to_leave(ridge, start, lambda p: NegativeCurvature(CIRCLING[name](p)), 600, 0.1)
    assert made is not None


@pytest.mark.parametrize("wrap", [NegativeCurvature, PerturbedGradient])
def test_the_gradient_that_counts_is_that_of_the_first_pass(wrap: Any) -> None:
    """On the way into a saddle h stays as long as rho times the curvature; g does not."""
    w = nn.Parameter(torch.tensor([1.0, 1e-9], dtype=torch.float64))
    optimizer = wrap(SAM(sgd([w]), rho=0.5), trigger=Trigger(("gradient",), small=0.05))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ridge(w)
        loss.backward()
        return loss

    h = []
    while not optimizer.events and len(h) < 100:
        optimizer.step(closure)
        h.append(float(w.grad.norm()))
    assert optimizer.events
    assert min(h) > 0.05 * max(h)  # which had been the sign's bound


def test_momentum_sam_on_a_ridge_that_it_cannot_see_off() -> None:
    """Along y there is neither gradient nor momentum; it swings in x forever."""
    start = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert calls_to_leave(ridge, start, lambda p: MSAM(sgd(p, 0.5), rho=0.05), 600, 0.1)[0] is None
    made, _ = calls_to_leave(ridge, start, lambda p: NegativeCurvature(MSAM(sgd(p, 0.5), rho=0.05)), 600, 0.1)
    assert made is not None


def told(
    circling: Circling,
    f: Function,
    at: list[Tensor],
    shift: Callable[[int], float] = lambda k: 0.0,
    step: int = 1,
) -> None:
    """First passes at these places, the first of them the anchor, set after that step."""
    anchor = [at[0].clone()]
    circling.begin(step)
    for k, place in enumerate(at):
        w = place.clone().requires_grad_()
        loss = f(w) + shift(k)
        loss.backward()
        circling.see(anchor, [w])
        circling.compare(float(loss.detach()))


ROUND = [torch.tensor([0.1 * (-1) ** k, 0.3], dtype=torch.float64) for k in range(12)]
DRIFT = [torch.tensor([0.1, 0.3 + 0.01 * k], dtype=torch.float64) for k in range(12)]


def test_going_round_is_told_from_a_drift_and_from_a_jittering_loss() -> None:
    square: Function = lambda w: w.square().sum()  # noqa: E731
    goes, drifts, jitters = Circling(), Circling(), Circling()
    told(goes, square, ROUND)
    assert goes.exact
    assert goes.since == 1
    assert goes.holds(13)
    late = Circling()
    told(late, square, ROUND, step=200)
    assert late.exact
    assert not late.holds(212)  # twelve steps are too few of two hundred
    told(drifts, square, DRIFT)
    assert drifts.exact
    assert not drifts.holds(13)
    draw = torch.Generator().manual_seed(0)
    told(jitters, square, ROUND, lambda k: 0.05 * float(torch.randn((), generator=draw)))
    assert not jitters.exact
    assert not jitters.holds(13)
    assert jitters.slope is None  # and the copy is free again


def test_a_falling_loss_is_no_round() -> None:
    """A swing in a sharp direction over a slow way down, as at the edge of stability."""
    falls = Circling()
    told(falls, lambda w: w[0] ** 2 - w[1], [torch.stack([0.3 * (w[0] ** 1), 0.01 * k * torch.ones(()).double()])
                                          for k, w in enumerate(ROUND)])  # fmt: skip
    assert falls.exact
    assert not falls.holds(13)


def test_minibatches_get_no_look_from_going_round() -> None:
    """SGD in its noise ball goes nowhere; that is no sign, and costs nothing."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(400, 8, 5, generator=draw, dtype=torch.float64)
    w = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer = NegativeCurvature(SAM(sgd([w], 0.9), rho=0.05), trigger=Trigger(("circling",)))
    for batch in centres:

        def closure(batch: Tensor = batch) -> Tensor:
            optimizer.zero_grad()
            loss = 0.5 * (w - batch).square().sum(1).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    assert optimizer.events == []
    assert optimizer.closure_calls == 0


def test_a_minimum_that_sam_circles_costs_what_the_allowance_says() -> None:
    _, optimizer = calls_to_leave(
        lambda w: w[0] ** 2 + 3 * w[1] ** 2,
        near(2, 0.1),
        lambda p: NegativeCurvature(SAM(sgd(p), rho=0.05)),
        1000,
        1.0,
    )
    assert {e.kind for e in optimizer.events} == {"probe"}
    assert {e.verdict for e in optimizer.events} == {"minimum up to tau"}
    assert optimizer.closure_calls <= 100 + 0.02 * 1000


def test_the_octopus_is_swum_by_sam_too() -> None:
    f = Octopus(4)
    made, _ = calls_to_leave(
        f,
        torch.full((4,), 1e-3, dtype=torch.float64),
        lambda p: NegativeCurvature(SAM(torch.optim.SGD(p, 0.1), rho=0.05)),
        2000,
        -f.minimum - 1.0,
    )
    assert made is not None
