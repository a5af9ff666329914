"""Operators made from operators, against dense algebra on the dense Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, Optimizer, RMSprop

from optland import vectors
from optland.curvature.operators.fisher import fisher
from optland.curvature.operators.ggn import ggn
from optland.curvature.operators.hessian import hessian
from optland.curvature.operators.preconditioner import preconditioner
from optland.curvature.operators.transforms import in_metric, per_layer, preconditioned, shifted, subset
from optland.objective import Objective
from optland.problems import quadratic, with_spectrum
from optland.problems.critical import two_factor

D = torch.float64
Dense = Callable[[Objective], Tensor]


def train(objective: Objective, optimizer: Optimizer, steps: int = 3) -> list[Tensor]:
    """The gradients of every step."""
    seen = []
    for _ in range(steps):
        gradient = objective.gradient()
        for p, g in zip(objective.params, gradient, strict=True):
            p.grad = g.clone()
        seen.append(torch.cat([g.reshape(-1) for g in gradient]))
        optimizer.step()
    return seen


def moving_average(gradients: list[Tensor], beta: float, power: int) -> Tensor:
    average = torch.zeros_like(gradients[0])
    for g in gradients:
        average = beta * average + (1 - beta) * g**power
    return average


def adam_diagonal(gradients: list[Tensor]) -> Tensor:
    t = len(gradients)
    corrected = moving_average(gradients, 0.95, 2) / (1 - 0.95**t)
    return (1 - 0.8**t) * (corrected.sqrt() + 1e-3)


CASES: dict[str, tuple[Callable[[Any], Optimizer], Callable[[list[Tensor]], Tensor]]] = {
    "sgd": (lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True), lambda gs: torch.ones_like(gs[0])),
    "adam": (lambda p: Adam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-3), adam_diagonal),
    "adamw": (lambda p: AdamW(p, lr=0.01, betas=(0.8, 0.95), eps=1e-3), adam_diagonal),
    "rmsprop": (
        lambda p: RMSprop(p, lr=0.01, alpha=0.9, eps=1e-3, momentum=0.5),
        lambda gs: moving_average(gs, 0.9, 2).sqrt() + 1e-3,
    ),
    "centered": (
        lambda p: RMSprop(p, lr=0.01, alpha=0.9, eps=1e-3, centered=True),
        lambda gs: (moving_average(gs, 0.9, 2) - moving_average(gs, 0.9, 1) ** 2).sqrt() + 1e-3,
    ),
    "adagrad": (
        lambda p: Adagrad(p, lr=0.01, eps=1e-3),
        lambda gs: torch.stack(gs).square().sum(0).sqrt() + 1e-3,
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_preconditioned_by_the_optimizers_own_average_of_gradients(
    mlp: Objective, dense_hessian: Dense, name: str
) -> None:
    make, diagonal = CASES[name]
    # Groups in another order than the parameters: they are matched by identity.
    optimizer = make([{"params": mlp.params[2:]}, {"params": mlp.params[:2]}])
    P = diagonal(train(mlp, optimizer))
    expected = dense_hessian(mlp) / P.sqrt() / P.sqrt()[:, None]
    A = preconditioned(hessian(mlp), optimizer)
    torch.testing.assert_close(A.to_dense(), expected, rtol=1e-10, atol=1e-11)
    assert type(optimizer).__name__ in A.kind
    assert A.num_matvecs == 43
    assert A.cost_ge == A.inner.cost_ge > 0  # type: ignore[attr-defined]


def test_amsgrad_uses_its_maximum(mlp: Objective) -> None:
    optimizer = Adam(mlp.params, amsgrad=True)
    train(mlp, optimizer, 2)
    state = optimizer.state[mlp.params[0]]
    expected = (1 - 0.9**2) * ((state["max_exp_avg_sq"] / (1 - 0.999**2)).sqrt() + 1e-8)
    torch.testing.assert_close(preconditioner(optimizer, mlp)[0], expected)


def test_preconditioned_diagonal_has_the_largest_ratio_on_top() -> None:
    a, p = torch.tensor([4.0, 9.0, 1.0], dtype=D), torch.tensor([2.0, 9.0, 0.25], dtype=D)
    A = preconditioned(hessian(quadratic(torch.diag(a))), [p])
    assert float(torch.linalg.eigvalsh(A.to_dense())[-1]) == pytest.approx(float((a / p).max()))


class Wrapper(SGD):
    """Delegates to ``base``, as optimizers around optimizers do."""

    def __init__(self, base: Optimizer) -> None:
        super().__init__([torch.zeros(1)], lr=1.0)
        self.base = base


def test_wrapped_optimizers_and_float64_copies_are_recognised(mlp: Objective) -> None:
    optimizer = Adam(mlp.params)
    train(mlp, optimizer, 1)
    plain = preconditioner(optimizer, mlp)
    torch.testing.assert_close(preconditioner(Wrapper(optimizer), mlp), plain)
    torch.testing.assert_close(preconditioner(optimizer, mlp.double()), plain)


def test_optimizers_that_cannot_precondition_name_the_fix(mlp: Objective) -> None:
    H = hessian(mlp)
    with pytest.raises(ValueError, match=r"no 'exp_avg_sq' for parameter '0.weight' yet.*Take a step first"):
        preconditioned(H, Adam(mlp.params))
    with pytest.raises(ValueError, match="no 'sum'"):
        preconditioned(H, Adagrad(mlp.params))
    with pytest.raises(TypeError, match="preconditioner of Adamax is not known"):
        preconditioned(H, Adamax(mlp.params))
    with pytest.raises(ValueError, match=r"does not hold parameter '2.weight'"):
        preconditioned(H, SGD(mlp.params[:2], lr=0.1))
    with pytest.raises(TypeError, match="is a str"):
        preconditioner("adam", mlp)
    with pytest.raises(ValueError, match="other shapes"):
        preconditioned(H, [torch.ones(2)])
    with pytest.raises(ValueError, match="not positive"):
        preconditioned(H, [torch.zeros_like(p) for p in mlp.params])


def test_adaptive_sharpness_does_not_see_a_rescaling() -> None:
    for a in (1.0, 4.0, 100.0):
        objective = two_factor(a, 1 / a)
        plain = torch.linalg.eigvalsh(hessian(objective).to_dense())
        torch.testing.assert_close(
            plain, torch.tensor([0.0, a * a + 1 / a**2], dtype=D), rtol=1e-9, atol=1e-9
        )
        adaptive = torch.linalg.eigvalsh(in_metric(hessian(objective), "weights").to_dense())
        torch.testing.assert_close(adaptive, torch.tensor([0.0, 2.0], dtype=D), rtol=1e-9, atol=1e-9)


def test_metric_and_shift_against_dense_algebra(mlp: Objective, dense_hessian: Dense) -> None:
    whole, H = dense_hessian(mlp), hessian(mlp)
    T = [torch.rand_like(p) for p in mlp.params]
    t = vectors.flatten(T)
    torch.testing.assert_close(in_metric(H, T).to_dense(), t[:, None] * whole * t, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(
        shifted(in_metric(H, T), 0.3).to_dense(),
        t[:, None] * whole * t + 0.3 * torch.eye(43, dtype=D),
        rtol=1e-11,
        atol=1e-12,
    )
    with pytest.raises(ValueError, match="'angles' is not known"):
        in_metric(H, "angles")


@pytest.mark.parametrize(
    "method", ["kept_graph", "double_backward", "forward_over_reverse", "finite_difference"]
)
def test_a_subset_is_the_sub_block(mlp: Objective, dense_hessian: Dense, method: Any) -> None:
    whole = dense_hessian(mlp)
    rows = torch.cat([torch.arange(20, 25), torch.arange(40, 43)])
    block = subset(hessian(mlp, method=method), "*.bias")
    assert block.dim == 8
    assert [p.shape for p in block.like] == [mlp.params[1].shape, mlp.params[3].shape]
    tolerance = 1e-7 if method == "finite_difference" else 1e-12
    torch.testing.assert_close(block.to_dense(), whole[rows][:, rows], rtol=tolerance, atol=tolerance)
    assert block.method == method
    assert mlp.cost_ge == block.cost_ge > 0


def test_subset_takes_gradients_of_its_own_parameters_only(mlp: Objective) -> None:
    asked: list[int] = []
    original = torch.autograd.grad

    def spy(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(len(inputs))
        return original(outputs, inputs, *args, **kwargs)

    mlp.gradient()  # the first look at a model has stand-ins for all of its parameters
    block = subset(hessian(mlp), "2.*")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", spy)
        block.matvec(vectors.random_unit(block.like, 0))
    assert set(asked) == {2}


def test_subsets_commute_with_transforms(mlp: Objective) -> None:
    optimizer = Adam(mlp.params)
    train(mlp, optimizer)
    for make in (hessian, ggn, fisher):
        H = make(mlp)
        outer = subset(shifted(preconditioned(H, optimizer), 0.5), ["0.*"]).to_dense()
        inner = shifted(
            preconditioned(subset(H, lambda name, p: name.startswith("0.")), optimizer), 0.5
        ).to_dense()
        whole = shifted(preconditioned(H, optimizer), 0.5).to_dense()
        torch.testing.assert_close(outer, inner, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(outer, whole[:25, :25], rtol=1e-11, atol=1e-12)


def test_layers_are_the_diagonal_blocks(mlp: Objective, dense_hessian: Dense) -> None:
    whole, blocks = dense_hessian(mlp), per_layer(hessian(mlp))
    assert list(blocks) == ["0", "2"]
    torch.testing.assert_close(blocks["0"].to_dense(), whole[:25, :25], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(blocks["2"].to_dense(), whole[25:, 25:], rtol=1e-11, atol=1e-12)
    with pytest.raises(ValueError, match=r"'conv\*' matches no parameter; the names are 0.weight"):
        subset(hessian(mlp), ["0.*", "conv*"])
    with pytest.raises(ValueError, match="no parameter was selected"):
        subset(hessian(mlp), lambda name, p: False)


def test_a_displacement_of_a_view_is_noticed_by_a_kept_graph(mlp: Objective) -> None:
    H = hessian(mlp, method="kept_graph")
    v = vectors.random_unit(mlp.params, 0)
    H.matvec(v)
    view = mlp.select([0])
    with (
        view.at(view.displaced([torch.ones_like(view.params[0])], 0.1)),
        pytest.raises(RuntimeError, match="changed"),
    ):
        H.matvec(v)


def test_scipy_finds_both_ends_of_a_known_spectrum() -> None:
    from scipy.sparse.linalg import eigsh

    A = with_spectrum([5.0, 4.0, *[0.1] * 20, -8.0])
    values = eigsh(
        hessian(quadratic(A)).to_scipy(), k=2, which="BE", return_eigenvectors=False, v0=np.ones(23)
    )
    np.testing.assert_allclose(sorted(values), [-8.0, 5.0], rtol=1e-9)


def test_scipy_agrees_with_the_dense_hessian_of_a_float32_network() -> None:
    from scipy.sparse.linalg import eigsh

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    batch = (torch.randn(16, 4), torch.randint(0, 3, (16,)))
    L = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [batch])
    expected = torch.linalg.eigvalsh(hessian(L.double()).to_dense())[-1]
    H = hessian(L)
    value = eigsh(H.to_scipy(), k=1, which="LA", tol=1e-5, return_eigenvectors=False, v0=np.ones(H.dim))
    assert float(value[0]) == pytest.approx(float(expected), rel=1e-5)
    assert H.num_matvecs > 0


def test_closing_closes_what_is_underneath(mlp: Objective) -> None:
    H = hessian(mlp)
    with shifted(H, 1.0):
        pass
    with pytest.raises(RuntimeError, match="closed"):
        H.matvec(vectors.random_unit(mlp.params, 0))
