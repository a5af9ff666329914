"""Extreme eigenvalues against closed forms and dense eigensolvers, and the errors that other packages made."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from optland import vectors
from optland.curvature import FunctionOperator, Spectrum, hessian, lanczos
from optland.curvature.operators.hessian import CurvatureOperator
from optland.objective import Objective
from optland.problems import function_objective, linear_regression, quadratic, with_spectrum
from optland.problems.critical import two_factor

D = torch.float64


def operator(eigenvalues: list[float], dtype: torch.dtype = D, seed: int = 0) -> CurvatureOperator:
    return hessian(quadratic(with_spectrum(eigenvalues, seed=seed).to(dtype)))


def spectrum_of(eigenvalues: list[float], **options: Any) -> Spectrum:
    return lanczos(operator(eigenvalues), **options)


def count(values: tuple[float, ...], target: float) -> int:
    return sum(abs(value - target) < 1e-6 * max(1.0, abs(target)) for value in values)


# --- defects of other packages, each a spectrum on which they went wrong ------------------------------------------


def test_top_is_the_largest_and_not_the_largest_in_magnitude() -> None:
    found = spectrum_of([5.0, 4.0, *[0.1] * 10, -8.0], rtol=1e-8)
    assert found.top.value == pytest.approx(5.0, abs=1e-7)
    assert found.bottom.value == pytest.approx(-8.0, abs=1e-7)
    assert found.negative_curvature == "certified"


@pytest.mark.parametrize("seed", range(50))
def test_a_cluster_at_the_top_brings_no_false_convergence(seed: int) -> None:
    eigenvalues = [10.0, 9.9, 9.8, *np.linspace(0.0, 1.0, 60).tolist()]
    H = operator(eigenvalues, seed=seed)
    found = lanczos(H, rtol=1e-3, max_matvecs=60, seed=seed)
    assert found.converged
    assert found.top.value == pytest.approx(10.0, abs=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_converged_eigenvalues_have_no_ghosts(dtype: torch.dtype) -> None:
    eigenvalues = [50.0, 40.0, 30.0, 20.0, 10.0, *np.linspace(-1, 1, 150).tolist()]
    found = lanczos(operator(eigenvalues, dtype), k=20, rtol=1e-7, max_matvecs=90)
    assert found.num_matvecs == 90
    near_top = [value for value in found.ritz_values if value > 45.0]
    assert len(near_top) == 1
    assert near_top[0] == pytest.approx(50.0, rel=1e-5)


def test_eigenvectors_of_a_momentum_free_method_are_not_shifted() -> None:
    found = spectrum_of([10.0, 2.0, 1.0, 0.5], rtol=1e-10)
    assert found.top.value == pytest.approx(10.0, rel=1e-9)


def test_ragged_batches_are_weighted_by_their_counts() -> None:
    torch.manual_seed(0)
    X = torch.cat([torch.randn(9, 3, dtype=D), 10 * torch.ones(1, 3, dtype=D)])
    objective = linear_regression(X, torch.zeros(10, 1, dtype=D), sizes=[9, 1])
    expected = torch.linalg.eigvalsh(2 * X.T @ X / 10)
    found = lanczos(hessian(objective), rtol=1e-8)
    assert found.top.value == pytest.approx(float(expected[-1]), rel=1e-8)
    assert found.bottom.value == pytest.approx(float(expected[0]), rel=1e-6)


# --- breakdown and degenerate matrices -----------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
def test_zero_matrix_gives_zeros(k: int) -> None:
    found = spectrum_of([0.0] * 8, k=k)
    assert [value.value for value in found.values] == [0.0] * (2 * k)
    assert found.converged
    assert found.residuals == (0.0,) * (2 * k)
    assert (found.negative_curvature, found.tau) == ("none below -tau", 0.0)
    assert all(torch.isfinite(t).all() for vector in found.vectors for t in vector)


def test_copies_of_multiple_eigenvalues_are_found_after_breakdown() -> None:
    found = spectrum_of([5.0, 5.0, 5.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, -3.0, -3.0], k=3)
    values = [round(value.value, 9) for value in found.values]
    assert values == [5.0, 5.0, 5.0, 1.0, -3.0, -3.0]
    gram = torch.tensor([[float(vectors.dot(a, b)) for b in found.vectors] for a in found.vectors])
    torch.testing.assert_close(gram, torch.eye(6), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("eigenvalues", "top", "bottom"),
    [([3.0] * 20, 3.0, 3.0), ([-2.0], -2.0, -2.0), ([7.0] + [0.0] * 20, 7.0, 0.0)],
)
def test_multiples_of_the_identity_and_rank_one(eigenvalues: list[float], top: float, bottom: float) -> None:
    found = spectrum_of(eigenvalues)
    assert found.converged
    assert found.num_matvecs <= 2
    assert found.top.value == pytest.approx(top, abs=1e-12)
    assert found.bottom.value == pytest.approx(bottom, abs=1e-12)


def test_breakdown_is_relative_to_the_size_of_the_matrix() -> None:
    small = spectrum_of([1e-9 * x for x in (5.0, 3.0, 1.0, -2.0)], rtol=1e-8)
    assert small.top.value == pytest.approx(5e-9, rel=1e-6)
    assert small.bottom.value == pytest.approx(-2e-9, rel=1e-6)


def overflowed(w: Tensor) -> Tensor:
    """Infinite with a gradient of zero: what a clamped or masked loss gives after an overflow."""
    return torch.where(w > 0, torch.inf, w).sum()


def no_derivative(w: Tensor) -> Tensor:
    return (w - 1.0).abs().sqrt().sum()


@pytest.mark.parametrize("method", ["kept_graph", "double_backward", "finite_difference"])
@pytest.mark.parametrize("loss", [overflowed, no_derivative])
def test_a_loss_or_product_that_is_not_finite_gives_marked_nans(loss: Any, method: Any) -> None:
    found = lanczos(hessian(function_objective(loss, torch.ones(3, dtype=D)), method=method))
    if loss is no_derivative and method == "finite_difference":
        assert found.top.finite  # it looks beside the cusp
        return
    assert math.isnan(found.top.value)
    assert math.isnan(found.bottom.value)
    assert not found.converged
    assert (found.negative_curvature, found.num_matvecs) == ("unknown", 1)
    assert "not finite" in str(found)
    again = lanczos(
        operator([3.0, 1.0, -1.0]), start=found
    )  # nothing to start from: a random start, and said so
    assert again.cold
    assert again.certificate is not None


# --- against dense eigensolvers ------------------------------------------------------------------------------------


def test_network_agrees_with_dense_and_scipy(
    mlp: Objective, dense_hessian: Callable[[Objective], Tensor]
) -> None:
    exact = np.linalg.eigvalsh(dense_hessian(mlp).numpy())
    H = hessian(mlp)

    def product(v: Any) -> Any:
        return vectors.flatten(H.matvec(vectors.unflatten(torch.from_numpy(v.ravel()), mlp.params))).numpy()

    arpack = eigsh(LinearOperator((H.dim, H.dim), matvec=product, dtype=float), k=3, which="LA")[0]
    found = lanczos(hessian(mlp), k=3, rtol=1e-8, max_matvecs=43)
    np.testing.assert_allclose([v.value for v in found.values[:3]], exact[::-1][:3], rtol=1e-9)
    np.testing.assert_allclose(sorted(v.value for v in found.values[:3]), np.sort(arpack), rtol=1e-9)
    np.testing.assert_allclose([v.value for v in found.values[3:]], exact[:3][::-1], rtol=1e-6, atol=1e-9)
    assert found.num_top == 3
    assert [v.value for v in found.values] == sorted((v.value for v in found.values), reverse=True)


@pytest.mark.parametrize(("k", "expected"), [(1, [3, -2]), (2, [3, 1, -2]), (3, [3, 1, -2])])
def test_an_eigenvalue_is_told_once_where_both_ends_want_it(k: int, expected: list[float]) -> None:
    A = torch.diag(torch.tensor([3.0, 1.0, -2.0], dtype=torch.float64))
    H = FunctionOperator(lambda v: [A @ v[0]], [torch.zeros(3, dtype=torch.float64)])
    found = lanczos(H, k=k)
    assert [v.value for v in found.values] == pytest.approx(expected)
    assert len(found.vectors) == len(found.values)
    assert found.bottom.value == pytest.approx(-2)


def test_path_graph_laplacian() -> None:
    N = 30
    laplacian = torch.diag(torch.full((N,), 2.0, dtype=D))
    for i in range(N - 1):
        laplacian[i, i + 1] = laplacian[i + 1, i] = -1.0
    found = lanczos(hessian(quadratic(laplacian)), k=2, rtol=1e-10)
    expected = [2 - 2 * math.cos(j * math.pi / (N + 1)) for j in (N, N - 1, 2, 1)]
    assert [v.value for v in found.values] == pytest.approx(expected, rel=1e-8)


def test_valley_of_the_two_factor_net() -> None:
    a, b = 4.0, 0.25
    found = lanczos(hessian(two_factor(a, b)), rtol=1e-10)
    assert found.top.value == pytest.approx(a * a + b * b, rel=1e-12)
    assert found.bottom.value == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    eigenvalues=st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=1, max_size=9),
    budget=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_some_eigenvalue_lies_within_every_residual(eigenvalues: list[float], budget: int, seed: int) -> None:
    H = operator(eigenvalues, seed=seed)
    found = lanczos(H, rtol=1e-6, max_matvecs=budget, seed=seed)
    exact = np.array(eigenvalues)
    rounding = 1e-11 * np.abs(exact).max(initial=1e-300)
    assert H.num_matvecs == found.num_matvecs <= budget
    for value, y in zip(found.values, found.vectors, strict=True):
        assert np.abs(exact - value.value).min() <= value.error + rounding
        assert exact.min() - rounding <= value.value <= exact.max() + rounding
        residual = vectors.subtract(H.matvec(y), vectors.scaled(value.value, y))
        assert float(vectors.norm(residual)) == pytest.approx(value.error, abs=rounding)


# --- stopping, budget, cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 2, 3, 7])
@pytest.mark.parametrize("ends", ["both", "top", "bottom"])
def test_the_budget_is_never_exceeded_and_misses_are_marked(budget: int, ends: Any) -> None:
    H = operator(np.linspace(-5, 10, 200).tolist())
    found = lanczos(H, k=2, ends=ends, rtol=1e-6, max_matvecs=budget)
    assert found.num_matvecs == H.num_matvecs == budget
    assert found.cost_ge == H.cost_ge <= lanczos.cost(H.objective, budget)
    assert not found.converged
    assert "NOT CONVERGED" in str(found)


def test_one_end_needs_fewer_products_than_both() -> None:
    eigenvalues = [20.0, *np.linspace(-1, 1, 100).tolist()]
    top, both = spectrum_of(eigenvalues, ends="top"), spectrum_of(eigenvalues)
    assert len(top.values) == top.num_top == 1
    assert top.converged
    assert top.num_matvecs < both.num_matvecs
    bottom = spectrum_of(eigenvalues, ends="bottom")
    assert bottom.num_top == 0
    assert bottom.values == (bottom.bottom,)


def test_tolerance_is_relative_and_floored_at_a_tenth_of_the_norm() -> None:
    found = spectrum_of([10.0, *np.linspace(0.0, 1.0, 100).tolist()], rtol=1e-2)
    assert found.top.error <= 1e-2 * found.top.value
    assert found.bottom.error <= 1e-2 * 0.1 * found.top.value
    assert found.converged


def test_finite_differences_stop_at_their_own_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    objective = Objective(model, lambda m, x: m(x).square().mean(), [torch.randn(20, 4)])
    H = hessian(objective, method="finite_difference")
    found = lanczos(H, rtol=1e-9)
    assert 0 < H.product_error <= found.top.error
    assert not found.converged
    assert found.num_matvecs < 37
    exact = lanczos(hessian(objective), rtol=1e-5)
    assert abs(found.top.value - exact.top.value) <= 2 * found.top.error


class Asymmetric(torch.autograd.Function):
    """Gradient of nothing: the field (y, -x), whose Jacobian is antisymmetric."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return w.sum() * 0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return torch.stack([w[1], -w[0]]) * grad


def test_products_that_are_not_symmetric_do_not_converge() -> None:
    """Asked for by name: ``auto`` refuses a gradient that is not that of the loss."""
    L = function_objective(Asymmetric.apply, torch.ones(2, dtype=D))
    with pytest.raises(ValueError, match="not that of the loss"):
        lanczos(hessian(L))
    H = hessian(L, method="double_backward")
    found = lanczos(H)
    assert "not that of the loss" in H.reason
    assert not found.converged
    assert found.top.error >= 0.9


# --- starts --------------------------------------------------------------------------------------------------------


def drifting(step: int) -> CurvatureOperator:
    """A Hessian whose eigenvectors turn slowly: a matrix under a rotation by ``step`` hundredths."""
    torch.manual_seed(7)
    skew = torch.randn(120, 120, dtype=D)
    turn = torch.linalg.matrix_exp(0.002 * step * (skew - skew.T))
    A = turn @ with_spectrum([30.0, *np.linspace(0, 3, 118).tolist(), -4.0]) @ turn.T
    return hessian(quadratic((A + A.T) / 2))


def test_warm_starts_save_products() -> None:
    last = lanczos(drifting(0), rtol=1e-2)
    cold = warm = 0
    for step in range(1, 6):
        H = drifting(step)
        exact = torch.linalg.eigvalsh(H.to_dense())
        last = lanczos(H, rtol=1e-2, start=last, seed=step)
        again = lanczos(drifting(step), rtol=1e-2, seed=step)
        warm, cold = warm + last.num_matvecs, cold + again.num_matvecs
        assert last.top.value == pytest.approx(float(exact[-1]), rel=1e-2)
        assert last.bottom.value == pytest.approx(float(exact[0]), rel=3e-2)
        assert (last.cold, last.certificate) == (False, None)
    assert warm < 0.7 * cold


def test_a_warm_start_never_claims_that_there_is_no_negative_curvature() -> None:
    H = operator([10.0, 1.0, 0.5, 0.2])
    cold = lanczos(H, rtol=1e-8)
    assert cold.negative_curvature == "none below -tau"
    assert lanczos(H, start=cold).negative_curvature == "unknown"


def test_an_exact_warm_start_goes_on_until_it_has_both_ends() -> None:
    A = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0, -1.0], dtype=D))
    top_only = lanczos(hessian(quadratic(A)), ends="top", rtol=1e-12)
    found = lanczos(hessian(quadratic(A)), start=top_only, rtol=1e-8)
    assert found.top.value == pytest.approx(4.0)
    assert found.bottom.value == pytest.approx(-1.0)


def test_same_seed_same_spectrum_and_global_random_state_untouched() -> None:
    before = torch.get_rng_state()
    first, second = (spectrum_of(np.linspace(-1, 9, 50).tolist(), seed=3) for _ in range(2))
    assert first.ritz_values == second.ritz_values
    assert first.provenance.seed == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_float32_model_reaches_three_digits() -> None:
    found = lanczos(operator([10.0, *np.linspace(-2, 3, 80).tolist()], torch.float32), rtol=1e-3)
    assert found.converged
    assert found.top.value == pytest.approx(10.0, rel=1e-4)
    assert found.provenance.dtype == "float32"


# --- minibatches ---------------------------------------------------------------------------------------------------


def test_minibatch_ends_are_biased_outwards() -> None:
    torch.manual_seed(0)
    X = torch.randn(24, 5, dtype=D)
    whole = lanczos(hessian(linear_regression(X, torch.zeros(24, 1, dtype=D))), rtol=1e-8)

    def mean_top(size: int) -> float:
        parts = [linear_regression(x, torch.zeros(len(x), 1, dtype=D)) for x in X.split(size)]
        return sum(lanczos(hessian(part), rtol=1e-8).top.value for part in parts) / len(parts)

    assert mean_top(1) == pytest.approx(2 * float(X.square().sum()) / 24)  # tr(H) exactly
    assert mean_top(1) >= mean_top(6) >= whole.top.value


# --- what a user sees ----------------------------------------------------------------------------------------------


def test_printing_shows_errors_cost_and_verdict() -> None:
    text = str(spectrum_of([5.0, 1.0, -2.0], rtol=1e-6))
    for part in ("3 products", "GE", "cold start", "top 1     5 ±", "bottom 1  -2 ±", "certified"):
        assert part in text


def test_wrong_usage_names_the_fix() -> None:
    H = operator([2.0, 1.0])
    for options, message in [
        ({"k": 3}, "between 1 and the number of parameters, 2"),
        ({"k": 0}, "between 1"),
        ({"ends": "middle"}, "'both', 'top' or 'bottom'"),
        ({"rtol": 0.0}, "must be positive"),
        ({"max_matvecs": 0}, "at least 1"),
        ({"start": spectrum_of([1.0, 2.0, 3.0])}, "other shapes"),
    ]:
        with pytest.raises(ValueError, match=message):
            lanczos(H, **options)
