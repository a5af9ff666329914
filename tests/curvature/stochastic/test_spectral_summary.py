"""The summary of a spectrum against numpy on the true eigenvalues."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from optland.curvature.eigen.eigenvalues import eigenvalues, share_below
from optland.curvature.operators.hessian import hessian
from optland.curvature.stochastic.spectral_summary import spectral_summary
from optland.objective import Objective
from optland.problems import function_objective, linear_network, linear_regression, quadratic, with_spectrum

D = torch.float64


def diagonal(eigenvalues: Tensor | np.ndarray | list[float]) -> Objective:
    lam = torch.as_tensor(eigenvalues, dtype=D)
    return function_objective(lambda w: 0.5 * (lam * w * w).sum(), torch.zeros_like(lam))


def test_exact_numbers_of_a_small_matrix() -> None:
    lam = [7.0, 3.0, 1.0, 0.5, -2.0]
    s = spectral_summary(hessian(quadratic(with_spectrum(lam, seed=1))))
    assert s.exact
    for found, expected in [
        (s.smallest, -2.0),
        (s.largest, 7.0),
        (s.mean, np.mean(lam)),
        (s.median, 1.0),
        (s.std, np.std(lam)),
        (s.condition, 14.0),
        (s.fraction_negative, 0.2),
        (s.trace, 9.5),
        (s.frobenius, np.linalg.norm(lam)),
    ]:
        assert found.value == pytest.approx(expected, rel=1e-12)
        assert found.converged
    assert (s.sign, s.num_matvecs) == ("indefinite", 5)


def test_network_against_the_dense_hessian(
    mlp: Objective, dense_hessian: Callable[[Objective], Tensor]
) -> None:
    lam = torch.linalg.eigvalsh(dense_hessian(mlp)).numpy()
    s = spectral_summary(hessian(mlp))
    assert s.smallest.value == pytest.approx(lam[0], abs=1e-12)
    assert s.trace.value == pytest.approx(lam.sum(), rel=1e-10)
    assert s.std.value == pytest.approx(lam.std(), rel=1e-10)
    assert s.median.value == pytest.approx(np.median(lam), abs=1e-12)
    assert s.fraction_negative.value == pytest.approx((lam < -s.tau).mean())


def test_linear_regression_in_closed_form() -> None:
    torch.manual_seed(0)
    X = torch.randn(30, 4, dtype=D)
    s = spectral_summary(hessian(linear_regression(X, torch.zeros(30, 2, dtype=D), sizes=[13, 17])))
    assert s.trace.value == pytest.approx(2 * float(X.square().sum()) / 30)
    assert s.condition.value == pytest.approx(float(torch.linalg.cond(X)) ** 2)
    assert s.sign == "positive definite"


@pytest.mark.parametrize(
    ("lam", "sign"),
    [
        ([2.0, 1.0], "positive definite"),
        ([2.0, 0.0], "positive semidefinite"),
        ([-2.0, -1.0], "negative definite"),
        ([-2.0, 0.0], "negative semidefinite"),
        ([-2.0, 1.0], "indefinite"),
        ([0.0, 0.0], "zero"),
        ([-1.0], "negative definite"),
    ],
)
def test_sign(lam: list[float], sign: str) -> None:
    s = spectral_summary(hessian(quadratic(with_spectrum(lam))))
    assert s.sign == sign
    assert s.fraction_negative.value == np.mean(np.array(lam) < 0)
    assert (s.condition.value == math.inf) == (0.0 in lam)


def network_like(d: int = 1500, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [[20.0, 12.0, 8.0, 5.0, 3.0], np.abs(rng.normal(0, 0.3, d - 105)), -rng.random(100) * 0.2]
    )


def test_estimates_cover_the_truth() -> None:
    lam = network_like()
    hits = {"mean": 0, "frobenius": 0, "std": 0, "fraction_negative": 0, "median": 0}
    truth = {
        "mean": lam.mean(),
        "frobenius": np.linalg.norm(lam),
        "std": lam.std(),
        "fraction_negative": (lam < 0).mean(),
        "median": np.median(lam),
    }
    H = hessian(diagonal(lam))
    for seed in range(12):
        s = spectral_summary(H, max_matvecs=60, seed=seed)
        assert (s.exact, s.num_matvecs <= 60, s.sign) == (False, True, "indefinite")
        for name in hits:
            found = getattr(s, name)
            width = 2.0 if found.error_kind == "standard_error" else 1.0
            hits[name] += abs(found.value - truth[name]) <= width * found.error
        assert s.trace.value == pytest.approx(1500 * s.mean.value)
    assert min(hits.values()) >= 10, hits


def test_estimated_moments_are_unbiased_and_their_errors_right() -> None:
    """The spread over seeds of the trace is the standard error that each estimate gives."""
    lam = np.linspace(-1, 3, 1200)
    H = hessian(diagonal(lam))
    found = [spectral_summary(H, max_matvecs=24, seed=seed).trace for seed in range(40)]
    values = np.array([f.value for f in found])
    error = np.mean([f.error for f in found])
    assert values.mean() == pytest.approx(lam.sum(), abs=4 * error / math.sqrt(40))
    assert 0.7 < values.std() / error < 1.4


def test_a_definite_matrix_too_large_to_form() -> None:
    lam = np.linspace(1.0, 2.0, 2000)
    s = spectral_summary(hessian(diagonal(lam)))
    assert (s.exact, s.sign) == (False, "positive definite")
    assert abs(s.condition.value - 2.0) <= s.condition.error
    assert s.condition.error_kind == "certificate"


def test_a_small_budget_shows_no_sign() -> None:
    s = spectral_summary(hessian(diagonal(np.arange(500.0))), max_matvecs=8)
    assert s.sign == "unknown"
    assert not s.condition.converged
    assert "NOT CONVERGED" in str(s)


def test_shares_are_enclosed_at_every_level() -> None:
    lam = network_like(1200)
    H = hessian(diagonal(lam))
    inside = []
    for seed in range(5):
        seen = eigenvalues(H, max_matvecs=40, seed=seed)
        for level in (-0.1, 0.0, 0.1, 0.3, 1.0, 6.0, 30.0):
            share, error = share_below(seen, level)
            inside.append(abs(share - (lam < level).mean()) <= error + 1e-12)
    assert np.mean(inside) >= 0.95


def test_an_invariant_space_holds_the_shares_exactly_up_to_the_draw() -> None:
    M = torch.diag(torch.tensor([2.0] + [0.0] * 19, dtype=D))
    seen = eigenvalues(
        hessian(linear_network(M, [30])), max_matvecs=6
    )  # 2 and -2, 30 times each, and 1140 zeros
    assert seen.certificate == 0.0
    share, error = share_below(seen, -1.0)
    assert abs(share - 30 / 1200) <= error
    assert error < 0.02


def test_cost_and_input() -> None:
    L = diagonal(np.arange(1.0, 1200.0))
    declared = spectral_summary.cost(L, 30)
    s = spectral_summary(hessian(L), max_matvecs=30)
    assert s.cost_ge <= declared
    assert s.cost_ge == L.cost_ge
    with pytest.raises(ValueError, match="at least 1"):
        spectral_summary(hessian(L), max_matvecs=0)


def test_not_finite() -> None:
    s = spectral_summary(
        hessian(function_objective(lambda w: (w * torch.inf).sum(), torch.zeros(2, dtype=D)))
    )
    assert s.sign == "unknown"
    for found in (s.smallest, s.mean, s.median, s.condition, s.trace, s.fraction_negative):
        assert math.isnan(found.value)
        assert not found.converged
