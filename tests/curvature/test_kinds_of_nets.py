"""Curvature on many kinds of nets against plain float64 differences, and that looking leaves all of them alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import NETS, HandWritten, Middle, Net, Net64, checkpointed, cross_entropy, net, plain_middle
from torch import Tensor, nn

from optland import vectors
from optland.context.notes import notes_of
from optland.curvature import critical_step, fisher, ggn, gradient_noise, hessian, lanczos, trace
from optland.curvature.operators.hessian import declared_product_cost
from optland.objective import Objective

# PyTorch's compiler and its older norms warn of themselves.
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)

FAST = (
    "attention", "weight_norm", "sparse_embedding", "sparse_bag", "bounded_beyond", "hand_written", "custom_wrong",
    "fused_loss", "tied", "bf16", "batch_norm", "dropout_train", "autocast", "averaging", "penalised", "detached",
    "straight_through", "rnn_cell",
)  # fmt: skip
"""Of every mechanism one; the others differ in the kernels alone."""

ALL = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in NETS]

SIGMAS = 5.0


def objective_of(found: Net) -> Objective:
    return Objective(found.model, found.loss_fn, found.batches, mode=found.mode)


def state_of(model: nn.Module) -> list[Any]:
    parameters = [
        (
            id(p),
            p.data_ptr(),
            p._version,
            p.detach().clone(),
            p.grad,
            None if p.grad is None else p.grad.clone(),
        )
        for p in model.parameters()
    ]
    return [*parameters, *((id(b), b.clone()) for b in model.buffers())]


def unchanged(before: list[Any], model: nn.Module) -> bool:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a is b or torch.equal(*vectors.dense([a, b]))
        return bool(a == b)

    after = state_of(model)
    return len(before) == len(after) and all(
        same(x, y) for one, other in zip(before, after, strict=True) for x, y in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("name", ALL)
def test_every_value_is_right_within_its_error_or_refused(name: str) -> None:
    found = net(name)
    twin, L = Net64(found), objective_of(found)
    H, g, digits = twin.hessian(), twin.gradient(), found.digits
    before = state_of(L.model)

    assert L.value() == pytest.approx(float(twin.loss()), rel=digits)
    gradient = vectors.flatten(L.gradient()).double()
    assert float((gradient - g).norm()) <= digits * float(g.norm())

    u = vectors.random_unit(L.params, 1)
    operator = hessian(L)
    if words := found.refused.get("hvp"):
        with pytest.raises(ValueError, match=words):
            operator.matvec(u)
        assert unchanged(before, L.model)
        return
    product = vectors.flatten(operator.matvec(u)).double()
    expected = H @ vectors.flatten(u).double()
    rounding = 1e-5 * float(expected.norm())
    assert float((product - expected).norm()) <= 3 * operator.product_error + rounding

    top = lanczos(hessian(L), k=1, rtol=1e-3).top
    # The error of differences is known within a factor from one comparison, as that of the product above.
    assert abs(top.value - float(torch.linalg.eigvalsh(H)[-1])) <= 3 * top.error + rounding
    total = trace(hessian(L), max_matvecs=16)
    assert abs(total.value - float(H.trace())) <= SIGMAS * total.error + 1e-4 * float(H.abs().sum())
    assert unchanged(before, L.model)


@pytest.mark.parametrize(
    "name", ["fused_loss", "custom_once", "reentrant", "sparse_embedding", "sparse_bag", "kinks"]
)
def test_gauss_newton_is_right_whatever_the_way(name: str) -> None:
    found = net(name)
    twin, L = Net64(found), objective_of(found)
    G = twin.gauss_newton()
    for make in (ggn, fisher):  # the same matrix for cross entropy
        operator = make(L)
        for seed in range(1, 6):
            u = vectors.random_unit(L.params, seed)
            product, expected = vectors.flatten(operator.matvec(u)).double(), G @ vectors.flatten(u).double()
            allowed = 3 * operator.product_error + 1e-5 * float(expected.norm())
            assert float((product - expected).norm()) <= allowed, operator.reason


@pytest.mark.parametrize("name", ["reentrant", "sparse_bag", "bounded_beyond"])
def test_critical_step_and_noise_are_those_of_the_twin(name: str) -> None:
    found = net(name)
    twin, L = Net64(found), objective_of(found)
    d = vectors.scaled(-1.0, L.gradient())
    step = critical_step(L, d, rtol=0.01, max_forwards=20).step
    w, flat = twin.start, -twin.gradient()
    base, t = float(twin.loss()), step.value
    if name != "bounded_beyond":  # whose forward bounds the weights along the line
        assert float(twin.loss(w + (t - 1.1 * step.error) * flat)) <= base + 1e-6
        assert float(twin.loss(w + (t + 1.1 * step.error) * flat)) >= base - 1e-6
    nn.utils.vector_to_parameters(w, twin.params)
    rows = []
    for x, y in found.batches:
        for i in range(len(x)):
            loss = F.cross_entropy(
                found.twin(x[i : i + 1].double() if x.is_floating_point() else x[i : i + 1]), y[i : i + 1]
            )
            g = torch.autograd.grad(loss, twin.params, allow_unused=True, materialize_grads=True)
            rows.append(torch.cat([p.flatten() for p in g]))
    gradients = torch.stack(rows)
    expected = float(gradients.var(dim=0).sum())
    assert gradient_noise(L, num_parts=9).trace_cov.value == pytest.approx(expected, rel=1e-3)


# ------------------------------------------------------------------ what is wrong is noticed, once


@pytest.mark.parametrize("name", ["custom_once", "custom_wrong", "fused_loss"])
@pytest.mark.parametrize("method", ["kept_graph", "double_backward"])
def test_a_wrong_second_derivative_is_refused_where_it_was_asked_for(name: str, method: Any) -> None:
    L = objective_of(net(name))
    with pytest.raises(RuntimeError, match=r"second derivatives are wrong.*use method='finite_difference'"):
        hessian(L, method=method).matvec(vectors.random_unit(L.params, 0))


def test_a_kernel_of_torch_is_held_against_differences_too() -> None:
    """``linalg.det`` by forward over reverse and ``_weight_norm`` by double backward are wrong in some versions."""
    for name, method in (("determinant", "forward_over_reverse"), ("weight_norm", "double_backward")):
        found = net(name)
        L, H = objective_of(found), Net64(found).hessian()
        u = vectors.random_unit(L.params, 3)
        refused = ""
        product = expected = H @ vectors.flatten(u).double()
        try:
            product = vectors.flatten(hessian(L, method=method).matvec(u)).double()
        except RuntimeError as error:
            refused = str(error)
        assert not refused or "second derivatives are wrong" in refused
        assert float((product - expected).norm()) <= 1e-4 * float(expected.norm())


def test_a_verdict_is_kept_for_the_model_its_parts_and_its_data() -> None:
    found = net("checkpoint")
    L = objective_of(found)
    declared = declared_product_cost(L, 1)
    v = vectors.random_unit(L.params, 0)
    first = hessian(L)
    first.matvec(v)
    assert first.cost_ge <= declared
    plain = first.setup_ge + first.product_ge
    assert first.cost_ge > plain
    other = Objective(found.model, found.loss_fn, found.batches[:1])
    for operator in (hessian(L), hessian(other), hessian(L).restricted([0, 1])):
        operator.matvec(operator.like)
        assert operator.cost_ge == pytest.approx(operator.setup_ge + operator.product_ge)
    assert declared_product_cost(L, 1) < declared
    fresh = hessian(objective_of(net("mapped")), method="kept_graph")  # another model, not compared yet
    fresh.matvec(v)
    assert fresh.cost_ge > fresh.setup_ge + fresh.product_ge
    assert hessian(L.double()).objective.notes is not L.notes


def test_a_part_of_the_weights_that_is_right_says_nothing_of_all() -> None:
    """The last layer's block does not pass the wrong function, so its verdict must not cover the whole."""
    found = net("custom_once")
    L = objective_of(found)
    names = L.names
    last = [i for i, name in enumerate(names) if name.startswith("out")]
    block = hessian(L).restricted(last)
    block.matvec(vectors.random_unit(block.like, 0))
    assert block.method == "kept_graph"
    whole = hessian(L)
    whole.matvec(vectors.random_unit(L.params, 0))
    assert whole.method == "finite_difference"
    again = hessian(L)
    again.matvec(vectors.random_unit(L.params, 0))
    assert again.method == "finite_difference"
    assert "second derivatives are wrong" in again.reason


def test_verdicts_survive_a_checkpoint() -> None:
    L = objective_of(net("custom_once"))
    hessian(L).matvec(vectors.random_unit(L.params, 0))
    other = objective_of(net("custom_once"))
    other.notes.load_state_dict(L.notes.state_dict())
    H = hessian(other)
    H.matvec(vectors.random_unit(other.params, 0))
    assert H.method == "finite_difference"
    assert other.notes.verdicts == L.notes.verdicts


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_right_products_pass_at_flat_points_and_where_losses_are_linear(scale: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 6)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
    for loss_fn in (
        lambda m, b: scale * (m(b) - m(b).detach().mean()).square().mean() * 0 + scale * m(b).mean(),
        lambda m, b: scale * m[0](b).mean(),
    ):
        L = Objective(model, loss_fn, [x])
        H = hessian(L)
        H.matvec(vectors.random_unit(L.params, 0))
        assert H.method == "kept_graph", H.reason


def test_a_gradient_that_is_not_of_the_loss_may_be_asked_for_by_name() -> None:
    found = net("detached")
    L = objective_of(found)
    H = hessian(L, method="double_backward")
    H.matvec(vectors.random_unit(L.params, 0))
    assert "what is detached is held still" in H.reason


def test_a_loss_with_tensors_of_its_own_type_is_compared_without_float64() -> None:
    """``loss_fn`` holds float32 targets, so that no float64 copy can be evaluated."""
    torch.manual_seed(0)
    x, table = torch.randn(16, 4), torch.randn(5, 3)

    def loss_fn(m: nn.Module, b: Tensor) -> Tensor:
        return (F.linear(m(b), table.T @ table) - 1).square().mean()

    for make, method in ((Softened(True), "finite_difference"), (Softened(False), "kept_graph")):
        L = Objective(make, loss_fn, [x])
        H = hessian(L)
        H.matvec(vectors.random_unit(L.params, 0))
        assert H.method == method, H.reason


class Softened(nn.Module):
    def __init__(self, wrong: bool) -> None:
        super().__init__()
        from nets import OnceSoftplus, Softplus

        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.function = OnceSoftplus if wrong else Softplus

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function.apply(self.a(x)).relu())


# ------------------------------------------------------------------ hooks, .grad, graphs of the user


def hooked(model: nn.Module, fired: list[str]) -> None:
    for name, p in model.named_parameters():
        p.register_hook(lambda g, name=name: fired.append(name))
        p.register_post_accumulate_grad_hook(lambda p, name=name: fired.append(name))


@pytest.mark.parametrize(
    "name", ["checkpoint", "reentrant", "hand_written", "custom_right", "sparse_embedding"]
)
def test_no_hook_runs_and_every_grad_stays(name: str) -> None:
    found = net(name)
    model, fired = found.model, []
    cross_entropy(model, found.batches[0]).backward()
    hooked(model, fired)
    before = state_of(model)
    L = objective_of(found)
    L.gradient()
    lanczos(hessian(L), max_matvecs=4)
    ggn(L).matvec(vectors.random_unit(L.params, 0))
    gradient_noise(L)
    assert fired == []
    assert unchanged(before, model)
    torch.testing.assert_close(
        torch.cat([g.flatten() for g in L.gradient()]).double(), Net64(found).gradient(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    "first", ["value", "gradient", "hessian", "finite_difference", "ggn", "forward mode", "noise"]
)
@pytest.mark.parametrize("name", ["reentrant", "hand_written"])
def test_a_gradient_with_backward_passes_inside_is_whole_whatever_comes_first(name: str, first: str) -> None:
    """The gradient of data alone: nothing upstream asks for the checkpoint, so that autograd.grad leaves it out."""
    torch.manual_seed(2)
    model = Inside(name)
    x = torch.randn(8, 4, requires_grad=True)
    plain = torch.autograd.grad(model.plain(x).square().mean(), list(model.parameters()))
    L = Objective(model, lambda m, b: m(b).square().mean(), [x])
    v = vectors.random_unit(L.params, 0)
    {
        "value": L.value,
        "gradient": L.gradient,
        "hessian": lambda: hessian(L).matvec(v),
        "finite_difference": lambda: hessian(L, method="finite_difference").matvec(v),
        "ggn": lambda: ggn(L).matvec(v),
        "forward mode": lambda: refuses_forward_mode(L),
        "noise": lambda: gradient_noise(L),
    }[first]()
    for g, expected in zip(L.gradient(), plain, strict=True):
        torch.testing.assert_close(g, expected)
    assert x.grad is None
    assert "backward()" in L.provenance("x").method


def refuses_forward_mode(L: Objective) -> None:
    with pytest.raises(RuntimeError):
        hessian(L, method="forward_over_reverse").matvec(vectors.random_unit(L.params, 0))


class Inside(nn.Module):
    """All weights but those of the head inside one checkpoint of the input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(4, 5), nn.Linear(5, 2), kind

    def block(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x))

    def plain(self, x: Tensor) -> Tensor:
        return self.b(self.block(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "hand_written":
            return self.b(HandWritten.apply(self.block, x))
        return self.b(torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=True))


def test_an_optimizer_in_the_backward_pass_does_not_step() -> None:
    found = checkpointed(True)()
    model = found.model
    optimizers = {p: torch.optim.SGD([p], lr=1.0) for p in model.parameters()}

    def step(p: Tensor) -> None:
        optimizers[p].step()
        p.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    before = state_of(model)
    L = objective_of(found)
    lanczos(hessian(L), max_matvecs=3)
    assert unchanged(before, model)


# ------------------------------------------------------------------ forwards that write


@pytest.mark.parametrize("name", ["bounded_beyond", "bounded_inside", "clamped", "averaging"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_forward_that_writes_leaves_nothing_and_a_kept_graph_right(name: str, mode: Any) -> None:
    found = net(name)
    model = found.model
    caller = sum(p.square().sum() for p in model.parameters())  # a graph whose versions must stay
    L = Objective(model, found.loss_fn, found.batches, mode=mode)
    before = state_of(model)
    probes: list[Any] = [
        L.value,
        L.gradient,
        lambda: lanczos(hessian(L), max_matvecs=5),
        lambda: trace(hessian(L, method="double_backward"), max_matvecs=6),
        lambda: ggn(L).matvec(vectors.random_unit(L.params, 0)),
        lambda: critical_step(L, vectors.scaled(-0.1, L.gradient())),
        lambda: L.double().value(),
        lambda: L.value(L.displaced(vectors.random_unit(L.params, 2), 3.0)),
    ]
    for probe in probes:
        probe()
        assert unchanged(before, model)
    caller.backward()
    for p in model.parameters():
        assert p.grad is None or torch.equal(p.grad, 2 * p.detach())


def test_differences_of_weights_that_the_forward_moves_are_refused() -> None:
    L = objective_of(net("bounded_beyond"))
    with pytest.raises(ValueError, match="the forward rewrites 'weight' of Embedding"):
        hessian(L, method="finite_difference").matvec(vectors.random_unit(L.params, 0))
    H = hessian(L)
    H.matvec(vectors.random_unit(L.params, 0))
    assert H.method == "kept_graph"
    assert "derivatives at what it leaves" in H.reason


class Late(nn.Module):
    """Leaves its weight alone until it is told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))
        self.late = False

    def forward(self, x: Tensor) -> Tensor:
        if self.late:
            with torch.no_grad():
                self.w.mul_(0.5)
        return (x * self.w).sum()


def test_a_write_that_comes_late_is_an_error_and_no_silent_change() -> None:
    model = Late()
    L = Objective(model, lambda m, x: m(x), [torch.ones(2, 3)])
    L.value()
    model.late = True
    with pytest.raises(RuntimeError, match=r"has written 'w' of Late, which it left alone"):
        L.value()


def test_a_parameter_that_is_put_in_place_by_the_forward_is_taken_out_again() -> None:
    class Swapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            out = (x * self.w).sum()
            self.w = nn.Parameter(2 * self.w.detach())
            return out

    model = Swapping()
    w = model.w
    L = Objective(model, lambda m, x: m(x), [torch.ones(2, 3)])
    assert L.value() == L.value() == 6.0
    assert model.w is w
    assert torch.equal(w, torch.ones(3))


def test_notes_belong_to_one_model() -> None:
    model = plain_middle()
    L = Objective(model, cross_entropy, net("checkpoint").batches)
    L.value()
    assert notes_of(model) is L.notes is L.select([0]).notes
    assert L.settled
    assert not L.double().settled
    assert L.cast(torch.float64).notes is not L.notes


# ------------------------------------------------------------------ dense and real


def test_sparse_directions_are_taken_for_what_they_are() -> None:
    found = net("sparse_embedding")
    model = found.model
    cross_entropy(model, found.batches[0]).backward()
    sparse = [-p.grad for p in model.parameters() if p.grad is not None]
    assert sparse[0].is_sparse
    L = objective_of(found)
    dense = vectors.dense(sparse)
    assert critical_step(L, sparse).step.value == critical_step(L, dense).step.value
    for a, b in zip(hessian(L).matvec(sparse), hessian(L).matvec(dense), strict=True):
        assert torch.equal(a, b)


def test_complex_directions_are_refused() -> None:
    L = objective_of(net("tied"))
    direction = [torch.ones_like(p, dtype=torch.complex64) for p in L.params]
    for use in (lambda: hessian(L).matvec(direction), lambda: critical_step(L, direction)):
        with pytest.raises(TypeError, match="complex entries"):
            use()


def test_products_in_lower_precision_state_their_error() -> None:
    found = net("autocast")
    L = objective_of(found)
    H, exact = hessian(L), Net64(found).hessian()
    for seed in range(5):
        u = vectors.random_unit(L.params, seed)
        error = float((vectors.flatten(H.matvec(u)).double() - exact @ vectors.flatten(u).double()).norm())
        assert error <= 3 * H.product_error
    assert "lower precision" in H.reason
    found_trace = trace(hessian(L), max_matvecs=len(exact))
    assert math.isfinite(found_trace.error)
    assert found_trace.error > 0


def test_a_bare_middle_net_has_no_custom_parts() -> None:
    """The first graph of a mode is asked, and then no more."""
    L = Objective(Middle(lambda m, x: m.block(x)), cross_entropy, net("checkpoint").batches)
    L.gradient()
    assert L.notes.tried == {"eval"}
    assert L.notes.backward == ""
