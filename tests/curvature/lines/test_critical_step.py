"""The critical step against its closed form on quadratics, and its behaviour on every other kind of line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from optland import vectors
from optland.curvature import CriticalStep, critical_step
from optland.objective import Objective
from optland.problems import function_objective, quadratic, with_spectrum

D = torch.float64
A = with_spectrum(torch.logspace(-1, 1, 20).tolist())


def bowl() -> tuple[Objective, list[Tensor], float]:
    """The quadratic of dimension 20 and condition 100, the step -g, and its t_c = 2 g'g / g'Hg."""
    L = quadratic(A)
    g = L.gradient()
    t_c = 2 * float(vectors.dot(g, g)) / float(g[0] @ A @ g[0])
    return L, vectors.scaled(-1.0, g), t_c


def along(loss: Callable[[Tensor], Tensor], **options: Any) -> CriticalStep:
    """The search on a function of t itself: one weight at 0, direction 1."""
    L = function_objective(lambda w: loss(w[0]), torch.zeros(1, dtype=D))
    return critical_step(L, [torch.ones(1, dtype=D)], **options)


@pytest.mark.parametrize("factor", [0.05, 0.1, 0.3, 0.5, 0.9, 1.0, 1.1, 2.0, 4.0, 10.0])
def test_quadratic_is_enclosed_within_six_forwards(factor: float) -> None:
    L, d, t_c = bowl()
    found = critical_step(L, d, initial_step=factor * t_c)
    lo, hi = found.bracket
    assert found.status == "resolved"
    assert found.step.converged
    assert lo <= t_c * (1 + 1e-9)
    assert t_c < hi * (1 + 1e-9)
    assert abs(found.step.value - t_c) <= found.step.error <= 0.1 * found.step.value
    assert found.num_forwards <= 6


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0])
def test_four_forwards_locate_a_quadratic_within_a_tenth(factor: float) -> None:
    L, d, t_c = bowl()
    found = critical_step(L, d, initial_step=factor * t_c, max_forwards=4)
    assert found.step.value == pytest.approx(t_c, rel=0.1)
    assert found.num_forwards == 4


def test_three_forwards_locate_a_quadratic_from_a_bracketing_start() -> None:
    L, d, t_c = bowl()
    found = critical_step(L, d, initial_step=0.7 * t_c, max_forwards=3)
    assert found.step.value == pytest.approx(t_c, rel=1e-9)  # the parabola through three points is the loss
    assert not found.step.converged  # and yet its bracket, which is all that is sure, is wide
    assert "NOT CONVERGED" in str(found)


def test_loss_is_equal_at_both_ends_of_the_critical_step() -> None:
    L, d, _ = bowl()
    found = critical_step(L, d, rtol=1e-9, max_forwards=30)
    assert found.step.converged
    assert L.value(L.displaced(d, found.step.value)) == pytest.approx(L.value(), rel=1e-8)


def test_along_the_gradient_it_is_a_rayleigh_quotient_and_along_the_top_the_edge() -> None:
    L, d, _ = bowl()
    assert critical_step(L, d).step.value >= 2 / 10.0
    top = torch.linalg.eigh(A).eigenvectors[:, -1]
    point = quadratic(A, top)
    found = critical_step(point, [-point.gradient()[0]], initial_step=0.1, rtol=1e-6, max_forwards=20)
    assert found.step.value == pytest.approx(2 / 10.0, rel=1e-5)


def test_the_realised_update_is_probed_from_the_weights_before_the_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    L = Objective(model, lambda m, x: m(x).square().mean(), [torch.randn(16, 3)])
    before = vectors.clone(L.params)
    expected = critical_step(L, vectors.scaled(-0.3, L.gradient()))
    for p, g in zip(L.params, L.gradient(), strict=True):
        p.grad = g
    torch.optim.SGD(model.parameters(), lr=0.3).step()
    after = vectors.clone(L.params)
    found = critical_step(L, vectors.subtract(after, before), origin=before)
    assert found.step.value == pytest.approx(expected.step.value, rel=1e-3)
    assert all(torch.equal(p, w) for p, w in zip(L.params, after, strict=True))


# --- lines without a crossing ----------------------------------------------------------------------------------------


def test_uphill_is_not_descent() -> None:
    found = along(lambda t: t)
    assert found.status == "not_descent"
    assert found.bracket == (0.0, min(t for t, _ in found.losses[1:]))
    assert not found.step.converged
    assert "lowered" in found.step.note


def test_downhill_forever_is_unbounded() -> None:
    found = along(lambda t: -t)
    assert found.status == "unbounded"
    assert found.step.value == found.bracket[0] == max(t for t, _ in found.losses)
    assert math.isnan(found.step.error)
    assert not found.step.converged
    assert "lower bound" in found.step.note


def test_plateau_is_flat() -> None:
    found = along(lambda t: 0 * t + 1.0)
    assert found.status == "flat"
    assert math.isnan(found.step.value)


def test_plateau_before_a_cliff_is_not_descent_and_is_enclosed() -> None:
    found = along(lambda t: (t - 5).clamp(min=0) + 1.0)
    assert found.status == "not_descent"
    assert found.bracket[0] <= 5.0 < found.bracket[1]
    assert found.num_forwards == 4  # a second level trial settles it


def test_differences_of_rounding_are_flat() -> None:
    L = function_objective(lambda w: 1.0 + 1e-8 * w.sum(), torch.zeros(1))  # float32
    assert critical_step(L, [torch.ones(1)], max_forwards=3).status == "flat"
    assert along(lambda t: 1.0 - 1e-8 * t).status == "unbounded"  # float64 resolves the same slope


def test_zero_direction_costs_one_forward() -> None:
    L = quadratic(torch.eye(2, dtype=D))
    found = critical_step(L, [torch.zeros(2, dtype=D)])
    assert (found.status, found.num_forwards) == ("flat", 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_base_stops_at_once(value: float) -> None:
    found = along(lambda t: t + value)
    assert (found.status, found.num_forwards) == ("nonfinite", 1)
    assert math.isnan(found.step.value)


def test_nonfinite_direction_and_nonfinite_everywhere_but_the_origin() -> None:
    found = along(lambda t: torch.where(t == 0, 1.0, torch.nan))
    assert found.status == "nonfinite"
    for bad in (math.nan, math.inf):
        broken = critical_step(quadratic(torch.eye(1, dtype=D)), [torch.full((1,), bad, dtype=D)])
        assert (broken.status, broken.num_forwards) == ("nonfinite", 0)


def test_overflow_beyond_the_minimum_counts_as_a_rise() -> None:
    found = along(lambda t: torch.where(t < 3, (t - 2).square(), torch.nan))
    assert found.status == "resolved"
    assert found.bracket[0] < 3.0 <= found.bracket[1]


# --- properties ------------------------------------------------------------------------------------------------------

SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "quadratic": lambda t: t * t - 2 * t,
    "exponential": lambda t: torch.exp(t) - 3 * t,
    "quartic": lambda t: t**4 - t,
    "kink": lambda t: (t - 1).abs(),
    "barrier": lambda t: -torch.log(3 - t) - 2 * t,
    "cubic dip": lambda t: t * (t - 1) * (t - 4),
    "wave": lambda t: -torch.sin(3 * t) + 0.1 * t * t,
    "rising": lambda t: torch.exp(t),
}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    log_start=st.floats(-6, 6),
    budget=st.integers(2, 12),
    rtol=st.sampled_from([0.01, 0.1, 0.5]),
)
def test_the_bracket_always_holds_what_it_says(
    shape: str, log_start: float, budget: int, rtol: float
) -> None:
    found = along(SHAPES[shape], initial_step=math.exp(log_start), max_forwards=budget, rtol=rtol)
    tried = dict(found.losses)
    base, (lo, hi) = tried[0.0], found.bracket
    assert len(found.losses) == found.num_forwards <= budget
    assert found.cost_ge == pytest.approx(found.num_forwards / 3)
    assert lo == 0.0 or tried[lo] <= base + 1e-12
    assert hi == math.inf or not tried[hi] <= base
    if found.status == "resolved":
        assert 0 < lo <= found.step.value <= hi
        assert found.step.error == pytest.approx(max(found.step.value - lo, hi - found.step.value))
        assert found.step.converged == (found.step.error <= rtol * found.step.value)


@pytest.mark.parametrize(
    ("shape", "root"), [("exponential", 1.9038), ("quartic", 1.0), ("kink", 2.0), ("quadratic", 2.0)]
)
@pytest.mark.parametrize("start", [0.2, 1.0, 5.0])
def test_lines_that_are_not_quadratic_are_enclosed_too(shape: str, root: float, start: float) -> None:
    found = along(SHAPES[shape], initial_step=start, max_forwards=12)
    assert found.step.converged
    assert abs(found.step.value - root) <= found.step.error + 1e-3


@pytest.mark.parametrize("wall", [lambda t: t**40 - t, lambda t: 1e-12 * torch.exp(30 * t) - t])
def test_a_steep_wall_does_not_stall_the_search(wall: Callable[[Tensor], Tensor]) -> None:
    """Secants through a point high on the wall hardly move; without bisection thirty forwards are not enough."""
    found = along(wall, initial_step=0.1, max_forwards=12)
    assert found.step.converged
    assert abs(found.step.value - (1.0 if wall(torch.tensor(1.0)) == 0 else 0.918)) <= found.step.error


def test_a_known_base_loss_saves_one_forward() -> None:
    L, d, _ = bowl()
    full = critical_step(L, d)
    spared = critical_step(L, d, base_loss=L.value())
    assert spared.num_forwards == full.num_forwards - 1
    assert spared.step.value == full.step.value
    assert spared.losses == full.losses


def test_cost_is_declared() -> None:
    L, d, _ = bowl()
    before = L.cost_ge
    found = critical_step(L, d, initial_step=1e-6, max_forwards=5)
    assert found.cost_ge == L.cost_ge - before == critical_step.cost(L, 5)
    assert found.step.cost_ge == found.cost_ge


def test_wrong_usage_names_the_fix() -> None:
    L, d, _ = bowl()
    for options, message in [
        ({"initial_step": 0.0}, "initial_step=0.0 must be positive"),
        ({"initial_step": math.inf}, "must be positive"),
        ({"rtol": 0.0}, "rtol=0.0 must be positive"),
        ({"max_forwards": 1}, "at least 2, or give base_loss"),
        ({"origin": [torch.zeros(3)]}, "origin has other shapes"),
    ]:
        with pytest.raises(ValueError, match=message):
            critical_step(L, d, **options)
    with pytest.raises(ValueError, match="direction has other shapes"):
        critical_step(L, [torch.zeros(3)])
