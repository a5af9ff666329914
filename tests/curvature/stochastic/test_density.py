"""Spectral densities against closed forms and dense eigenvalues, and the defects of other packages."""

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
from optland.curvature.operators.hessian import CurvatureOperator
from optland.curvature.stochastic.density import Density, density
from optland.curvature.stochastic.random_vectors import RandomVectors
from optland.objective import Objective
from optland.problems import function_objective, linear_regression, quadratic, with_spectrum

D = torch.float64
OUTLIERS = [50.0, 40.0, 30.0, 20.0, 10.0]


def operator(eigenvalues: Any, dtype: torch.dtype = D, seed: int = 0) -> CurvatureOperator:
    return hessian(quadratic(with_spectrum([float(x) for x in eigenvalues], seed=seed).to(dtype)))


def path_graph(N: int) -> CurvatureOperator:
    off = torch.full((N - 1,), -1.0, dtype=D)
    return hessian(quadratic(torch.diag(torch.full((N,), 2.0, dtype=D)) + off.diag(1) + off.diag(-1)))


def test_moments_are_exact_up_to_2m_minus_1_and_not_beyond() -> None:
    A, m = with_spectrum(np.linspace(-1, 1.5, 40).tolist()), 4
    found = density(hessian(quadratic(A)), num_steps=m, num_starts=1, seed=5)
    v = RandomVectors([A[0]], 5).direction()
    for p in range(2 * m + 1):
        exact = float(v @ torch.linalg.matrix_power(A, p) @ v)
        same = found.moment(p).value == pytest.approx(exact, rel=1e-10)
        assert same == (p <= 2 * m - 1)


def test_two_atoms_are_exact() -> None:
    found = density(operator([3.0] * 60 + [-1.0] * 20), num_starts=40)
    assert all(theta == pytest.approx([-1.0, 3.0]) for theta in found.nodes)
    assert found.num_matvecs == 80
    high, low = found.spikes
    assert (high.value.value, low.value.value) == (pytest.approx(3.0), pytest.approx(-1.0))
    assert abs(high.mass.value - 0.75) <= 4 * high.mass.error
    assert found.outliers == ()  # a quarter of the spectrum is no outlier
    below = found.fraction_below(0.0)
    assert abs(below.value - 0.25) <= 4 * below.error
    assert found.sigma == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_there_are_no_ghosts(dtype: torch.dtype) -> None:
    # Without re-orthogonalisation 90 steps gave ten copies of the top eigenvalue, fourteen in float32.
    found = density(operator([*OUTLIERS, *np.linspace(-1, 1, 495)], dtype), num_steps=90, num_starts=2)
    for theta, w in zip(found.nodes, found.weights, strict=True):
        assert theta.dtype == w.dtype == np.float64
        for outlier in OUTLIERS:
            assert np.sum(np.abs(theta - outlier) < 0.5) == 1
        assert w.min() >= 0.0
        assert w.sum() == pytest.approx(1.0, abs=1e-6)


def test_outliers_are_spikes_and_leave_the_bulk() -> None:
    found = density(operator([*OUTLIERS, *np.linspace(-1, 1, 495)]), num_steps=60, num_starts=4)
    values = [spike.value.value for spike in found.outliers]
    assert values[:5] == pytest.approx(OUTLIERS, rel=1e-6)
    assert all(spike.value.error < 0.05 for spike in found.outliers)
    masses = np.concatenate([spike.masses for spike in found.outliers[:5]])
    assert masses.mean() == pytest.approx(1 / 500, rel=1.0)
    assert found.sigma < 0.05  # the width of the bulk counts, not that of the outliers
    bulk = found.curve()
    inside = (bulk.grid > -0.8) & (bulk.grid < 0.8)
    assert np.abs(bulk.value[inside] - 0.5).mean() < 0.2  # 4 starts in 500 dimensions
    assert bulk.grid.max() < 2.0


def test_the_path_graph_follows_the_arcsine_law() -> None:
    found = density(path_graph(400), num_steps=60, num_starts=8)
    for x in np.linspace(0.1, 3.9, 12):
        share = found.fraction_below(x)
        assert share.value == pytest.approx(2 / math.pi * math.asin(math.sqrt(x / 4)), abs=0.03)
    assert found.moment(1).value * 400 == pytest.approx(800, abs=4 * 400 * found.moment(1).error)
    assert found.quantile(0.5).value == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("options", [{}, {"scale": "log", "epsilon": 1e-3}, {"sigma": 0.3}])
def test_the_whole_curve_integrates_to_one(options: Any) -> None:
    found = density(operator([*OUTLIERS, *np.linspace(-1, 1, 200)]), num_steps=40)
    curve = found.curve(spikes=True, num_points=20_000, **options)
    assert np.trapezoid(curve.value, curve.grid) == pytest.approx(1.0, abs=2e-3)
    assert curve.error.shape == curve.value.shape == curve.grid.shape
    assert curve.epsilon == options.get("epsilon", 0.0)


def test_the_grid_ends_four_widths_beyond_the_spectrum() -> None:
    """Not at 0, where a spectrum that is far from it has nothing."""
    curve = density(operator(np.linspace(100.0, 101.0, 30)), num_steps=40).curve(spikes=True)
    assert curve.grid[0] == pytest.approx(100.0 - 4 * curve.sigma, abs=1e-6)
    assert curve.grid[-1] == pytest.approx(101.0 + 4 * curve.sigma, abs=1e-6)


def test_the_bulk_and_the_spikes_make_up_the_whole() -> None:
    found = density(operator([*OUTLIERS, *np.linspace(-1, 1, 200)]), num_steps=40)
    curve = found.curve(num_points=20_000)
    spikes = sum(spike.mass.value for spike in found.spikes)
    assert np.trapezoid(curve.value, curve.grid) + spikes == pytest.approx(1.0, abs=2e-3)


def test_the_index_covers_the_count_of_negative_eigenvalues() -> None:
    eigenvalues = np.random.default_rng(0).normal(0.5, 1.0, 300)
    A = hessian(quadratic(with_spectrum(eigenvalues.tolist())))
    exact, tau = int((eigenvalues < -0.2).sum()), 0.2
    found = [density(A, num_steps=30, seed=seed).index(tau) for seed in range(15)]
    inside = [abs(estimate.value - exact) <= 3.2 * estimate.error for estimate in found]  # Student t, 3 dof
    assert np.mean(inside) >= 0.88
    assert np.mean([estimate.value for estimate in found]) == pytest.approx(exact, rel=0.05)


def test_a_network_agrees_with_its_dense_hessian(
    mlp: Objective, dense_hessian: Callable[[Objective], Tensor]
) -> None:
    exact = np.linalg.eigvalsh(dense_hessian(mlp).numpy())
    found = density(hessian(mlp), num_steps=43, num_starts=3)
    for theta, residual in zip(found.nodes, found.residuals, strict=True):
        np.testing.assert_allclose(theta[-3:], exact[-3:], rtol=1e-8)
        near = np.abs(theta[:, None] - exact[None, :]).min(axis=1)
        assert (near <= residual + 1e-10).all()
    spread = found.moment(1)
    assert abs(spread.value - exact.mean()) <= 6 * spread.error


def test_ragged_batches_are_weighted_by_their_counts() -> None:
    X = torch.cat([torch.ones(9, 1, dtype=D), 10 * torch.ones(1, 1, dtype=D)])
    found = density(hessian(linear_regression(X, torch.zeros(10, 1, dtype=D), sizes=[9, 1])))
    assert found.nodes[0] == pytest.approx([2 * 109 / 10])


def test_the_zero_matrix_and_one_dimension() -> None:
    zero = density(operator([0.0] * 10))
    assert all(
        theta.tolist() == [0.0] and w.tolist() == [1.0]
        for theta, w in zip(zero.nodes, zero.weights, strict=True)
    )
    assert zero.fraction_below(0.0).value == 0.0
    assert np.isfinite(zero.curve(spikes=True).value).all()
    assert np.isfinite(zero.curve().value).all()
    one = density(operator([-4.0]))
    assert (one.index().value, one.index().error, one.moment(1).value) == (1.0, 0.0, pytest.approx(-4.0))
    assert "share below 0" in str(one)


def test_a_single_start_has_no_spread() -> None:
    found = density(operator(np.linspace(-1, 1, 50)), num_steps=10, num_starts=1)
    assert math.isnan(found.moment(1).error)
    assert not found.moment(1).converged
    assert np.isnan(found.curve().error).all()
    assert "NOT CONVERGED" in str(found)


def test_products_that_are_not_finite_are_marked() -> None:
    def overflowed(w: Tensor) -> Tensor:
        return torch.where(w > 0, torch.inf, w).sum()

    found = density(hessian(function_objective(overflowed, torch.ones(5, dtype=D))))
    assert found.num_matvecs == 1
    assert "not finite" in str(found)
    assert math.isnan(found.moment(1).value)
    assert not found.fraction_below(0.0).converged
    assert np.isnan(found.curve().value).all()


def test_cost_seed_and_files(mlp: Objective, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    H = hessian(mlp)
    found = density(H, num_steps=8, num_starts=2, seed=1)
    assert found.num_matvecs == H.num_matvecs == 16
    assert found.cost_ge == H.cost_ge <= density.cost(mlp, 8, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert (
        density(hessian(mlp), num_steps=8, num_starts=2, seed=1).nodes[1].tolist() == found.nodes[1].tolist()
    )
    assert (
        density(hessian(mlp), num_steps=8, num_starts=2, seed=2).nodes[0].tolist() != found.nodes[1].tolist()
    )
    found.save(tmp_path / "density.npz")
    again = Density.load(tmp_path / "density")
    assert [w.tolist() for w in again.weights] == [w.tolist() for w in found.weights]
    assert str(again) == str(found)


def test_wrong_arguments_name_themselves() -> None:
    H = operator([1.0, 2.0, 3.0])
    found = density(H, num_steps=2)
    for call, word in (
        (lambda: density(H, num_steps=0), "steps=0"),
        (lambda: found.curve(scale="log"), "epsilon=None"),
        (lambda: found.curve(scale="cubic"), "scale 'cubic'"),
        (lambda: found.curve(sigma=-1.0), "sigma=-1.0"),
        (lambda: found.index(-0.1), "tau=-0.1"),
        (lambda: found.moment(-1), "p=-1"),
        (lambda: found.quantile(2.0), "q=2.0"),
    ):
        with pytest.raises(ValueError, match=word):
            call()


def test_a_quantile_at_the_middle_of_a_nodes_weight_is_the_node() -> None:
    found = density(operator([1.0, 3.0]), num_steps=2, num_starts=1, seed=3)
    first, last = found.weights[0]
    assert found.quantile(first / 2).value == pytest.approx(1.0)
    assert found.quantile(1 - last / 2).value == pytest.approx(3.0)
    assert found.quantile(0.5 * (first / 2 + 1 - last / 2)).value == pytest.approx(2.0)
