"""Batch sharpness against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from optland.curvature.lines.line import batch_sharpness
from optland.objective import Objective
from optland.problems import linear_regression

D = torch.float64


def test_costs_are_declared() -> None:
    X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=D)
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
