"""Power iteration as the named baseline: what it finds, and what it must not claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from optland import vectors
from optland.curvature import hessian, lanczos
from optland.curvature.eigen.power import power_iteration
from optland.curvature.operators.hessian import CurvatureOperator
from optland.problems import function_objective, quadratic, with_spectrum

D = torch.float64


def operator(eigenvalues: list[float], seed: int = 0) -> CurvatureOperator:
    return hessian(quadratic(with_spectrum(eigenvalues, seed=seed)))


def test_it_finds_the_largest_magnitude_and_says_that_it_does() -> None:
    found = power_iteration(operator([5.0, 4.0, *[0.1] * 10, -8.0]), 100, rtol=1e-6)
    assert found.value.value == pytest.approx(-8.0, abs=1e-6)
    assert "largest magnitude" in str(found)


def test_a_shift_by_the_top_finds_the_bottom() -> None:
    H = operator([10.0, 6.0, 1.0, 0.0, -2.0])
    top = power_iteration(H, 200, rtol=1e-6).value.value
    found = power_iteration(H, 2000, rtol=1e-6, shift=top)
    assert found.value.value == pytest.approx(-2.0, abs=1e-5)
    assert found.value.converged


@pytest.mark.parametrize("seed", range(20))
def test_no_false_convergence_on_a_cluster(seed: int) -> None:
    """A rule that stops on the change of the Rayleigh quotient reported 9.80 to 9.90 as converged here."""
    found = power_iteration(operator([10.0, 9.9, 9.8, *[1.0] * 17], seed), 20, rtol=1e-3, seed=seed)
    assert found.num_matvecs == 20
    assert not found.value.converged
    assert "NOT CONVERGED" in str(found)


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_the_residual_is_that_of_the_returned_pair(steps: int) -> None:
    H = operator(np.linspace(-3, 7, 30).tolist())
    found = power_iteration(H, steps, rtol=1e-12)
    rest = vectors.subtract(H.matvec(found.vector), vectors.scaled(found.value.value, found.vector))
    assert float(vectors.norm(rest)) == pytest.approx(found.value.error, abs=1e-12)
    assert float(vectors.norm(found.vector)) == pytest.approx(1.0)


def test_equal_magnitudes_of_both_signs_never_settle() -> None:
    found = power_iteration(operator([4.0, -4.0, 1.0]), 200)
    assert not found.value.converged
    assert found.value.error > 0.1


def test_zero_matrix_and_products_that_are_not_finite() -> None:
    zero = power_iteration(operator([0.0] * 5))
    assert (zero.value.value, zero.value.error, zero.value.converged, zero.num_matvecs) == (
        0.0,
        0.0,
        True,
        1,
    )
    broken = hessian(function_objective(lambda w: (w - 1.0).abs().sqrt().sum(), torch.ones(3, dtype=D)))
    found = power_iteration(broken)
    assert math.isnan(found.value.value)
    assert not found.value.converged
    assert "not finite" in found.value.note


def test_lanczos_needs_fewer_products_for_the_same_residual() -> None:
    eigenvalues = [10.0, 9.0, *np.linspace(-1, 5, 60).tolist()]
    power = power_iteration(operator(eigenvalues), 400, rtol=1e-3)
    krylov = lanczos(operator(eigenvalues), ends="top", rtol=1e-3)
    assert power.value.converged
    assert krylov.num_matvecs < power.num_matvecs / 2


def test_cost_is_declared_and_wrong_usage_refused() -> None:
    H = operator([2.0, 1.0])
    found = power_iteration(H, 7, rtol=1e-300)
    assert found.value.cost_ge == H.cost_ge <= power_iteration.cost(H.objective, 7)
    with pytest.raises(ValueError, match="max_matvecs=0"):
        power_iteration(H, 0)
