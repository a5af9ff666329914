"""Operators of one's own, and the products that every operator gives: against matrices that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optland import vectors
from optland.curvature import (
    FunctionOperator,
    SpectrumTracker,
    SymmetricOperator,
    density,
    diagonal,
    fisher,
    frobenius,
    ggn,
    hessian,
    in_metric,
    lanczos,
    per_layer,
    power_iteration,
    preconditioned,
    spectral_summary,
    subset,
    trace,
    trace_per_layer,
)
from optland.curvature.operators.transforms import shifted
from optland.objective import Objective
from optland.problems import quadratic, saddle, with_spectrum

D = torch.float64
VALUES = [9.0, 5.0, *[0.3] * 20, 0.1, -2.0]


def matrix(seed: int = 0) -> Tensor:
    return with_spectrum(VALUES, seed=seed)


def flat(A: Tensor) -> FunctionOperator:
    return FunctionOperator(lambda v: A @ v, like=A[0])


def in_pieces(A: Tensor) -> FunctionOperator:
    """The same matrix on vectors of three tensors."""
    like = [torch.zeros(2, 3, dtype=D), torch.zeros((), dtype=D), torch.zeros(len(A) - 7, dtype=D)]

    def multiply(v: list[Tensor]) -> list[Tensor]:
        product = A @ torch.cat([t.reshape(-1) for t in v])
        parts = product.split([t.numel() for t in like])
        return [part.reshape(t.shape) for part, t in zip(parts, like, strict=True)]

    return FunctionOperator(multiply, like)


class LowRank(SymmetricOperator):
    """U U' for a tall matrix U."""

    def __init__(self, U: Tensor) -> None:
        super().__init__()
        self.U = U

    @property
    def like(self) -> list[Tensor]:
        return [self.U[:, 0]]

    def _matvec(self, v: Any) -> list[Tensor]:
        return [self.U @ (self.U.T @ v[0])]


def classifier(dtype: torch.dtype = D) -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    batch = (torch.randn(16, 4, dtype=dtype), torch.randint(0, 3, (16,)))
    return Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [batch])


@pytest.mark.parametrize("make", [flat, in_pieces])
@pytest.mark.parametrize("seed", range(3))
def test_the_eigenvalues_of_a_function_are_those_of_numpy_within_the_stated_error(
    make: Any, seed: int
) -> None:
    A = matrix(seed)
    exact = np.linalg.eigvalsh(A.numpy())
    found = lanczos(make(A), k=2, ends="both", seed=seed)
    assert found.converged
    assert len(found.values) == 4
    for value, vector in zip(found.values, found.vectors, strict=True):
        assert np.abs(exact - value.value).min() <= value.error + 1e-12
        v = torch.cat([t.reshape(-1) for t in vector])
        assert float((A @ v - value.value * v).norm()) <= value.error + 1e-12
    assert found.top.value == pytest.approx(9.0, rel=1e-2)
    assert found.bottom.value == pytest.approx(-2.0, rel=1e-2)


@pytest.mark.parametrize("make", [flat, in_pieces])
def test_what_needs_products_alone_takes_a_function(make: Any) -> None:
    A = matrix()
    assert trace(make(A), max_matvecs=len(A)).value == pytest.approx(sum(VALUES))
    few = trace(make(A), max_matvecs=12)
    assert abs(few.value - sum(VALUES)) <= 5 * few.error
    assert frobenius(make(A), max_matvecs=len(A)).value == pytest.approx(float(A.square().sum()))
    assert torch.cat([t.reshape(-1) for t in diagonal(make(A), max_matvecs=len(A)).values]).tolist() == (
        pytest.approx(A.diagonal().tolist())
    )
    shape = density(make(A), num_steps=len(A), num_starts=2)
    assert shape.d == len(A)
    assert [round(spike.value.value, 6) for spike in shape.outliers][:2] == [9.0, 5.0]
    summary = spectral_summary(make(A))
    assert summary.trace.value == pytest.approx(sum(VALUES))
    assert power_iteration(make(A), 200, rtol=1e-8).value.value == pytest.approx(9.0, rel=1e-6)
    tracker = SpectrumTracker()
    first, second = tracker.probe(make(A)), tracker.probe(make(A))
    assert second.spectrum.top.value == pytest.approx(first.spectrum.top.value, rel=1e-2)
    assert torch.equal(make(A).to_dense(), A)
    assert make(A).check().passed


def test_a_function_of_several_tensors_has_a_trace_of_each() -> None:
    A = matrix()
    layers = trace_per_layer(in_pieces(A), max_matvecs=len(A)).per_layer
    blocks = A.diagonal().split([6, 1, len(A) - 7])
    assert {name: value.value for name, value in layers.items()} == pytest.approx(
        {f"block {i}": float(block.sum()) for i, block in enumerate(blocks)}
    )


def test_an_operator_in_ten_lines() -> None:
    U = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]], dtype=D)
    H = LowRank(U)
    assert H.to_dense().tolist() == (U @ U.T).tolist()
    found = lanczos(H, k=3, ends="top")
    assert [value.value for value in found.values] == pytest.approx([9.0, 4.0, 0.0], abs=1e-12)
    assert trace(H, max_matvecs=3).value == pytest.approx(13.0)
    assert H.check().passed
    assert "LowRank" in repr(H)
    assert found.top.provenance.dtype == "float64"


def test_an_operator_that_lacks_its_product_cannot_be_made() -> None:
    class Nothing(SymmetricOperator):
        @property
        def like(self) -> list[Tensor]:
            return [torch.zeros(2)]

    for cls in (SymmetricOperator, Nothing):
        with pytest.raises(TypeError, match="abstract"):
            cls()  # type: ignore[abstract]


def test_transforms_of_a_function_are_those_of_its_matrix() -> None:
    A, like = matrix(), in_pieces(matrix()).like
    d = torch.linspace(0.5, 2.0, len(A), dtype=D)
    D_ = [part.reshape(t.shape) for part, t in zip(d.split([6, 1, len(A) - 7]), like, strict=True)]
    torch.testing.assert_close(in_metric(in_pieces(A), D_).to_dense(), d[:, None] * A * d)
    torch.testing.assert_close(preconditioned(in_pieces(A), D_).to_dense(), A / (d[:, None] * d).sqrt())
    torch.testing.assert_close(shifted(in_pieces(A), 0.5).to_dense(), A + 0.5 * torch.eye(len(A), dtype=D))
    block = subset(shifted(in_pieces(A), 0.5), ["block 2", "block 0"])
    kept = [*range(6), *range(7, len(A))]
    torch.testing.assert_close(block.to_dense(), A[kept][:, kept] + 0.5 * torch.eye(len(kept), dtype=D))
    assert block.names == ["block 0", "block 2"]


def test_a_block_of_a_function_costs_products_with_the_whole() -> None:
    A = matrix()
    H = FunctionOperator(in_pieces(A).fn, in_pieces(A).like, product_ge=3.0)
    block = H.restricted([1])
    assert block.to_dense().tolist() == [[float(A[6, 6])]]
    assert (block.cost_ge, H.cost_ge, H.num_matvecs) == (3.0, 3.0, 1)
    for wrong in ([], [0, 0], [3], [-1]):
        with pytest.raises(ValueError, match="different positions of the 3 tensors"):
            H.restricted(wrong)


def test_what_needs_an_objective_says_so() -> None:
    H = flat(matrix())
    optimizer = torch.optim.SGD(H.like, lr=0.1)
    for act in (
        lambda: preconditioned(H, optimizer),
        lambda: in_metric(H, "weights"),
    ):
        with pytest.raises(ValueError, match="curvature of no objective"):
            act()


OPERATORS: dict[str, Any] = {
    "hessian": lambda L: hessian(L),
    "finite differences": lambda L: hessian(L, method="finite_difference"),
    "ggn": lambda L: ggn(L),
    "fisher": lambda L: fisher(L),
    "shifted": lambda L: shifted(hessian(L), 0.5),
    "in a metric": lambda L: in_metric(hessian(L), "weights"),
    "a layer": lambda L: per_layer(ggn(L))["0"],
}


@pytest.mark.parametrize("name", OPERATORS)
def test_at_gives_the_dense_product_of_a_list_and_of_a_flat_vector(name: str) -> None:
    H = OPERATORS[name](classifier())
    assert isinstance(H, SymmetricOperator)
    dense = H.to_dense()
    v = torch.randn(H.dim, dtype=D, generator=torch.Generator().manual_seed(1))
    product = H @ v
    assert product.shape == (H.dim,)
    tolerance = 1e-6 if name == "finite differences" else 1e-10
    torch.testing.assert_close(product, dense @ v, rtol=tolerance, atol=tolerance)
    parts = [
        part.reshape(t.shape) for part, t in zip(v.split([t.numel() for t in H.like]), H.like, strict=True)
    ]
    listed = H @ parts
    assert [t.shape for t in listed] == [t.shape for t in H.like]
    torch.testing.assert_close(torch.cat([t.reshape(-1) for t in listed]), product)


def test_at_is_counted_and_charged_like_any_product() -> None:
    L = classifier()
    H, before = hessian(L), L.cost_ge
    H.matvec([torch.ones_like(p) for p in L.params])
    first = H.cost_ge
    H @ [torch.ones_like(p) for p in L.params]
    assert H.cost_ge - first == H.product_ge
    H @ torch.ones(H.dim, dtype=D)
    assert H.num_matvecs == 3
    assert H.cost_ge == pytest.approx(first + 2 * H.product_ge)
    assert L.cost_ge - before == pytest.approx(H.cost_ge)


def test_at_gives_half_precision_vectors_in_float32() -> None:
    A = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    H = flat(A)
    assert (H @ torch.ones(2)).dtype is torch.float32
    assert (H @ [torch.ones(2, dtype=torch.bfloat16)])[0].dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("v", "kind", "says"),
    [
        (torch.ones(3), ValueError, r"this \(2, 2\) matrix by a tensor of shape \(3,\).*flat vector of 2 entries"),
        (torch.ones(2, 2), ValueError, r"\(2, 2\); pass a flat vector of 2"),
        ([torch.ones(2), torch.ones(1)], ValueError, r"of shapes \[\(2,\), \(1,\)\].*of shapes \[\(2,\)\]"),
        ([], ValueError, r"shapes \[\]"),
        (np.ones(2), TypeError, "by a ndarray"),
        (2.0, TypeError, "by a float"),
        ([1.0, 2.0], TypeError, "by a list"),
        (torch.ones(2, dtype=torch.complex64), TypeError, "complex"),
        ([torch.ones(2, dtype=torch.complex64)], TypeError, "complex"),
    ],
)  # fmt: skip
def test_at_refuses_what_is_no_vector_and_names_the_sizes(v: Any, kind: type[Exception], says: str) -> None:
    H = hessian(saddle())
    with pytest.raises(kind, match=says):
        H @ v
    assert H.num_matvecs == 0


def test_long_lists_of_shapes_are_cut_short() -> None:
    H = FunctionOperator(list, [torch.zeros(1)] * 9)
    with pytest.raises(ValueError, match=r"9 in all"):
        H @ torch.ones(3)


@pytest.mark.parametrize(
    ("fn", "like", "says"),
    [
        (lambda v: torch.ones(3), torch.zeros(2), r"shapes and types \[\(\(2,\), torch.float32\)\]"),
        (lambda v: v.double(), torch.zeros(2), "torch.float64"),
        (lambda v: v[:1], [torch.zeros(2), torch.zeros(1)], "must give tensors of shapes"),
    ],
)
def test_a_product_of_another_shape_or_type_is_refused(fn: Any, like: Any, says: str) -> None:
    H = FunctionOperator(fn, like)
    with pytest.raises(ValueError, match=says):
        H.matvec([torch.ones_like(t) for t in H.like])
    assert H.num_matvecs == 0


@pytest.mark.parametrize(
    ("fn", "like", "says"),
    [
        (lambda v: [v], torch.zeros(2), "gave a list; like is one tensor"),
        (lambda v: None, torch.zeros(2), "gave a NoneType"),
        (lambda v: v[0], [torch.zeros(2)], "gave a Tensor; like is a list of tensors"),
        (lambda v: None, [torch.zeros(2)], "gave a NoneType; like is a list"),
    ],
)
def test_a_function_gives_what_it_takes(fn: Any, like: Any, says: str) -> None:
    H = FunctionOperator(fn, like)
    with pytest.raises(TypeError, match=says):
        H.matvec([torch.ones_like(t) for t in H.like])


@pytest.mark.parametrize(
    ("like", "kind", "says"),
    [
        (torch.zeros(2, dtype=torch.int64), TypeError, "int64"),
        (torch.zeros(2, dtype=torch.complex64), TypeError, "complex64"),
        ([1.0], TypeError, "float"),
        ([], ValueError, "no entries"),
        (torch.zeros(0), ValueError, "no entries"),
    ],
)
def test_like_is_of_real_vectors(like: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        FunctionOperator(lambda v: v, like)


def test_a_function_that_gives_its_argument_or_what_it_keeps_spoils_nothing() -> None:
    same = FunctionOperator(lambda v: v, torch.zeros(4, dtype=D))
    v = [torch.ones(4, dtype=D)]
    same.matvec(v)[0].zero_()
    assert v[0].tolist() == [1.0] * 4
    assert lanczos(same, k=1).top.value == pytest.approx(1.0)
    kept = torch.zeros(3, dtype=D)
    A = torch.diag(torch.tensor([3.0, 2.0, -1.0], dtype=D))
    reused = FunctionOperator(lambda v: torch.mv(A, v, out=kept), kept)
    found = lanczos(reused, k=1, ends="both")
    assert [value.value for value in found.values] == pytest.approx([3.0, -1.0])


def test_a_hessian_product_of_ones_own_by_autograd() -> None:
    L = classifier()
    params = list(L.model.parameters())
    x, y = L.batches[0]

    def multiply(v: list[Tensor]) -> tuple[Tensor, ...]:
        loss = F.cross_entropy(L.model(x), y)
        gradient = torch.autograd.grad(loss, params, create_graph=True)
        return torch.autograd.grad(gradient, params, v)

    own = FunctionOperator(multiply, L.model.parameters(), product_ge=4.0 * len(x))
    with torch.no_grad():
        found = lanczos(own, k=2)
    expected = lanczos(hessian(L), k=2)
    assert [v.value for v in found.values] == pytest.approx([v.value for v in expected.values], rel=1e-9)
    assert found.cost_ge == 64.0 * found.num_matvecs
    assert not any(t.requires_grad for t in own.matvec(params))


def test_a_function_that_is_not_symmetric_fails_the_check_and_is_not_called_converged() -> None:
    A = torch.tensor([[1.0, 5.0], [0.0, 2.0]], dtype=D)
    H = flat(A)
    assert not H.check().passed
    assert not lanczos(H, k=1).converged


def test_scipy_takes_a_function_too() -> None:
    from scipy.sparse.linalg import eigsh

    A = matrix()
    H = in_pieces(A)
    values = eigsh(H.to_scipy(), k=2, which="BE", return_eigenvectors=False, v0=np.ones(len(A)))
    np.testing.assert_allclose(sorted(values), [-2.0, 9.0], rtol=1e-9)
    assert H.num_matvecs > 0


def test_a_closed_function_gives_no_products() -> None:
    with flat(matrix()) as H:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        H @ torch.ones(H.dim, dtype=D)


def test_a_function_costs_nothing_on_an_objective_that_it_does_not_belong_to() -> None:
    L = quadratic(matrix())
    before = L.cost_ge
    H = flat(matrix())
    trace(H, max_matvecs=5)
    assert (H.cost_ge, L.cost_ge) == (0.0, before)
    assert H.num_matvecs == 5


@pytest.mark.parametrize("seed", range(8))
def test_a_vector_that_the_matrix_hardly_sees_does_not_fail_the_check(seed: int) -> None:
    """Rounding is that of the longer of both products: M M' with M orthogonal to the first vector of the check."""
    like = torch.zeros(200, dtype=D)
    (u,) = vectors.random_unit([like], 0)
    M = torch.randn(200, 20, dtype=D, generator=torch.Generator().manual_seed(seed))
    M = M - u[:, None] * (u @ M)
    H = FunctionOperator(lambda v: M @ (M.T @ v), like)
    assert float((H @ u).norm()) < 1e-12
    assert H.check().passed
