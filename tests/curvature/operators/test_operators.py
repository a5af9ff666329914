"""Hessian products against closed forms, against dense Hessians, and against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from optland import vectors
from optland.curvature import hessian
from optland.curvature.operators.hessian import declared_product_cost
from optland.curvature.operators.products import HVP_GE, SETUP_GE
from optland.objective import Objective
from optland.problems import function_objective, linear_regression, quadratic
from optland.problems.critical import two_factor
from optland.problems.networks import linear_regression_hessian

EXACT = ["kept_graph", "double_backward", "forward_over_reverse"]
METHODS = [*EXACT, "finite_difference"]
D = torch.float64


def close(actual: Tensor, expected: Tensor, method: str) -> None:
    tolerance = 1e-7 if method == "finite_difference" else 1e-12
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sizes", [[9], [5, 1, 3]])
def test_linear_regression_has_its_closed_form_for_ragged_batches(
    method: Any, reduction: str, sizes: list[int]
) -> None:
    torch.manual_seed(0)
    X, Y = torch.randn(9, 3, dtype=D), torch.randn(9, 2, dtype=D)
    objective = linear_regression(X, Y, sizes=sizes, reduction=reduction)
    H = hessian(objective, method=method).to_dense()
    close(H, linear_regression_hessian(X, 2), method)
    assert float(H.trace()) == pytest.approx(2 * float(X.square().sum()) / 9, rel=1e-6)


def test_softmax_regression_at_zero_has_its_closed_form_spectrum() -> None:
    torch.manual_seed(1)
    n, p, C = 12, 3, 4
    X, y = torch.randn(n, p, dtype=D), torch.randint(0, C, (n,))
    model = nn.Linear(p, C, bias=False, dtype=D)
    nn.init.zeros_(model.weight)
    batches = [(X[:5], y[:5]), (X[5:], y[5:])]
    objective = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), batches)
    assert objective.value() == pytest.approx(math.log(C), rel=1e-12)
    expected = torch.cat([torch.zeros(p, dtype=D), (torch.linalg.eigvalsh(X.T @ X) / (n * C)).repeat(C - 1)])
    actual = torch.linalg.eigvalsh(hessian(objective).to_dense())
    torch.testing.assert_close(actual, expected.sort().values, rtol=1e-10, atol=1e-12)


def test_two_factor_net_has_its_closed_form() -> None:
    a, b = 1.5, -0.7
    expected = torch.tensor([[b * b, 2 * a * b - 1], [2 * a * b - 1, a * a]], dtype=D)
    torch.testing.assert_close(hessian(two_factor(a, b)).to_dense(), expected)


@pytest.mark.parametrize("method", METHODS)
def test_network_agrees_with_the_functional_hessian(
    mlp: Objective, dense_hessian: Callable[[Objective], Tensor], method: Any
) -> None:
    close(hessian(mlp, method=method).to_dense(), dense_hessian(mlp), method)


def test_products_are_symmetric_and_linear(mlp: Objective) -> None:
    H = hessian(mlp)
    u, v = vectors.random_unit(mlp.params, 1), vectors.random_unit(mlp.params, 2)
    Hu, Hv = H.matvec(u), H.matvec(v)
    assert float(vectors.dot(u, Hv)) == pytest.approx(float(vectors.dot(v, Hu)), rel=1e-12)
    both = H.matvec(vectors.combine([2.0, -3.0], [u, v]))
    torch.testing.assert_close(both, vectors.combine([2.0, -3.0], [Hu, Hv]), rtol=1e-12, atol=1e-14)


def test_scale_invariant_loss_satisfies_euler() -> None:
    torch.manual_seed(2)
    A = torch.randn(5, 5, dtype=D)
    objective = function_objective(lambda w: (w @ (A @ w)) / (w @ w), torch.randn(5, dtype=D))
    w, g = objective.params, objective.gradient()
    assert float(vectors.dot(w, g)) == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(hessian(objective).matvec(w)[0], -g[0])


def test_relu_network_without_bias_is_homogeneous() -> None:
    torch.manual_seed(3)
    layers = [
        nn.Linear(4, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, 5, bias=False),
        nn.ReLU(),
        nn.Linear(5, 1, bias=False),
    ]
    objective = Objective(
        nn.Sequential(*layers).double(), lambda m, x: m(x).mean(), [torch.randn(8, 4, dtype=D)]
    )
    g, Hw = objective.gradient(), hessian(objective).matvec(objective.params)
    assert float(vectors.dot(objective.params, g)) == pytest.approx(3 * objective.value(), rel=1e-10)
    torch.testing.assert_close(Hw, vectors.scaled(2.0, g), rtol=1e-9, atol=1e-12)


def test_frozen_parameters_leave_the_sub_block(
    mlp: Objective, dense_hessian: Callable[[Objective], Tensor]
) -> None:
    whole = dense_hessian(mlp)
    for p in mlp.params[:2]:
        p.requires_grad_(False)
    part = Objective(mlp.model, mlp.loss_fn, mlp.batches)
    frozen = sum(p.numel() for p in mlp.params[:2])
    torch.testing.assert_close(hessian(part).to_dense(), whole[frozen:, frozen:], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_unused_parameters_and_linear_losses_have_zero_curvature(method: Any) -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1, dtype=D), "unused": nn.Linear(2, 1, dtype=D)})
    linear = Objective(model, lambda m, x: m["used"](x).mean(), [torch.ones(3, 2, dtype=D)])
    assert float(hessian(linear, method=method).to_dense().abs().max()) < 1e-9
    square = Objective(model, lambda m, x: m["used"](x).square().mean(), [torch.ones(3, 2, dtype=D)])
    H = hessian(square, method=method).to_dense()
    close(H[:3, :3], torch.full((3, 3), 2.0, dtype=D), method)
    assert float(H[3:].abs().max()) == float(H[:, 3:].abs().max()) == 0.0


class OnceDifferentiableCube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class DetachedCube(torch.autograd.Function):
    """A hand-written backward that PyTorch cannot see into, and that does not say so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(3 * x.detach().numpy() ** 2 * grad.detach().numpy())


def cube() -> Objective:
    start = torch.tensor([0.5, -1.0, 2.0], dtype=D)
    return function_objective(lambda w: OnceDifferentiableCube.apply(w).sum(), start)


def test_auto_falls_back_to_finite_differences_and_says_why() -> None:
    H = hessian(cube())
    close(H.to_dense(), torch.diag(torch.tensor([3.0, -6.0, 12.0], dtype=D)), "finite_difference")
    assert H.method == "finite_difference"
    assert "kept_graph failed: second derivatives are wrong" in H.reason
    assert H.product_error < 1e-6
    assert H.cost_ge <= declared_product_cost(cube(), 3)


def fitted(margin: float, dtype: torch.dtype = torch.float32) -> Objective:
    """One sample that two classes are told apart on by a margin: p (1 - p) is all there is of the curvature."""
    model = nn.Linear(2, 2, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[margin, 0.0], [0.0, 0.0]]))
    batch = (torch.tensor([[1.0, 0.5]], dtype=dtype), torch.tensor([0]))
    return Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [batch])


@pytest.mark.parametrize("margin", [15.625, 16.0, 16.25])  # exact in both types
def test_a_loss_that_is_all_but_zero_is_not_taken_for_one_with_something_detached(margin: float) -> None:
    """Float32 has hardly a digit of its products: it is no fault, and their error is stated."""
    u = vectors.random_unit(fitted(margin).params, seed=3)
    q = math.exp(-margin) / (1 + math.exp(-margin))
    x = torch.tensor([1.0, 0.5], dtype=D)
    exact = q * (1 - q) * torch.kron(torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=D), torch.outer(x, x))
    H = hessian(fitted(margin))
    product = torch.cat([t.flatten() for t in H.matvec(u)]).double()
    expected = exact @ torch.cat([t.flatten() for t in u]).double()
    assert H.method == "kept_graph"  # differences of such gradients would be no better
    assert float((product - expected).norm()) < 2 * max(H.product_error, 1e-3 * float(expected.norm()))
    wide = hessian(fitted(margin).double())
    torch.testing.assert_close(wide.to_dense(), exact, rtol=1e-6, atol=0)
    assert wide.method == "kept_graph"


@pytest.mark.parametrize("method", EXACT)
def test_a_backward_without_a_graph_is_not_taken_for_zero_curvature(method: Any) -> None:
    objective = function_objective(lambda w: DetachedCube.apply(w).sum(), torch.ones(2, dtype=D))
    with pytest.raises(RuntimeError, match=r"second derivatives are wrong|implement the jvp"):
        hessian(objective, method=method).matvec([torch.ones(2, dtype=D)])
    H = hessian(objective)
    close(H.to_dense(), 6 * torch.eye(2, dtype=D), "finite_difference")
    assert H.method == "finite_difference"


class TwiceDifferentiableCube(OnceDifferentiableCube):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


def test_a_custom_backward_with_a_derivative_passes_the_check() -> None:
    objective = function_objective(lambda w: TwiceDifferentiableCube.apply(w).sum(), torch.ones(2, dtype=D))
    H = hessian(objective)
    close(H.to_dense(), 6 * torch.eye(2, dtype=D), "kept_graph")
    assert H.method == "kept_graph"
    assert objective.cost_ge == H.cost_ge <= declared_product_cost(objective, 2)


def test_a_method_that_was_asked_for_is_never_replaced() -> None:
    H = hessian(cube(), method="double_backward")
    with pytest.raises(RuntimeError, match="second derivatives are wrong"):
        H.matvec([torch.ones(3, dtype=D)])
    assert H.method == "double_backward"


def test_an_error_of_the_loss_itself_reaches_the_user() -> None:
    def broken(w: Tensor) -> Tensor:
        raise RuntimeError("the user's own mistake")

    with pytest.raises(RuntimeError, match="the user's own mistake"):
        hessian(function_objective(broken, torch.ones(2))).matvec([torch.ones(2)])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unsqueeze(1) for t in self.qkv(x).chunk(3, dim=-1))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("module", [Attention, MultiHead])
def test_attention_is_differentiated_twice_by_the_math_kernel(module: type[nn.Module]) -> None:
    torch.manual_seed(4)
    objective = Objective(
        module().double(), lambda m, x: m(x).square().mean(), [torch.randn(3, 5, 4, dtype=D)]
    )
    v = vectors.random_unit(objective.params, 0)
    exact, approximate = hessian(objective), hessian(objective, method="finite_difference")
    torch.testing.assert_close(exact.matvec(v), approximate.matvec(v), rtol=1e-5, atol=1e-8)
    assert exact.method == "kept_graph"
    forward = hessian(objective, method="forward_over_reverse")
    torch.testing.assert_close(forward.matvec(v), exact.matvec(v), rtol=1e-11, atol=1e-13)


class Checkpointed(nn.Module):
    """Runs its dropout again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5))
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_checkpointed_model_is_run_again_in_its_own_mode_at_every_product(mode: Any) -> None:
    torch.manual_seed(0)
    model = Checkpointed().double().train(mode == "eval")  # the user's mode is the other one
    objective = Objective(model, lambda m, x: m(x).square().mean(), [torch.randn(5, 4, dtype=D)], mode=mode)
    v = vectors.random_unit(objective.params, 0)
    kept, fresh = hessian(objective, method="kept_graph"), hessian(objective, method="double_backward")
    for _ in range(3):
        torch.testing.assert_close(kept.matvec(v), fresh.matvec(v), rtol=1e-11, atol=1e-13)


def test_kept_graph_refuses_weights_that_moved(mlp: Objective) -> None:
    v = vectors.random_unit(mlp.params, 0)

    def operator() -> Any:
        H = hessian(mlp, method="kept_graph")
        H.matvec(v)
        return H

    H = operator()
    torch.optim.SGD(mlp.params, lr=0.1).step()  # no gradients yet: nothing is written, nothing has moved
    H.matvec(v)
    for p, g in zip(mlp.params, mlp.gradient(), strict=True):
        p.grad = g
    torch.optim.SGD(mlp.params, lr=0.1).step()
    with pytest.raises(RuntimeError, match="weights have changed"):
        H.matvec(v)

    H = operator()
    with mlp.at(mlp.displaced(v, 0.1)), pytest.raises(RuntimeError, match="weights have changed"):
        H.matvec(v)

    H = operator()
    mlp.params[0].data = mlp.params[0].data.clone()
    with pytest.raises(RuntimeError, match="weights have changed"):
        H.matvec(v)


def test_kept_graph_survives_evaluations_elsewhere(mlp: Objective) -> None:
    v = vectors.random_unit(mlp.params, 0)
    H = hessian(mlp, method="kept_graph")
    before = H.matvec(v)
    mlp.value(mlp.displaced(v, 0.5))
    mlp.gradient(mlp.displaced(v, -0.5))
    torch.testing.assert_close(H.matvec(v), before, rtol=0, atol=0)


def test_double_backward_follows_the_weights() -> None:
    objective = function_objective(lambda w: w.pow(3).sum(), torch.ones(2, dtype=D))
    H = hessian(objective, method="double_backward")
    assert H.matvec([torch.ones(2, dtype=D)])[0].tolist() == [6.0, 6.0]
    objective.params[0].data.mul_(2.0)
    assert H.matvec([torch.ones(2, dtype=D)])[0].tolist() == [12.0, 12.0]


def test_closing_frees_the_operator() -> None:
    with hessian(two_factor(1.0, 1.0)) as H:
        H.matvec([torch.ones(2, dtype=D)])
    with pytest.raises(RuntimeError, match="closed"):
        H.matvec([torch.ones(2, dtype=D)])


class Stream:
    """An iterable without length or index, as a loader over a stream is."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def test_auto_streams_what_it_cannot_keep(mlp: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hessian(mlp).method == "kept_graph"
    streamed = hessian(Objective(mlp.model, mlp.loss_fn, Stream(list(mlp.batches))))
    assert (streamed.method, streamed.reason) == ("double_backward", "the data are streamed")
    monkeypatch.setattr("optland.curvature.operators.hessian.KEPT_SAMPLES", 10)
    assert hessian(mlp).method == "double_backward"
    one_batch = Objective(mlp.model, mlp.loss_fn, list(mlp.batches)[:1])
    assert hessian(one_batch).method == "kept_graph"


@pytest.mark.parametrize(("size", "samples", "method"), [
    (2**18, 1024, "kept_graph"), (2**18 + 1, 1024, "double_backward"),
    (8, 2048, "kept_graph"), (8, 2050, "double_backward"),
])  # fmt: skip
def test_auto_keeps_graphs_up_to_its_two_limits(size: int, samples: int, method: str) -> None:
    """2048 samples, and 2^28 samples times weights; nothing is evaluated to choose."""
    batches = [torch.zeros(samples // 2, 1)] * 2
    model = nn.Linear(size, 1, bias=False)
    assert hessian(Objective(model, lambda m, x: m(x).mean(), batches, num_samples=samples)).method == method


@pytest.mark.parametrize("method", METHODS)
def test_costs_are_counted_as_declared(mlp: Objective, method: Any) -> None:
    declared = declared_product_cost(mlp, 3, method=method)
    H = hessian(mlp, method=method)
    v = vectors.random_unit(mlp.params, 0)
    for _ in range(3):
        H.matvec(v)
    assert H.num_matvecs == 3
    assert H.product_ge == HVP_GE[method] * 11
    # Once, the first product and two gradients of the first samples.
    check = 0 if method == "finite_difference" else SETUP_GE[method] + HVP_GE[method] + 2
    first = min(8, len(mlp.batches[0][0]))
    assert H.cost_ge == pytest.approx((SETUP_GE[method] + 3 * HVP_GE[method]) * 11 + check * first)
    assert H.cost_ge == mlp.cost_ge <= declared
    again = hessian(mlp, method=method)
    again.matvec(v)
    assert again.cost_ge == pytest.approx((SETUP_GE[method] + HVP_GE[method]) * 11)
    assert method in repr(H)


def test_dropout_in_train_mode_is_the_same_matrix_at_every_product() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    batch = torch.randn(6, 4, dtype=D)
    objective = Objective(model, lambda m, x: m(x).square().mean(), [batch[:4], batch[4:]], mode="train")
    v = vectors.random_unit(objective.params, 0)
    H = hessian(objective, method="double_backward")
    torch.testing.assert_close(H.matvec(v), H.matvec(v), rtol=0, atol=0)
    torch.testing.assert_close(
        hessian(objective, method="kept_graph").matvec(v), H.matvec(v), rtol=1e-12, atol=1e-14
    )


def test_works_inside_no_grad(mlp: Objective) -> None:
    v = vectors.random_unit(mlp.params, 0)
    outside = hessian(mlp).matvec(v)
    with torch.no_grad():
        torch.testing.assert_close(hessian(mlp).matvec(v), outside)
        torch.testing.assert_close(
            hessian(mlp, method="double_backward").matvec(v), outside, rtol=1e-11, atol=1e-13
        )


def test_finite_difference_scales_with_the_vector() -> None:
    objective = quadratic(torch.diag(torch.tensor([2.0, -4.0], dtype=D)))
    H = hessian(objective, method="finite_difference")
    torch.testing.assert_close(
        H.matvec([torch.tensor([1e6, 1e6], dtype=D)])[0], torch.tensor([2e6, -4e6], dtype=D)
    )
    assert H.matvec([torch.zeros(2, dtype=D)])[0].tolist() == [0.0, 0.0]


def test_wrong_usage_names_the_fix(mlp: Objective) -> None:
    with pytest.raises(ValueError, match="'kept_graph', 'double_backward', 'forward_over_reverse'"):
        hessian(mlp, method="exact")
    with pytest.raises(ValueError, match="one tensor for each"):
        hessian(mlp).matvec([torch.ones(2)])
    with pytest.raises(ValueError, match="too large for a dense matrix"):
        hessian(quadratic(torch.eye(1).expand(5001, 5001), torch.zeros(5001))).to_dense()
