"""Ceilings against closed forms on noisy quadratics, and the critical batch from two formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from optland.curvature.lines.ceiling import ceiling, ceiling_from_steps
from optland.curvature.lines.critical_step import critical_step
from optland.curvature.noise.noise_scale import noise_scale
from optland.objective import Objective
from optland.problems.points import Point

D = torch.float64
A = torch.tensor([4.0, 2.0, 1.0], dtype=D)
START = torch.tensor([1.0, -2.0, 3.0], dtype=D)
NOISE = torch.tensor([2.0, 1.0, 3.0], dtype=D)  # standard deviations of a sample's gradient

# Loss w'Aw / 2 + xi'w with xi ~ N(0, diag NOISE^2): G = A w, H = A, Sigma = diag NOISE^2.
G = A * START
GRAD_SQ, CURVATURE = float(G @ G), float(G @ (A * G))
TRACE, TRACE_H = float(NOISE.square().sum()), float((A * NOISE.square()).sum())


def noisy(samples: int, generator: torch.Generator, size: int | None = None) -> Objective:
    def loss(model: nn.Module, xi: Tensor) -> Tensor:
        w = model()
        return 0.5 * (A * w.square()).sum() + (xi @ w).mean()

    xi = NOISE * torch.randn(samples, 3, generator=generator, dtype=D)
    return Objective(Point(START), loss, list(xi.split(size or samples)))


def test_steps_are_those_of_the_quadratic() -> None:
    generator = torch.Generator().manual_seed(0)
    own, fresh = noisy(8, generator), noisy(400, generator, size=40)
    u = -0.01 * own.gradient()[0]
    found = ceiling(own, [u], fresh)
    curvature = float(u @ (A * u))
    assert found.own.value == pytest.approx(-2 * float(own.gradient()[0] @ u) / curvature)
    level = -2 * float(fresh.gradient()[0] @ u) / curvature
    assert found.fresh.value == pytest.approx(level)
    assert found.best.value == pytest.approx(level / 2)
    assert found.critical_batch.value == pytest.approx(8 * (found.own.value / level - 1))
    assert found.resolved
    assert found.best.error == pytest.approx(found.fresh.error / 2)
    # Slopes of the fresh batches spread by u'Sigma u / 40, and the curvature not at all.
    spread = math.sqrt(float((u * NOISE).square().sum()) / 40 / 10)
    assert 0.4 < found.fresh.error / (2 * spread / curvature) < 2.0


def test_the_critical_batch_from_two_formulas() -> None:
    """Own and fresh slopes over many own batches against tr Sigma / |G|^2 and the noise scale."""
    generator, B = torch.Generator().manual_seed(1), 2
    fresh = noisy(60_000, generator, size=20_000)
    rows = []
    for _ in range(60):
        own = noisy(B, generator)
        g = own.gradient()[0]
        found = ceiling(own, [-g], fresh)
        gHg = float(g @ (A * g))
        rows.append([found.own.value * gHg / 2, found.fresh.value * gHg / 2, gHg])
    own_slope, fresh_slope, curvature = torch.tensor(rows, dtype=D).unbind(dim=1)

    def close(values: Tensor, expected: float) -> bool:
        return abs(float(values.mean()) - expected) < 3.5 * float(values.std()) / math.sqrt(len(values))

    assert close(own_slope, GRAD_SQ + TRACE / B)
    assert close(B * (own_slope - fresh_slope), TRACE)  # so that B_simple is the ratio of the means
    scale = noise_scale(noisy(20_000, generator), num_parts=20)
    assert abs(scale.b_simple.value - TRACE / GRAD_SQ) < 3.5 * scale.b_simple.error
    # eta_fresh / 2 = eta_max / (1 + B_noise / B).
    exact = GRAD_SQ / (CURVATURE + TRACE_H / B)
    assert float(fresh_slope.mean() / curvature.mean()) == pytest.approx(exact, rel=0.1)
    assert scale.step_at(B).value == pytest.approx(exact, rel=0.1)


def test_forward_only_agrees_with_products() -> None:
    generator = torch.Generator().manual_seed(2)
    own, fresh = noisy(8, generator), noisy(400, generator, size=40)
    u = [-g for g in own.gradient()]
    steps = [critical_step(L, u, rtol=1e-3, initial_step=0.5, max_forwards=20) for L in (own, fresh)]
    found, exact = ceiling_from_steps(*steps, batch_size=8), ceiling(own, u, fresh)
    for name in ("own", "fresh", "best", "critical_batch"):
        one, other = getattr(found, name), getattr(exact, name)
        assert abs(one.value - other.value) <= one.error + 1e-9
        assert one.error_kind == "bracket"
    assert found.cost_ge == steps[0].cost_ge + steps[1].cost_ge


def test_an_update_that_climbs_on_fresh_data_is_unresolved() -> None:
    generator = torch.Generator().manual_seed(3)
    own, fresh = noisy(8, generator), noisy(400, generator, size=40)
    found = ceiling(own, fresh.gradient(), fresh)
    assert not found.resolved
    assert math.isnan(found.best.value)
    assert "does not significantly descend" in found.fresh.note
    assert "unresolved" in str(found)
    climbing = critical_step(fresh, fresh.gradient())
    assert not ceiling_from_steps(critical_step(own, [-g for g in own.gradient()]), climbing, 8).resolved


def test_too_few_fresh_batches_are_unresolved() -> None:
    generator = torch.Generator().manual_seed(4)
    own = noisy(8, generator)
    found = ceiling(own, [-g for g in own.gradient()], noisy(40, generator, size=20))
    assert "too few" in found.fresh.note
    assert not found.resolved
    assert found.own.converged


def test_negative_curvature_on_the_own_batch_has_no_ceiling() -> None:
    def loss(model: nn.Module, xi: Tensor) -> Tensor:
        return -0.5 * model().square().sum() + 0 * xi.sum()

    L = Objective(Point(START), loss, list(torch.zeros(4, 1).split(1)))
    found = ceiling(L, [-g for g in L.gradient()], L)
    assert math.isnan(found.own.value)
    assert not found.own.converged
    assert "not significantly positive" in found.fresh.note


def test_cost_is_charged_and_declared() -> None:
    generator = torch.Generator().manual_seed(5)
    own, fresh = noisy(8, generator), noisy(40, generator, size=10)
    found = ceiling(own, [torch.ones(3, dtype=D)], fresh)
    assert 0 < found.cost_ge == own.cost_ge + fresh.cost_ge <= ceiling.cost(own, fresh)


def test_wrong_usage_names_the_fix() -> None:
    own = noisy(8, torch.Generator())
    with pytest.raises(ValueError, match="other shapes"):
        ceiling(own, [torch.ones(2)], own)
    with pytest.raises(ValueError, match="length of update is 0"):
        ceiling(own, [torch.zeros(3, dtype=D)], own)
    step = critical_step(own, [-g for g in own.gradient()])
    with pytest.raises(ValueError, match="batch_size=0"):
        ceiling_from_steps(step, step, 0)
