"""Test vectors of their own for parts of the data, against dense Hessians of the whole and of every part."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiers import slow
from torch import Tensor, nn

from optland.curvature import density, hessian, lanczos
from optland.curvature.operators.hessian import Method
from optland.curvature.stochastic.deflation import Deflation
from optland.curvature.stochastic.parts import Parts, agree, parts_of, sample
from optland.curvature.stochastic.random_vectors import RandomVectors
from optland.curvature.stochastic.trace import trace, trace_per_layer
from optland.objective import Objective

D = torch.float64
Loss = Callable[[nn.Module, Any], Any]


def mean_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def counted_loss(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """A label of -100 does not count, so parts of equal size weigh differently."""
    output, target = model(batch[0]), batch[1]
    target = torch.where(batch[0][:, 0] > 0.8, -100, target)
    return F.cross_entropy(output, target, reduction="sum"), (target >= 0).sum()


def pairwise_loss(model: nn.Module, batch: Any) -> Tensor:
    """Compares samples with one another, so no sum over them."""
    output = model(batch[0])
    return (output @ output.T).square().mean()


def objective(sizes: tuple[int, ...] = (40,), loss: Loss = mean_loss, mode: Any = "eval") -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3)).double()
    batches = [(torch.randn(n, 4, dtype=D), torch.randint(3, (n,))) for n in sizes]
    return Objective(model, loss, batches, mode=mode)


@cache
def dense(sizes: tuple[int, ...], loss: Loss) -> Tensor:
    return hessian(objective(sizes, loss)).to_dense()


def parts_after_a_product(L: Objective, method: Method = "auto") -> Parts | None:
    H = hessian(L, method=method)
    H.matvec([torch.ones_like(t) for t in H.like])
    return parts_of(H)


@pytest.mark.parametrize("loss", [mean_loss, counted_loss])
@pytest.mark.parametrize("sizes", [(40,), (25, 9, 6), (3,) * 20])
def test_the_parts_add_up_to_the_matrix(sizes: tuple[int, ...], loss: Loss) -> None:
    parts = parts_after_a_product(objective(sizes, loss))
    assert parts is not None
    assert 12 <= len(parts) <= 16
    assert sum(parts.weights) == pytest.approx(1.0)
    A = dense(sizes, loss)
    w = RandomVectors([torch.zeros(len(A), dtype=D)], 0).next()
    torch.testing.assert_close(parts.together(w), A @ w)


def written_out(parts: Parts, d: int) -> list[Tensor]:
    """The matrices omega_b A_b."""
    eye = torch.eye(d, dtype=D)
    return [torch.stack([parts._product(b, e) for e in eye]) for b in range(len(parts))]


def product_of_each(blocks: list[Tensor], W: Tensor) -> Tensor:
    """A vector of its own for every part."""
    return torch.stack([A @ w for A, w in zip(blocks, W, strict=True)])


def test_the_variance_is_that_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples multiply by the matrices of the parts, written out: the formula is about how they are drawn."""
    L = objective()
    parts = parts_after_a_product(L)
    assert parts is not None
    like = torch.zeros(dense((40,), mean_loss).shape[0], dtype=D)
    blocks = written_out(parts, len(like))
    variance = 2 * sum(float(A.square().sum() - A.diagonal().square().sum()) for A in blocks)
    square = sum(blocks).square().sum()
    vectors, draws = RandomVectors([like], 0), 500
    W = torch.stack([vectors.next() for _ in blocks])
    torch.testing.assert_close(parts.apart(W), product_of_each(blocks, W))
    monkeypatch.setattr(parts, "apart", lambda W: product_of_each(blocks, W))
    K = Deflation(like, 0)
    drawn = [
        sample(parts, [vectors.next() for _ in blocks], K.project, torch.zeros_like) for _ in range(draws)
    ]
    totals, squares = np.array([float(x.sum()) for x, _, _ in drawn]), np.array([s for _, s, _ in drawn])
    assert totals.var() == pytest.approx(variance, rel=0.3)  # four of its standard errors
    assert abs(totals.mean() - float(sum(blocks).trace())) < 4 * np.sqrt(variance / draws)
    assert abs(squares.mean() - float(square)) < 4 * squares.std() / np.sqrt(draws)
    whole = sum(blocks)
    together = 2 * float(whole.square().sum() - whole.diagonal().square().sum())
    assert variance < 0.7 * together


@pytest.mark.parametrize(
    ("loss", "warm", "by_matrices"),
    [
        (counted_loss, True, True),
        *slow(*((loss, warm, False) for loss in (mean_loss, counted_loss) for warm in (True, False))),
    ],
)
def test_trace_layers_and_norm_are_unbiased_and_intervals_cover(
    loss: Loss, warm: bool, by_matrices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws and estimates are those of the package, also where a part multiplies by its matrix, written out."""
    seeds = 60
    if by_matrices:
        parts = parts_after_a_product(objective((25, 15), loss))
        assert parts is not None
        blocks = written_out(parts, len(dense((25, 15), loss)))
        monkeypatch.setattr(Parts, "_product", lambda _, b, w: blocks[b] @ w)
    L = objective((25, 15), loss)
    A = dense((25, 15), loss)
    start = lanczos(hessian(L), k=2) if warm else None
    totals, layer, squares, inside = [], [], [], 0
    for seed in range(seeds):
        found = trace_per_layer(hessian(L), max_matvecs=20, seed=seed, start=start)
        assert "parts" in found.total.note
        assert found.num_matvecs == 20
        low, high = found.interval(0.95)
        inside += low <= float(A.trace()) <= high
        totals.append(found.total.value)
        layer.append(found.per_layer["0.weight"].value)
        squares.append(found.frobenius.value)
    for values, truth in [
        (totals, A.trace()), (layer, A[:24, :24].trace()), (squares, A.square().sum()),
    ]:  # fmt: skip
        assert abs(np.mean(values) - float(truth)) < 4 * np.std(values, ddof=1) / np.sqrt(seeds)
    assert inside >= 0.85 * seeds


@pytest.mark.parametrize(
    ("L", "method"),
    [
        (objective(mode="train"), "auto"),  # its dropout masks depend on where the batch is cut
        (objective(), "finite_difference"),
        (objective((1,)), "auto"),
    ],
)
def test_what_cannot_be_cut_is_not(L: Objective, method: Method) -> None:
    assert parts_after_a_product(L, method) is None


def test_a_loss_that_compares_samples_is_found_out() -> None:
    L = objective((40,), pairwise_loss)
    parts = parts_after_a_product(L)
    assert parts is not None
    A, draws = dense((40,), pairwise_loss), RandomVectors([torch.zeros(51, dtype=D)], 3)
    w, v = draws.next(), draws.next()
    assert not agree(w, A @ w, v, parts.together(v))
    errors = []
    for seed in range(16):
        found = trace_per_layer(hessian(L), max_matvecs=20, seed=seed)
        assert "parts" not in found.total.note
        assert found.num_matvecs <= 20
        errors.append(found.total.value - float(A.trace()))
    assert abs(np.mean(errors)) < 4 * np.std(errors, ddof=1) / np.sqrt(len(errors))


@pytest.mark.parametrize("method", ["kept_graph", "double_backward"])
@pytest.mark.parametrize("products", [11, 12, 30])
def test_the_cost_is_within_what_was_declared(method: Method, products: int) -> None:
    L = objective((25, 15))
    before, declared = L.cost_ge, trace.cost(L, products, method=method)
    found = trace_per_layer(hessian(L, method=method), max_matvecs=products)
    assert ("parts" in found.total.note) == (products >= 12)
    assert found.num_matvecs == products
    assert found.cost_ge == pytest.approx(L.cost_ge - before)
    assert found.cost_ge <= declared


def test_the_space_grows_while_outliers_are_found_and_no_longer() -> None:
    L = objective()
    sizes = {trace_per_layer(hessian(L), max_matvecs=30, seed=seed).basis_size for seed in range(3)}
    assert all(8 <= size <= 18 for size in sizes)


def test_looking_leaves_no_graph_behind() -> None:
    L = objective()
    H = hessian(L)
    trace_per_layer(H, max_matvecs=20)
    density(H, num_steps=3, num_starts=1)  # the operator itself goes on
    assert all(p.grad is None for p in L.params)
