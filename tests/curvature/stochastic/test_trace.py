"""Trace and Frobenius norm against dense matrices, closed-form variances and the methods written out literally."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from optland import vectors
from optland.archive import load
from optland.curvature import SymmetricOperator, hessian, lanczos
from optland.curvature.stochastic.random_vectors import RandomVectors
from optland.curvature.stochastic.trace import Trace, frobenius, trace, trace_per_layer
from optland.estimate import Estimate
from optland.objective import Objective
from optland.problems import function_objective, linear_regression, with_spectrum

D = torch.float64
METHODS: list[Any] = ["auto", "krylov", "hutchinson", "hutch++"]
SLOW = pytest.mark.slow


class Dense(SymmetricOperator):
    """A given matrix, so that hundreds of seeds take a second."""

    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.A = A

    @property
    def like(self) -> list[Tensor]:
        return [self.A[0]]

    def _matvec(self, v: Any) -> list[Tensor]:
        self.cost_ge += 1.0
        return [self.A @ v[0]]


def five_outliers(seed: int = 0) -> Tensor:
    bulk = np.random.default_rng(seed).normal(0.0, 0.1, 495)
    return with_spectrum([50.0, 40.0, 30.0, 20.0, 10.0, *bulk.tolist()], seed=seed)


@cache
def trained_digits() -> tuple[Tensor, tuple[int, ...]]:
    """The dense Hessian of a small net on digits that was trained to convergence, and its layer sizes."""
    sklearn = pytest.importorskip("sklearn.datasets")
    x, y = sklearn.load_digits(return_X_y=True)
    X, Y = torch.as_tensor((x - x.mean()) / x.std(), dtype=D), torch.as_tensor(y)
    X = F.avg_pool2d(X.reshape(-1, 1, 8, 8), 2).flatten(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in torch.randint(0, len(X), (800, 64)):
        optimizer.zero_grad()
        F.cross_entropy(model(X[batch]), Y[batch]).backward()
        optimizer.step()
    objective = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(X[:200], Y[:200])])
    H = hessian(objective).to_dense()
    return (H + H.T) / 2, tuple(p.numel() for p in objective.params)


def runs(A: Tensor, seeds: int, **options: Any) -> list[Trace]:
    return [trace_per_layer(Dense(A), seed=seed, **options) for seed in range(seeds)]


def rms(found: list[Trace], exact: float) -> float:
    return math.sqrt(np.mean([(run.total.value - exact) ** 2 for run in found]))


# --- variances and errors -----------------------------------------------------------------------------------------


def test_hutchinson_has_its_closed_form_variance_and_reports_it() -> None:
    d, n = 60, 10
    A = with_spectrum(np.linspace(-1, 4, d).tolist()) + torch.diag(torch.linspace(0, 5, d, dtype=D))
    square, tr = float(A.square().sum()), float(A.trace())
    variance = 2 * (square - float(A.diagonal().square().sum()))
    found = runs(A, 250, method="hutchinson", max_matvecs=n)
    reported = np.mean([run.total.error**2 for run in found])
    assert rms(found, tr) ** 2 == pytest.approx(variance / n, rel=0.3)  # 250 squares: 9 % standard error
    assert reported == pytest.approx(variance / n, rel=0.1)
    assert np.mean([run.total.value for run in found]) == pytest.approx(
        tr, abs=4 * math.sqrt(variance / n / 250)
    )


@pytest.mark.parametrize(
    ("method", "spectrum", "seeds"),
    [
        ("auto", "decay", 50),
        ("krylov", "indefinite", 50),
        *(pytest.param(m, s, 200, marks=SLOW) for m in METHODS for s in ("outliers", "decay", "indefinite")),
    ],
)
def test_intervals_cover(method: Any, spectrum: str, seeds: int) -> None:
    eigenvalues = {
        "outliers": [50.0, 40.0, 30.0, 20.0, 10.0, *np.linspace(-0.5, 0.5, 115)],
        "decay": [1.0 / k for k in range(1, 121)],
        "indefinite": [*np.linspace(-1, 1, 100), 6.0, -5.0],
    }[spectrum]
    A = with_spectrum([float(x) for x in eigenvalues])
    exact = float(A.trace())
    inside = [
        low <= exact <= high for low, high in (run.interval(0.95) for run in runs(A, seeds, method=method))
    ]
    assert 0.90 <= np.mean(inside) <= (0.99 if seeds >= 200 else 1.0)


@pytest.mark.parametrize(
    ("method", "seeds"), [("auto", 60), *(pytest.param(m, 200, marks=SLOW) for m in METHODS)]
)
def test_a_trained_net(method: Any, seeds: int) -> None:
    A, _ = trained_digits()
    exact = float(A.trace())
    variance = 2 * float(A.square().sum() - A.diagonal().square().sum()) / 30
    found = runs(A, seeds, method=method)
    inside = np.mean([low <= exact <= high for low, high in (run.interval() for run in found)])
    assert 0.90 <= inside <= (0.99 if seeds >= 200 else 1.0)
    if method in ("auto", "krylov"):
        assert rms(found, exact) <= math.sqrt(variance) / 3
    assert all(run.num_matvecs == 30 for run in found[:5])
    square = float(A.square().sum())
    off = np.array([(run.frobenius.value - square) / max(run.frobenius.error, 1e-12) for run in found])
    assert np.mean(np.abs(off) <= stats.t.ppf(0.975, max(1, found[0].num_samples - 1))) >= 0.85


def test_five_outliers_and_a_bulk() -> None:
    A = five_outliers()
    exact = float(A.trace())
    error = {method: rms(runs(A, 20, method=method), exact) / exact for method in METHODS}
    assert 0.05 < error["hutchinson"] < 0.16  # ||A||_F sqrt(2/30) / tr A is 0.13 here
    assert max(error["hutch++"], error["auto"]) < 0.02
    assert error["auto"] < 1.2 * error["hutch++"]


def test_stopping_on_the_interval_keeps_its_promise() -> None:
    # Where the running mean rests at a tolerance of 1e-3 after some 34 samples, the error is still 13 %.
    A = with_spectrum(np.random.default_rng(0).normal(0.3, 1.0, 300).tolist())
    exact, tol = float(A.trace()), 0.1
    found = runs(A, 60, method="hutchinson", rtol=tol, max_matvecs=300)
    assert all(run.total.converged for run in found)
    assert np.mean([abs(run.total.value - exact) <= tol * abs(exact) for run in found]) >= 0.88
    assert np.median([run.num_matvecs for run in found]) > 34
    few = trace_per_layer(Dense(A), rtol=1e-3, max_matvecs=30)
    assert not few.total.converged
    assert "NOT CONVERGED" in str(few)


def test_a_tolerance_saves_products_but_never_the_first_samples() -> None:
    A = five_outliers()
    found = trace_per_layer(Dense(A), rtol=0.5, max_matvecs=30)
    assert found.total.converged
    assert found.num_samples == 8
    assert found.num_matvecs == 18 + 8


# --- literal oracles ----------------------------------------------------------------------------------------------


def test_rademacher_vectors() -> None:
    d, n, seed = 40, 8, 3
    draws = RandomVectors([torch.zeros(d, dtype=D)], seed)
    W = np.stack([draws.next().numpy() for _ in range(n)])
    assert set(np.unique(W)) == {-1.0, 1.0}
    assert np.abs(W @ W.T / d - np.eye(n)).max() < 0.6


def test_hutchpp_is_what_its_paper_says() -> None:
    A = with_spectrum(np.linspace(-1, 5, 40).tolist())
    draws, H = RandomVectors([A[0]], 3), A.numpy()
    Q, _ = np.linalg.qr(H @ np.stack([draws.next().numpy() for _ in range(4)], axis=1))
    P = np.eye(40) - Q @ Q.T
    probes = [draws.next().numpy() for _ in range(4)]
    literal = np.trace(Q.T @ H @ Q) + np.mean([w @ P @ H @ P @ w for w in probes])
    found = trace(Dense(A), method="hutch++", max_matvecs=12, seed=3)
    assert found.value == pytest.approx(literal, rel=1e-10)


def test_krylov_is_what_it_says() -> None:
    A = with_spectrum(np.linspace(-1, 5, 40).tolist())
    draws, H = RandomVectors([A[0]], 3), A.numpy()
    powers = [draws.direction().numpy()]
    for _ in range(5):
        powers.append(H @ powers[-1])
    Q, _ = np.linalg.qr(np.stack(powers, axis=1))
    P = np.eye(40) - Q @ Q.T
    probes = [draws.next().numpy() for _ in range(4)]
    literal = np.trace(Q.T @ H @ Q) + np.mean([w @ P @ H @ P @ w for w in probes])
    found = trace_per_layer(Dense(A), method="krylov", max_matvecs=10, seed=3)
    assert (found.basis_size, found.num_samples) == (6, 4)
    assert found.total.value == pytest.approx(literal, rel=1e-9)
    K = H - P @ H @ P
    square = (K**2).sum() + np.mean([(P @ H @ P @ w) @ (P @ H @ P @ w) for w in probes])
    assert found.frobenius.value == pytest.approx(square, rel=1e-9)


# --- special matrices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_a_diagonal_matrix_is_exact(dtype: torch.dtype) -> None:
    A = torch.diag(torch.linspace(-3, 7, 200, dtype=dtype))
    one = trace(Dense(A), method="hutchinson", max_matvecs=1)
    assert one.value == pytest.approx(float(A.trace()), rel=1e-5)
    assert math.isnan(one.error)
    assert not one.converged
    auto = trace_per_layer(Dense(A))
    assert auto.total.value == pytest.approx(float(A.trace()), rel=1e-5)
    assert (auto.total.error, auto.num_matvecs, auto.total.converged) == (0.0, 2, True)
    assert "diagonal" in auto.total.note
    assert auto.interval() == (auto.total.value, auto.total.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("d", [1, 2, 100])
def test_the_zero_matrix_and_small_ones(method: Any, d: int) -> None:
    zero = trace_per_layer(Dense(torch.zeros(d, d, dtype=D)), method=method)
    assert (zero.total.value, zero.total.error, zero.frobenius.value) == (0.0, 0.0, 0.0)
    A = torch.arange(1.0, d * d + 1, dtype=D).reshape(d, d)
    found = trace_per_layer(Dense((A + A.T) / 2), method=method, max_matvecs=30)
    half = 4 * found.total.error + 1e-9 * float(A.norm())
    assert abs(found.total.value - float(A.trace())) <= half  # rank two at most: known but for rounding
    if method == "auto" and d < 30:
        assert found.num_matvecs == d
        assert found.total.error == 0.0


@pytest.mark.parametrize("method", ["auto", "krylov", "hutch++"])
def test_low_rank_is_exact(method: Any) -> None:
    A = with_spectrum([9.0, 4.0, -5.0, *[0.0] * 97])
    found = trace_per_layer(Dense(A), method=method)
    assert found.total.value == pytest.approx(8.0, abs=1e-9)
    assert found.total.error < 1e-9
    assert found.frobenius.value == pytest.approx(122.0, rel=1e-9)


def test_multiples_of_the_identity_and_repeated_eigenvalues() -> None:
    assert trace(Dense(3.0 * torch.eye(50, dtype=D))).value == pytest.approx(150.0)
    found = trace(Dense(with_spectrum([5.0] * 50 + [1.0] * 50)), method="krylov")
    assert abs(found.value - 300.0) <= 5 * found.error


# --- real objectives ----------------------------------------------------------------------------------------------


def test_layers_add_up_and_agree_with_their_blocks(
    mlp: Objective, dense_hessian: Callable[[Objective], Tensor]
) -> None:
    A = dense_hessian(mlp)
    exact = torch.split(A.diagonal(), [p.numel() for p in mlp.params])
    full = trace_per_layer(hessian(mlp), max_matvecs=100)
    assert list(full.per_layer) == mlp.names
    for estimate, part in zip(full.per_layer.values(), exact, strict=True):
        assert estimate.value == pytest.approx(float(part.sum()), abs=1e-10)
    assert full.frobenius.value == pytest.approx(float(A.square().sum()), rel=1e-9)
    for method in METHODS[1:]:
        few = trace_per_layer(hessian(mlp), method=method, max_matvecs=24, seed=1)
        assert sum(part.value for part in few.per_layer.values()) == pytest.approx(few.total.value, rel=1e-9)
        for name, part in zip(few.per_layer, exact, strict=True):
            low, high = few.interval(0.9999, layer=name)
            assert low <= float(part.sum()) <= high


def test_layer_errors_on_a_trained_net() -> None:
    A, sizes = trained_digits()
    blocks = [list(part) for part in torch.split(torch.arange(len(A)), list(sizes))]
    exact = float(A.diagonal()[blocks[0]].sum())

    class Layered(Dense):
        @property
        def like(self) -> list[Tensor]:
            return list(torch.split(self.A[0], list(sizes)))

        def _matvec(self, v: Any) -> list[Tensor]:
            self.cost_ge += 1.0
            return list(torch.split(self.A @ vectors.flatten(v), list(sizes)))

    found = [trace_per_layer(Layered(A), seed=seed) for seed in range(40)]
    inside = [low <= exact <= high for low, high in (run.interval(layer="block 0") for run in found)]
    assert np.mean(inside) >= 0.88


def test_ragged_batches_are_weighted_by_their_counts() -> None:
    torch.manual_seed(0)
    X = torch.cat([torch.randn(9, 3, dtype=D), 10 * torch.ones(1, 3, dtype=D)])
    found = trace(hessian(linear_regression(X, torch.zeros(10, 1, dtype=D), sizes=[9, 1])))
    assert found.value == pytest.approx(2 * float(X.square().sum()) / 10, rel=1e-12)
    assert found.error == 0.0


def test_softmax_regression_at_zero_weights() -> None:
    X, C = torch.randn(30, 20, dtype=D, generator=torch.Generator().manual_seed(0)), 4
    model = nn.Linear(20, C, bias=False, dtype=D)
    nn.init.zeros_(model.weight)
    objective = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(X, torch.zeros(30).long())])
    found = trace_per_layer(hessian(objective), max_matvecs=80)
    assert found.total.value == pytest.approx((C - 1) * float(X.square().sum()) / (30 * C), rel=1e-10)


# --- warm starts --------------------------------------------------------------------------------------------------


def test_a_spectrum_is_a_free_control_variate_even_when_old() -> None:
    A = five_outliers()
    exact = float(A.trace())
    noise = torch.randn(500, 500, dtype=D, generator=torch.Generator().manual_seed(1))
    old = lanczos(Dense(A + 0.02 * (noise + noise.T)), k=5, ends="top", max_matvecs=40)
    plain = runs(A, 60, method="hutchinson", max_matvecs=12)
    helped = runs(A, 60, method="hutchinson", max_matvecs=12, start=old)
    assert all(run.num_matvecs == run.num_samples == 12 for run in helped)
    assert rms(helped, exact) < rms(plain, exact) / 5
    bias = np.mean([run.total.value for run in helped]) - exact
    assert abs(bias) <= 4 * rms(helped, exact) / math.sqrt(60)
    assert np.mean([run.total.error**2 for run in helped]) == pytest.approx(rms(helped, exact) ** 2, rel=0.5)
    assert helped[0].frobenius.value == pytest.approx(float(A.square().sum()), rel=0.05)


@pytest.mark.parametrize(
    ("method", "seeds"), [*((m, 30) for m in METHODS), *(pytest.param(m, 60, marks=SLOW) for m in METHODS)]
)
def test_wrong_eigenpairs_leave_every_method_unbiased(method: Any, seeds: int) -> None:
    A = with_spectrum([*np.linspace(-1, 1, 60), 9.0])
    wrong = lanczos(Dense(with_spectrum([*np.linspace(0, 1, 60), 20.0], seed=5)), k=2)
    found = runs(A, seeds, method=method, max_matvecs=16, start=wrong)
    mean, exact = np.mean([run.total.value for run in found]), float(A.trace())
    assert abs(mean - exact) <= 4 * rms(found, exact) / math.sqrt(seeds)
    square = np.array([run.frobenius.value for run in found])
    assert abs(square.mean() - float(A.square().sum())) <= 4 * square.std() / math.sqrt(seeds)


# --- budget, failures, files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [1, 2, 3, 5, 9])
def test_the_budget_is_never_exceeded(method: Any, budget: int) -> None:
    H = Dense(with_spectrum(np.linspace(-1, 3, 50).tolist()))
    found = trace_per_layer(H, method=method, max_matvecs=budget)
    assert found.num_matvecs == H.num_matvecs <= budget
    assert found.cost_ge == H.cost_ge
    if found.num_samples < 2:
        assert not found.total.converged
        assert "max_matvecs" in found.total.note


def test_cost_is_declared(mlp: Objective) -> None:
    H = hessian(mlp)
    found = trace(H, max_matvecs=12)
    assert 0 < found.cost_ge == H.cost_ge <= trace.cost(mlp, 12)
    assert found.provenance.seed == 0
    assert "Hessian" in found.provenance.method


@pytest.mark.parametrize("method", METHODS)
def test_products_that_are_not_finite_give_marked_nans(method: Any) -> None:
    def overflowed(w: Tensor) -> Tensor:
        return torch.where(w > 0, torch.inf, w).sum()

    found = trace(hessian(function_objective(overflowed, torch.ones(50, dtype=D))), method=method)
    assert math.isnan(found.value)
    assert not found.converged
    assert "not finite" in found.note


def test_same_seed_same_trace_and_global_random_state_untouched() -> None:
    A, before = five_outliers(), torch.get_rng_state()
    first, second, other = (trace(Dense(A), seed=seed) for seed in (1, 1, 2))
    assert first.value == second.value != other.value
    assert torch.equal(torch.get_rng_state(), before)


def test_float32_agrees_with_float64() -> None:
    A = five_outliers()
    for method in METHODS:
        wide, narrow = trace(Dense(A), method=method), trace(Dense(A.float()), method=method)
        assert narrow.value == pytest.approx(wide.value, rel=1e-4)


def test_finite_differences_agree_with_exact_products(mlp: Objective) -> None:
    exact = trace(hessian(mlp), method="krylov", max_matvecs=20)
    found = trace(hessian(mlp, method="finite_difference"), method="krylov", max_matvecs=20)
    assert found.value == pytest.approx(exact.value, rel=1e-3)


def test_save_and_load(mlp: Objective, tmp_path: Path) -> None:
    found = trace_per_layer(hessian(mlp), max_matvecs=12)
    found.save(tmp_path / "trace")
    assert Trace.load(tmp_path / "trace.json") == found
    with pytest.raises(TypeError, match="holds a Trace"):
        load(tmp_path / "trace", Estimate)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"method": "hutch"}, "method 'hutch'"),
        ({"max_matvecs": 0}, "max_matvecs=0"),
        ({"rtol": 0.0}, "rtol=0.0"),
        ({"start": lanczos(Dense(torch.eye(3, dtype=D)), k=1)}, "other shapes"),
    ],
)
def test_wrong_arguments_name_themselves(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        trace(Dense(torch.eye(40, dtype=D)), **options)


def test_unknown_layer() -> None:
    with pytest.raises(ValueError, match="layer 'head'"):
        trace_per_layer(Dense(torch.eye(3, dtype=D))).interval(layer="head")


def test_frobenius_is_the_sum_of_squared_eigenvalues() -> None:
    A = with_spectrum([10.0, -8.0, *np.linspace(-1, 1, 80)])
    found = frobenius(Dense(A), seed=4)
    assert abs(found.value - float(A.square().sum())) <= 4 * found.error
    assert found.error < 0.02 * found.value
