"""Curvature along a direction against quadratics, and batch sharpness against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from optland import vectors
from optland.curvature.lines.line import batch_sharpness, curvature_along
from optland.objective import Objective
from optland.problems import function_objective, linear_regression, quadratic, with_spectrum

D = torch.float64


@pytest.mark.parametrize(
    ("method", "rel"),
    [("auto", 1e-12), ("double_backward", 1e-12), ("finite_difference", 1e-7), ("forward", 1e-5)],
)
def test_curvature_of_a_quadratic(method: str, rel: float) -> None:
    A = with_spectrum([9.0, 3.0, 1.0, -2.0])
    d = torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=D)
    found = curvature_along(quadratic(A), [10 * d], method=method)
    assert found.value == pytest.approx(float(d @ A @ d / (d @ d)), rel=rel)
    assert abs(found.value - float(d @ A @ d / (d @ d))) <= found.error + 1e-12
    assert found.converged


@pytest.mark.parametrize("method", ["auto", "finite_difference", "forward"])
def test_agrees_with_the_dense_hessian_of_a_network(mlp: Objective, dense_hessian, method: str) -> None:
    H = dense_hessian(mlp)
    d = vectors.random_unit(mlp.params, 3)
    flat = vectors.flatten(d)
    found = curvature_along(mlp, d, method=method)
    assert found.value == pytest.approx(float(flat @ H @ flat), abs=max(found.error, 1e-12))
    assert found.error < 1e-3


def test_the_error_of_a_second_difference_covers_the_fourth_derivative() -> None:
    objective = function_objective(lambda w: w.exp().sum(), torch.zeros(1, dtype=D))
    found = curvature_along(objective, [torch.ones(1, dtype=D)], method="forward", distance=0.1)
    assert found.value == pytest.approx((2 * math.cosh(0.1) - 2) / 0.01, rel=1e-9)
    assert 0 < abs(found.value - 1.0) < found.error < 0.01


def test_a_kink_is_not_converged() -> None:
    objective = function_objective(lambda w: w.abs().sum(), torch.zeros(1, dtype=D))
    assert not curvature_along(objective, [torch.ones(1, dtype=D)], method="forward").converged


def test_float32_rounding_shows_in_the_error() -> None:
    objective = function_objective(lambda w: 1000.0 + 0.5 * w.square().sum(), torch.zeros(2))
    found = curvature_along(objective, [torch.ones(2)], method="forward", distance=1e-3)
    assert not found.converged
    assert abs(found.value - 1.0) <= found.error


def test_costs_are_declared() -> None:
    X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    for method in ("auto", "finite_difference", "forward"):
        objective = linear_regression(X, torch.zeros(12, 1, dtype=D), sizes=[6, 6])
        found = curvature_along(objective, [torch.ones(1, 2, dtype=D)], method=method)
        assert 0 < found.cost_ge == objective.cost_ge <= curvature_along.cost(objective, method=method)
    objective = linear_regression(X, torch.ones(12, 1, dtype=D), sizes=[6, 6])
    found = batch_sharpness(objective)
    assert 0 < found.cost_ge == objective.cost_ge <= batch_sharpness.cost(objective)


def test_batch_sharpness_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    X, Y = torch.randn(20, 3, generator=generator, dtype=D), torch.randn(20, 1, generator=generator, dtype=D)
    objective = linear_regression(X, Y, sizes=[5, 5, 5, 5])
    found = batch_sharpness(objective)
    values = []
    for x, y in objective.batches:
        g, H = -2 * x.T @ y / 5, 2 * x.T @ x / 5
        values.append(float(g.T @ H @ g / (g.T @ g)))
    assert found.value == pytest.approx(sum(values) / 4)
    assert found.error == pytest.approx(float(torch.tensor(values).std()) / 2, rel=1e-5)
    assert found.converged


def test_batches_of_one_have_sharpness_of_their_own_hessian() -> None:
    """With batch size 1 the gradient is the only eigenvector, so the mean is tr(H) of the whole loss."""
    X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=D)
    objective = linear_regression(X, torch.ones(30, 1, dtype=D), sizes=[1] * 30)
    assert batch_sharpness(objective).value == pytest.approx(2 * float(X.square().sum()) / 30)


def test_preconditioned_batch_sharpness_is_that_of_scaled_weights() -> None:
    """w = P^-1/2 v: the plain sharpness in v is the preconditioned one in w."""
    generator = torch.Generator().manual_seed(0)
    X, Y = torch.randn(20, 3, generator=generator, dtype=D), torch.randn(20, 1, generator=generator, dtype=D)
    P = torch.tensor([[4.0, 0.25, 1.0]], dtype=D)
    found = batch_sharpness(linear_regression(X, Y, sizes=[5] * 4), preconditioner=[P])
    plain = batch_sharpness(linear_regression(X * P.rsqrt(), Y, sizes=[5] * 4))
    assert found.value == pytest.approx(plain.value)


def test_few_batches_and_zero_gradients_are_marked() -> None:
    X = torch.ones(2, 1, dtype=D)
    assert not batch_sharpness(linear_regression(X, X, sizes=[1, 1])).converged
    flat = batch_sharpness(
        linear_regression(torch.ones(3, 1, dtype=D), torch.zeros(3, 1, dtype=D), sizes=[1, 1, 1])
    )
    assert math.isnan(flat.value)
    assert not flat.converged


def test_wrong_usage_names_the_fix() -> None:
    L = quadratic(torch.eye(2, dtype=D))
    d = torch.ones(2, dtype=D)
    with pytest.raises(ValueError, match="other shapes"):
        curvature_along(L, [torch.ones(3)])
    with pytest.raises(ValueError, match="length of direction is 0"):
        curvature_along(L, [0 * d])
    with pytest.raises(ValueError, match="belongs to method='forward'"):
        curvature_along(L, [d], distance=0.1)
    with pytest.raises(ValueError, match="must be positive"):
        curvature_along(L, [d], method="forward", distance=-1.0)
    with pytest.raises(ValueError, match="preconditioner has other shapes"):
        batch_sharpness(linear_regression(torch.ones(3, 1), torch.ones(3, 1)), preconditioner=[torch.ones(3)])
    with pytest.raises(ValueError, match="no batches"):
        batch_sharpness([])


def test_batch_norm_in_train_mode_is_fine_batch_by_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    data = torch.randn(18, 3, dtype=D)
    L = Objective(model, lambda m, x: (m(x) - 1).square().mean(), list(data.split(6)), mode="train")
    assert batch_sharpness(L).converged
