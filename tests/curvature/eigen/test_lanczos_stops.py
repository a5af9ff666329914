"""What ends a Lanczos run, what it then claims, and whether every claim is true, against known spectra."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from optland import vectors
from optland.curvature import hessian, lanczos
from optland.curvature.eigen.krylov import Krylov
from optland.curvature.operators.hessian import CurvatureOperator
from optland.problems import function_objective, quadratic

D = torch.float64


def diagonal(eigenvalues: Any) -> CurvatureOperator:
    a = torch.as_tensor(np.asarray(eigenvalues), dtype=D)
    return hessian(function_objective(lambda w: 0.5 * (a * w * w).sum(), torch.ones(len(a), dtype=D)))


SPECTRA = {
    "network": [30.0, 22.0, 15.0, *np.linspace(-1.0, 2.0, 200).tolist(), -3.0],
    "positive": np.geomspace(1e-3, 10.0, 300).tolist(),
    "uniform": np.linspace(-1.0, 1.0, 200).tolist(),
    "weak_negative": [*np.linspace(0.0, 10.0, 300).tolist(), -0.05],
    "low_rank": [8.0, 3.0, -1.0, *[0.0] * 200],
}


@pytest.mark.parametrize("name", sorted(SPECTRA))
@pytest.mark.parametrize("budget", [6, 16])
def test_certificates_and_verdicts_hold_for_every_seed(name: str, budget: int) -> None:
    exact = np.array(SPECTRA[name])
    width = exact.max() - exact.min()
    for seed in range(20):
        found = lanczos(diagonal(exact), rtol=1e-6, max_matvecs=budget, seed=seed)
        assert found.certificate is not None
        slack = 1e-9 * width
        assert exact.max() - found.top.value <= found.certificate * width + slack
        assert found.bottom.value - exact.min() <= found.certificate * width + slack
        if found.negative_curvature == "certified":
            assert exact.min() < 0
        elif found.negative_curvature == "none below -tau":
            assert found.tau is not None
            assert exact.min() >= -found.tau - slack
        for value in found.values:  # some eigenvalue lies within every residual
            assert np.abs(exact - value.value).min() <= value.error + slack


# --- the error of the value ----------------------------------------------------------------------------------------


def test_value_errors_estimate_the_true_errors_where_the_gap_is_seen() -> None:
    exact = SPECTRA["network"]
    for seed in range(20):
        found = lanczos(diagonal(exact), ends="top", k=2, rtol=1e-2, seed=seed)
        for value, error, true in zip(found.values, found.value_errors, [30.0, 22.0], strict=True):
            assert abs(value.value - true) <= 1.25 * error + 1e-12  # an estimate: gaps come from Ritz values
            assert error <= 0.1 * value.error


def test_a_space_of_one_vector_has_no_gap_to_show() -> None:
    found = lanczos(diagonal([3.0, 1.0]), max_matvecs=1)
    assert found.value_errors == found.residuals


# --- the sign stop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_the_sign_stop_ends_once_negative_curvature_is_certified(seed: int) -> None:
    exact = SPECTRA["network"]
    found = lanczos(diagonal(exact), ends="bottom", stop="sign", seed=seed)
    full = lanczos(diagonal(exact), ends="bottom", max_matvecs=100, seed=seed)
    assert found.negative_curvature == "certified"
    assert found.num_matvecs < full.num_matvecs


@pytest.mark.parametrize("seed", range(8))
def test_the_sign_stop_ends_once_nothing_notable_is_left_below_zero(seed: int) -> None:
    exact = SPECTRA["positive"]
    found = lanczos(diagonal(exact), ends="bottom", stop="sign", rtol=0.1, max_matvecs=200, seed=seed)
    assert found.negative_curvature == "none below -tau"
    assert found.tau is not None
    assert found.tau <= 0.1 * 10.0
    assert found.num_matvecs < 60


def test_the_sign_stop_says_unknown_when_the_budget_was_too_small() -> None:
    found = lanczos(diagonal(SPECTRA["positive"]), stop="sign", rtol=1e-3, max_matvecs=5)
    assert (found.negative_curvature, found.num_matvecs) == ("unknown", 5)


# --- small and degenerate ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["residual", "value", "sign"])
@pytest.mark.parametrize("eigenvalues", [[2.0], [-2.0], [0.0], [3.0, 3.0], [3.0, -1.0], [0.0, 0.0]])
def test_one_and_two_dimensions(stop: Any, eigenvalues: list[float]) -> None:
    found = lanczos(diagonal(eigenvalues), stop=stop)
    assert found.num_matvecs <= 2
    if stop != "sign":  # which may end before the top is known
        assert found.converged
        assert found.top.value == pytest.approx(max(eigenvalues), abs=1e-12)
    assert found.bottom.value == pytest.approx(min(eigenvalues), abs=2.0 if stop == "sign" else 1e-12)


@pytest.mark.parametrize("counts", [(5, 95), (50, 50), (1, 3)])
def test_two_atoms_end_after_two_products_with_exact_nodes(counts: tuple[int, int]) -> None:
    found = lanczos(diagonal([4.0] * counts[0] + [-1.0] * counts[1]), rtol=1e-10)
    assert found.num_matvecs == 2
    assert found.ritz_values == pytest.approx((-1.0, 4.0), abs=1e-12)
    assert found.certificate == 0.0


def test_gauss_nodes_of_the_path_graph_reproduce_moments() -> None:
    """sum_i s_1i^2 theta_i^p = v'A^p v for p up to 2m - 1, and not for p = 2m."""
    N, m = 40, 6
    A = 2 * torch.eye(N, dtype=D) - torch.diag(torch.ones(N - 1, dtype=D), 1)
    A = A - torch.diag(torch.ones(N - 1, dtype=D), -1)
    space = Krylov(hessian(quadratic(A)), m)
    v = vectors.random_unit(space.like, 0)
    space.start(v)
    for _ in range(m):
        space.extend()
    ritz, x = space.ritz(), v[0]
    for p in range(2 * m + 1):
        quadrature = float((ritz.s[0] ** 2 * ritz.theta**p).sum())
        moment = float(x @ torch.linalg.matrix_power(A, p) @ x)
        assert (abs(quadrature - moment) < 1e-10 * max(1.0, abs(moment))) == (p < 2 * m)


# --- starts and depth, where other packages went wrong -------------------------------------------------------------


def test_the_start_is_signed_and_spread_over_the_sphere() -> None:
    """A start drawn from [0, 1] has a cosine of 0.87 with the vector of ones, and misses what is orthogonal to it."""
    like = [torch.zeros(1000, dtype=D)]
    cosines = [float(vectors.random_unit(like, seed)[0].sum()) / math.sqrt(1000) for seed in range(50)]
    assert max(map(abs, cosines)) < 0.15
    assert min(cosines) < 0 < max(cosines)


def test_the_default_depth_finds_the_top() -> None:
    """A fixed depth of 2k products gave 8.50 for a top of 10 (k = 3)."""
    exact = [10.0, 9.0, 8.0, *np.linspace(-1, 5, 150).tolist()]
    for seed in range(5):
        found = lanczos(diagonal(exact), k=3, ends="top", seed=seed)
        assert [v.value for v in found.values] == pytest.approx([10.0, 9.0, 8.0], rel=1e-3)
        assert found.converged


def test_unknown_stops_and_negative_admixtures_are_refused() -> None:
    with pytest.raises(ValueError, match="'residual', 'value' or 'sign'"):
        lanczos(diagonal([1.0, 2.0]), stop="change")
    with pytest.raises(ValueError, match="random_share=-1"):
        lanczos(diagonal([1.0, 2.0]), random_share=-1)
