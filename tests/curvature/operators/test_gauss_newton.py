"""Gauss-Newton and Fisher matrices against dense ones formed from Jacobians and from single-sample gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optland import vectors
from optland.curvature.operators.fisher import fisher
from optland.curvature.operators.ggn import declared_product_cost, ggn
from optland.curvature.operators.hessian import hessian
from optland.objective import Objective
from optland.problems import linear_regression
from optland.problems.networks import linear_regression_hessian
from optland.problems.points import Point

METHODS = ["kept_graph", "double_backward", "forward_over_reverse", "finite_difference"]
D = torch.float64


def close(actual: Tensor, expected: Tensor, method: str = "") -> None:
    tolerance = 1e-8 if method == "finite_difference" else 1e-12
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """(n, outputs..., d), row by row of the outputs."""
    z = model(x)
    rows = [
        torch.cat(
            [g.reshape(-1) for g in torch.autograd.grad(entry, list(model.parameters()), retain_graph=True)]
        )
        for entry in z.reshape(-1)
    ]
    return torch.stack(rows).reshape(*z.shape, -1).detach()


def softmax_covariance(model: nn.Module, x: Tensor) -> Tensor:
    p = model(x).softmax(-1).detach()
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def dense_ggn(objective: Objective) -> Tensor:
    """(1/n) sum of J' (diag p - pp') J."""
    x = torch.cat([b[0] for b in objective.batches])
    J = jacobian(objective.model, x)
    return torch.einsum("nca,ncd,ndb->ab", J, softmax_covariance(objective.model, x), J) / len(x)


def sample_gradients(objective: Objective) -> Tensor:
    x, y = (torch.cat(ts) for ts in zip(*objective.batches, strict=True))
    rows = []
    for i in range(len(x)):
        loss = F.cross_entropy(objective.model(x[i : i + 1]), y[i : i + 1])
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, objective.params)]))
    return torch.stack(rows)


@pytest.mark.parametrize("method", METHODS)
def test_ggn_is_the_matrix_of_the_jacobians(mlp: Objective, method: Any) -> None:
    declared = declared_product_cost(mlp, 43, method=method)
    G = ggn(mlp, method=method)
    close(G.to_dense(), dense_ggn(mlp), method)
    assert G.kind == "generalised Gauss-Newton"
    assert G.method == method
    assert G.num_matvecs == 43
    assert G.cost_ge <= declared
    assert float(torch.linalg.eigvalsh(dense_ggn(mlp))[0]) > -1e-12


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sizes", [[9], [5, 1, 3]])
def test_ggn_of_a_linear_model_is_its_hessian(reduction: str, sizes: list[int]) -> None:
    torch.manual_seed(0)
    X, Y = torch.randn(9, 3, dtype=D), torch.randn(9, 2, dtype=D)
    objective = linear_regression(X, Y, sizes=sizes, reduction=reduction)
    close(ggn(objective).to_dense(), linear_regression_hessian(X, 2))
    close(fisher(objective, "gaussian").to_dense(), linear_regression_hessian(X, 2))


def test_two_factor_net_has_its_closed_forms() -> None:
    """L = (ab - 1)^2 / 2: G = [[b^2, ab], [ab, a^2]], and H - G = (ab - 1) [[0, 1], [1, 0]]."""
    a, b = 1.5, -0.7
    model = Point(torch.tensor([a, b], dtype=D))
    split = (lambda m, x: m().prod().reshape(1), lambda z, x: 0.5 * (z - 1).square().sum())
    objective = Objective(model, lambda m, x: split[1](split[0](m, x), x), [torch.zeros(1)])
    G, H = ggn(objective, split=split).to_dense(), hessian(objective).to_dense()
    close(G, torch.tensor([[b * b, a * b], [a * b, a * a]], dtype=D))
    close(H - G, (a * b - 1) * torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=D))


class Tokens(nn.Module):
    """Returns a mapping, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.embed(ids))
        return {"logits": self.head(hidden), "mask": ids > 0}


def token_objective(labels: list[Tensor], ids: list[Tensor]) -> Objective:
    def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = model(batch["ids"])["logits"]
        total = F.cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100, reduction="sum"
        )
        return total, (batch["labels"] != -100).sum()

    batches = [{"ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]
    return Objective(Tokens().double(), loss_fn, batches)


def test_token_weighted_loss_with_ignored_labels_and_a_mapping_as_output() -> None:
    torch.manual_seed(0)
    ids = [torch.randint(0, 5, (3, 4)), torch.randint(0, 5, (1, 4))]
    labels = [torch.randint(0, 5, (3, 4)), torch.tensor([[1, -100, -100, -100]])]
    labels[0][1, 2:] = -100
    objective = token_objective(labels, ids)
    expected, count = torch.zeros(45, 45, dtype=D), 0
    flat = SimpleNamespace(parameters=objective.model.parameters)
    for i, y in zip(ids, labels, strict=True):
        keep = y.flatten() != -100
        model = lambda x, i=i, keep=keep: objective.model(i)["logits"].flatten(0, 1)[keep]  # noqa: E731
        wrapped: Any = type("W", (), {"__call__": staticmethod(model), "parameters": flat.parameters})()
        J = jacobian(wrapped, i)
        p = model(i).softmax(-1).detach()
        Lambda = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
        expected += torch.einsum("nca,ncd,ndb->ab", J, Lambda, J)
        count += int(keep.sum())
    for method in METHODS:
        close(ggn(objective, method=method).to_dense(), expected / count, method)
    close(fisher(objective).to_dense(), expected / count)


@pytest.mark.parametrize("method", METHODS)
def test_exact_fisher_is_the_ggn_of_cross_entropy(mlp: Objective, method: Any) -> None:
    close(fisher(mlp, method=method).to_dense(), dense_ggn(mlp), method)


def test_exact_fisher_is_the_expectation_over_the_models_own_labels(mlp: Objective) -> None:
    """By enumeration: sum over classes of p_c g_c g_c', with g_c the gradient had the label been c."""
    F_dense = torch.zeros(43, 43, dtype=D)
    x = torch.cat([b[0] for b in mlp.batches])
    p = mlp.model(x).softmax(-1).detach()
    for i in range(len(x)):
        for c in range(3):
            loss = F.cross_entropy(mlp.model(x[i : i + 1]), torch.tensor([c]))
            g = torch.cat([t.reshape(-1) for t in torch.autograd.grad(loss, mlp.params)])
            F_dense += p[i, c] * torch.outer(g, g) / len(x)
    close(fisher(mlp).to_dense(), F_dense)


def test_monte_carlo_fisher_is_labelled_repeatable_and_converges(mlp: Objective) -> None:
    exact = fisher(mlp).to_dense()
    few = fisher(mlp, num_draws=1, seed=3)
    assert "Monte-Carlo" in few.kind
    assert torch.equal(few.to_dense(), fisher(mlp, num_draws=1, seed=3).to_dense())
    for method in METHODS[1:3]:
        close(fisher(mlp, num_draws=1, seed=3, method=method).to_dense(), few.to_dense())
    errors = [float((fisher(mlp, num_draws=n).to_dense() - exact).norm() / exact.norm()) for n in (5, 150)]
    assert errors[0] > 2 * errors[1] < 0.2


@pytest.mark.parametrize("samples", [None, 4000])
def test_bernoulli_and_gaussian_fishers(samples: int | None) -> None:
    torch.manual_seed(1)
    X, y = torch.randn(8, 2, dtype=D), torch.randint(0, 2, (8, 1)).to(D)
    model = nn.Linear(2, 1, bias=False, dtype=D)
    logistic = Objective(model, lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), b[1]), [(X, y)])
    p = model(X).sigmoid().detach()
    expected = X.T @ (p * (1 - p) * X) / 8
    tolerance = 1e-12 if samples is None else 0.06
    actual = fisher(logistic, "bernoulli", num_draws=samples).to_dense()
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    squares = Objective(model, lambda m, b: F.mse_loss(m(b[0]), b[1]), [(X, y)])
    actual = fisher(squares, "gaussian", num_draws=samples).to_dense()
    torch.testing.assert_close(actual, 2 * X.T @ X / 8, rtol=tolerance, atol=2 * tolerance)


def test_only_one_parameter_group_and_frozen_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    model[0].weight.requires_grad_(False)
    x, y = torch.randn(5, 3, dtype=D), torch.randint(0, 2, (5,))
    objective = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x, y)])
    model[0].weight.requires_grad_(True)
    J = jacobian(model, x)[..., 12:]
    expected = torch.einsum("nca,ncd,ndb->ab", J, softmax_covariance(model, x), J) / 5
    close(ggn(objective).to_dense(), expected)


def test_losses_that_cannot_be_split_name_the_fix() -> None:
    model, x = nn.Linear(2, 1), torch.ones(3, 2)
    v = vectors.random_unit(list(model.parameters()), 0)

    def refused(loss_fn: Any, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            ggn(Objective(model, loss_fn, [x])).matvec(v)

    refused(lambda m, b: m(b).mean() + m.weight.square().sum(), "depends on 'weight' beside the outputs")
    refused(lambda m, b: (m(b) - m(2 * b)).square().mean(), "calls model.* 2 times")
    refused(lambda m, b: F.linear(b, m.weight, m.bias).square().mean(), "calls model.* 0 times")

    class OwnLoss(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).square().mean()

    with pytest.raises(ValueError, match="returns the loss itself"):
        ggn(Objective(OwnLoss(2, 1), lambda m, b: m(b), [x])).matvec(v)
    assert not model._forward_hooks


def test_wrong_likelihoods_are_refused(mlp: Objective) -> None:
    v = vectors.random_unit(mlp.params, 0)
    with pytest.raises(ValueError, match="not a negative log likelihood of a bernoulli"):
        fisher(mlp, "bernoulli").matvec(v)
    with pytest.raises(ValueError, match="'poisson' is not known"):
        fisher(mlp, "poisson")
    with pytest.raises(ValueError, match="num_draws=0"):
        fisher(mlp, num_draws=0)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class OnceNet(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(super().forward(x))


def test_auto_falls_back_to_differences_of_outputs() -> None:
    torch.manual_seed(0)
    model, x = OnceNet(2, 1).double(), torch.randn(5, 2, dtype=D)
    objective = Objective(model, lambda m, b: m(b).square().mean() / 2, [x])
    J = 2 * F.linear(x, model.weight, model.bias) * torch.cat([x, torch.ones(5, 1, dtype=D)], 1)
    G = ggn(objective)
    close(G.to_dense(), (J.T @ J / 5).detach(), "finite_difference")
    assert G.method == "finite_difference"
    assert "kept_graph failed" in G.reason


@pytest.mark.parametrize("method", METHODS[:3])
def test_a_batch_that_is_all_masked_weighs_nothing(mlp: Objective, method: Any) -> None:
    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Any:
        if len(batch[0]) == 4:
            model(batch[0])
            return torch.zeros((), dtype=D), 0
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[0])

    masked = Objective(mlp.model, loss_fn, mlp.batches)
    alone = Objective(mlp.model, loss_fn, list(mlp.batches)[:1])
    v = vectors.random_unit(mlp.params, 0)
    for make in (hessian, ggn):
        torch.testing.assert_close(
            make(masked, method=method).matvec(v), make(alone, method=method).matvec(v)
        )
