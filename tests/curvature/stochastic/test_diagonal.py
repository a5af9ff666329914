"""The diagonal against dense matrices, with the errors that every coordinate and every layer reports."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from optland.curvature import hessian
from optland.curvature.stochastic.diagonal import Diagonal, diagonal
from optland.objective import Objective
from optland.problems import function_objective, linear_regression, quadratic, with_spectrum

D = torch.float64
METHODS: list[Any] = ["auto", "krylov", "hutchinson", "hutch++"]


def outliers(d: int = 80) -> Tensor:
    return with_spectrum([50.0, 30.0, -10.0, *np.linspace(-1, 1, d - 3)])


def test_a_diagonal_matrix_is_exact_in_one_rademacher_probe() -> None:
    A = torch.diag(torch.linspace(-3, 5, 40, dtype=D))
    one = diagonal(hessian(quadratic(A)), method="hutchinson", max_matvecs=1)
    torch.testing.assert_close(one.values[0], A.diagonal(), rtol=1e-12, atol=1e-12)
    assert bool(torch.isnan(one.errors[0]).all())
    auto = diagonal(hessian(quadratic(A)))
    torch.testing.assert_close(auto.values[0], A.diagonal(), rtol=1e-12, atol=1e-12)
    assert float(auto.errors[0].abs().max()) == 0.0
    assert auto.num_matvecs == 2


def test_errors_match_the_closed_form_variance_of_every_coordinate() -> None:
    A, n = outliers(), 40
    exact = (A.square().sum(1) - A.diagonal().square()) / n  # sum over j != i of A_ij^2, a sample
    found = [diagonal(hessian(quadratic(A)), method="hutchinson", max_matvecs=n, seed=s) for s in range(30)]
    reported = torch.stack([run.errors[0].square() for run in found]).mean(0)
    actual = torch.stack([(run.values[0] - A.diagonal()).square() for run in found]).mean(0)
    assert float((reported / exact).mean()) == pytest.approx(1.0, abs=0.1)
    assert float((actual / exact).mean()) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("method", METHODS)
def test_errors_cover_and_known_parts_pay(method: Any) -> None:
    A = outliers()
    found = [diagonal(hessian(quadratic(A)), method=method, seed=s) for s in range(12)]
    error = torch.stack([run.values[0] - A.diagonal() for run in found])
    claimed = torch.stack([run.errors[0] for run in found])
    assert 0.85 <= float((error.abs() <= 2.2 * claimed).double().mean()) <= 0.995
    plain = math.sqrt(float((A.square().sum() - A.diagonal().square().sum()) / 30))
    ratio = math.sqrt(float(error.square().sum(1).mean())) / plain
    assert ratio == pytest.approx(1.0, abs=0.2) if method == "hutchinson" else ratio < 0.25


def test_a_network_by_layer(mlp: Objective, dense_hessian: Callable[[Objective], Tensor]) -> None:
    exact = torch.split(dense_hessian(mlp).diagonal(), [p.numel() for p in mlp.params])
    full = diagonal(hessian(mlp), max_matvecs=60)
    few = diagonal(hessian(mlp), method="krylov", max_matvecs=30)
    assert [t.shape for t in few.values] == [p.shape for p in mlp.params]
    for found, part in zip(full.values, exact, strict=True):
        torch.testing.assert_close(found.flatten(), part, rtol=1e-9, atol=1e-11)
    for values, layer in zip(few.values, few.per_layer.values(), strict=True):
        assert float(values.sum()) == pytest.approx(layer.value, rel=1e-9)
    # The sum over all is known better than its entries: their errors partly cancel.
    assert few.total.error / abs(few.total.value) < few.relative_error
    assert "error of an entry" in str(few)


def test_ragged_batches_are_weighted_by_their_counts() -> None:
    X = torch.cat([torch.ones(9, 2, dtype=D), 10 * torch.ones(1, 2, dtype=D)])
    found = diagonal(hessian(linear_regression(X, torch.zeros(10, 1, dtype=D), sizes=[9, 1])))
    assert found.values[0].flatten().tolist() == pytest.approx([21.8, 21.8])


@pytest.mark.parametrize("method", METHODS)
def test_zero_one_dimensional_and_not_finite(method: Any) -> None:
    zero = diagonal(hessian(quadratic(torch.zeros(50, 50, dtype=D))), method=method)
    assert float(zero.values[0].abs().max()) == float(zero.errors[0].abs().max()) == 0.0
    assert math.isnan(zero.relative_error)
    single = diagonal(hessian(quadratic(torch.tensor([[-3.0]], dtype=D))), method=method)
    assert single.values[0].tolist() == pytest.approx([-3.0])

    def overflowed(w: Tensor) -> Tensor:
        return torch.where(w > 0, torch.inf, w).sum()

    broken = diagonal(hessian(function_objective(overflowed, torch.ones(50, dtype=D))), method=method)
    assert bool(torch.isnan(broken.values[0]).all())
    assert not broken.total.converged


def test_cost_and_files(mlp: Objective, tmp_path: Path) -> None:
    H = hessian(mlp)
    found = diagonal(H, max_matvecs=12)
    assert found.cost_ge == H.cost_ge <= diagonal.cost(mlp, 12)
    assert found.num_matvecs == H.num_matvecs == 12
    found.save(tmp_path / "diagonal")
    again = Diagonal.load(tmp_path / "diagonal")
    for a, b in zip((*found.values, *found.errors), (*again.values, *again.errors), strict=True):
        assert torch.equal(a, b)
    assert (again.per_layer, again.total, again.provenance) == (
        found.per_layer,
        found.total,
        found.provenance,
    )
