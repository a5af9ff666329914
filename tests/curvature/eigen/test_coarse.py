"""A start from a part of the data: it may save products, and it must never decide the answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optland.batches import thin
from optland.curvature import hessian, lanczos
from optland.curvature.eigen.coarse import LEAST_STRIDE, PART_SAMPLES, coarse_start, thinned_samples
from optland.objective import Objective
from optland.problems import linear_regression
from optland.problems.networks import linear_regression_hessian

N, D = LEAST_STRIDE * PART_SAMPLES, 200


def regression(scales: torch.Tensor, every: int = 1) -> tuple[Objective, torch.Tensor]:
    """Inputs whose directions have these scales, on the rows 0, every, 2 every, ... only; and the exact Hessian."""
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(N, D, generator=generator, dtype=torch.float64)
    rows = torch.arange(N) % every == 0
    X = torch.where(rows[:, None], X * scales, X)
    return linear_regression(X, torch.zeros(N, 1, dtype=torch.float64)), linear_regression_hessian(X, 1)


def outlying() -> torch.Tensor:
    scales = torch.ones(D, dtype=torch.float64)
    scales[:3] = torch.tensor([4.0, 3.5, 3.0])
    return scales


def test_the_start_lies_near_the_top_and_is_paid_for() -> None:
    L, exact = regression(outlying())
    top = torch.linalg.eigh(exact).eigenvectors[:, -1]
    with hessian(L) as H:
        start = coarse_start(H, 1, seed=5)
        assert start is not None
        assert abs(float(start[0].reshape(-1) @ top)) > 0.4 > 5 / D**0.5
        assert H.num_matvecs == 0
        # The comparison of second derivatives included, which is made on a part of the data too.
        assert 0 < H.cost_ge == L.cost_ge < 2.75 * N


def test_it_saves_products_where_the_part_is_like_the_whole() -> None:
    L, exact = regression(outlying())
    truth = float(torch.linalg.eigvalsh(exact)[-1])
    used: dict[Any, int] = {None: 0, "random": 0}
    for seed in range(10):
        for start in used:
            with hessian(L) as H:
                found = lanczos(H, ends="top", start=start, stop="value", seed=seed)
            assert found.top.converged
            assert found.top.value == pytest.approx(truth, rel=1e-2)
            used[start] += found.num_matvecs
    assert used[None] < 0.9 * used["random"]


@pytest.mark.parametrize("seed", range(20))
def test_a_part_that_points_elsewhere_decides_nothing(seed: int) -> None:
    """The rows that the part consists of have a large direction of their own; that of all others is larger."""
    L, _ = regression(outlying(), every=LEAST_STRIDE)
    (X, Y), last = L.batches[0], D - 1
    X = X.clone()
    X[torch.arange(N) % LEAST_STRIDE != 0, last] *= 3.0
    L = linear_regression(X, Y)
    exact = torch.linalg.eigvalsh(linear_regression_hessian(X, 1))
    assert (
        torch.linalg.eigh(linear_regression_hessian(thin(X, LEAST_STRIDE), 1)).eigenvectors[last, -1].abs()
        < 0.1
    )
    with hessian(L) as H:
        found = lanczos(H, ends="top", seed=seed)
    assert found.top.value == pytest.approx(float(exact[-1]), rel=1e-2)
    assert found.certificate is not None
    reach = found.certificate * float(exact[-1] - exact[0])
    assert float(exact[-1]) - found.top.value <= reach
    assert found.bottom.value - float(exact[0]) <= reach


def test_the_certificate_is_weaker_than_that_of_a_random_start_with_as_many_products() -> None:
    L, _ = regression(outlying())
    found = []
    for start in (None, "random"):
        with hessian(L) as H:
            found.append(lanczos(H, ends="top", start=start, rtol=1e-12, max_matvecs=12))
    turned, random = (f.certificate for f in found)
    assert turned is not None
    assert random is not None
    assert found[0].num_matvecs == found[1].num_matvecs == 12
    assert random < turned < 1


def test_the_declared_cost_covers_it() -> None:
    L, _ = regression(outlying())
    spent = L.cost_ge
    with hessian(L) as H:
        found = lanczos(H, ends="top", max_matvecs=8, rtol=1e-12)
    assert L.cost_ge - spent == pytest.approx(found.cost_ge)
    assert found.cost_ge <= lanczos.cost(L, 8, ends="top")
    assert found.cost_ge > H.setup_ge + 8 * H.product_ge


def test_few_samples_streams_and_uncountable_batches_have_no_such_start() -> None:
    few = linear_regression(torch.eye(8), torch.ones(8, 1))
    L, _ = regression(outlying())
    streamed = Objective(L.model, L.loss_fn, _Stream(L.batches))
    wrapped = Objective(
        L.model,
        lambda model, batch: ((model(batch.x) - 1).square().sum(), N),
        [_Opaque(L.batches[0][0])],
        num_samples=N,
    )
    for objective in (few, streamed, wrapped):
        assert thinned_samples(objective) == 0
        with hessian(objective) as H:
            assert coarse_start(H, 1, seed=0) is None
            assert lanczos(H, ends="top").top.converged
    assert thinned_samples(L) == PART_SAMPLES


class _Stream:
    """Batches that come one by one."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


class _Opaque:
    """A batch of a type that nobody can count."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


def test_the_value_stop_needs_fewer_products_and_says_the_residual_it_has() -> None:
    L, exact = regression(outlying())
    truth = float(torch.linalg.eigvalsh(exact)[-1])
    with hessian(L) as H:
        careful = lanczos(H, ends="top", seed=1)
        quick = lanczos(H, ends="top", seed=1, stop="value")
    assert quick.num_matvecs < careful.num_matvecs
    assert abs(quick.top.value - truth) <= quick.value_errors[0] <= 0.01 * truth
    assert quick.top.converged
    assert 0.01 * truth < quick.top.error <= 0.03 * truth
