"""The loss as a function of the weights: weighted by counts, evaluated anywhere, misuse named."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from optland import vectors
from optland.objective import FORWARD_GE, Objective

D = torch.float64


def regression(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    return nn.Linear(3, 1, dtype=D), torch.randn(10, 3, dtype=D), torch.randn(10, 1, dtype=D)


def mean_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def sum_loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return F.mse_loss(model(batch[0]), batch[1], reduction="sum"), len(batch[0])


@pytest.mark.parametrize("loss_fn", [mean_loss, sum_loss])
@pytest.mark.parametrize("sizes", [[10], [7, 3], [4, 5, 1]])
def test_ragged_batches_are_weighted_by_count(loss_fn: Any, sizes: list[int]) -> None:
    model, X, Y = regression()
    objective = Objective(model, loss_fn, list(zip(X.split(sizes), Y.split(sizes), strict=True)))
    whole = F.mse_loss(model(X), Y)
    expected = torch.autograd.grad(whole, list(model.parameters()))
    value, gradient = objective.value_and_gradient()
    assert objective.value() == pytest.approx(whole.item(), rel=1e-14)
    assert value == pytest.approx(whole.item(), rel=1e-14)
    torch.testing.assert_close(gradient, list(expected))


def test_token_losses_are_weighted_by_tokens() -> None:
    torch.manual_seed(0)
    model = nn.Embedding(7, 7, dtype=D)
    tokens = torch.randint(0, 7, (6, 5))
    labels = torch.randint(0, 7, (6, 5)).masked_fill(torch.rand(6, 5) < 0.4, -100)

    def loss_fn(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        logits = model(batch[0]).flatten(0, 1)
        return F.cross_entropy(logits, batch[1].flatten(), reduction="sum"), (batch[1] != -100).sum()

    whole = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten())
    objective = Objective(model, loss_fn, list(zip(tokens.split([1, 5]), labels.split([1, 5]), strict=True)))
    assert objective.value() == pytest.approx(whole.item(), rel=1e-12)
    (expected,) = torch.autograd.grad(whole, [model.weight])
    torch.testing.assert_close(objective.gradient()[0], expected)
    assert objective.num_samples == 6  # cost is counted in samples, not in tokens


@dataclass
class Example:
    x: Tensor
    y: Tensor


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda x, y: {"x": x, "y": y}, lambda b: (b["x"], b["y"])),
        (Example, lambda b: (b.x, b.y)),
        (Pair, lambda b: (b.x, b.y)),
        (lambda x, y: {"in": [x, {"target": y}]}, lambda b: (b["in"][0], b["in"][1]["target"])),
    ],
)
def test_batches_of_any_type(wrap: Any, unwrap: Any) -> None:
    model, X, Y = regression()
    batches = [wrap(X[:6], Y[:6]), wrap(X[6:], Y[6:])]
    objective = Objective(model, lambda m, b: mean_loss(m, unwrap(b)), batches)
    assert objective.num_samples == 10
    assert objective.value() == pytest.approx(F.mse_loss(model(X), Y).item())


class Graph:
    """A batch type of someone's library, without tensors that optland could count."""

    def __init__(self, x: Tensor) -> None:
        self._hidden = {"x": x}

    def nodes(self) -> Tensor:
        return self._hidden["x"]


def test_batches_that_cannot_be_counted_bring_their_count() -> None:
    model, X, _ = regression()
    batches = [Graph(X[:4]), Graph(X[4:])]

    def loss_fn(model: nn.Module, batch: Graph) -> tuple[Tensor, int]:
        return model(batch.nodes()).square().sum(), len(batch.nodes())

    with pytest.raises(TypeError, match="num_samples="):
        Objective(model, loss_fn, batches)
    objective = Objective(model, loss_fn, batches, num_samples=10)
    assert objective.value() == pytest.approx(model(X).square().mean().item())
    assert objective.cost_ge == pytest.approx(10 / 3)


def test_evaluation_elsewhere_restores_the_weights_by_copy() -> None:
    model, X, Y = regression()
    objective = Objective(model, mean_loss, [(X, Y)])
    before = vectors.clone(objective.params)
    point = objective.displaced(
        vectors.random_unit(objective.params, 0), 1e8
    )  # subtraction would lose digits
    here, there = objective.value(), objective.value(point)
    assert all(torch.equal(p, b) for p, b in zip(objective.params, before, strict=True))
    assert objective.value() == here
    vectors.copy_(objective.params, point)
    assert objective.value() == there


def test_blocks_at_other_points_nest_and_unwind_on_errors() -> None:
    model, X, Y = regression()
    objective = Objective(model, mean_loss, [(X, Y)])
    before = vectors.clone(objective.params)
    first, second = (vectors.scaled(factor, before) for factor in (2.0, 3.0))

    def fail_inside() -> None:
        with objective.at(first):
            location = objective.location
            with objective.at(second):
                assert objective.location not in (0, location)
                torch.testing.assert_close(objective.params[0].detach(), second[0])
            assert objective.location == location
            torch.testing.assert_close(objective.params[0].detach(), first[0])
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert objective.location == 0
    assert all(torch.equal(p, b) for p, b in zip(objective.params, before, strict=True))


def test_gradient_elsewhere_is_the_gradient_there() -> None:
    model, X, Y = regression()
    objective = Objective(model, mean_loss, [(X, Y)])
    point = objective.displaced(vectors.random_unit(objective.params, 3), 2.0)
    there = objective.gradient(point)
    vectors.copy_(objective.params, point)
    torch.testing.assert_close(there, objective.gradient(), rtol=0, atol=0)


def test_gradients_survive_no_grad_and_unused_and_frozen_parameters() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1), "c": nn.Linear(2, 1)})
    model["b"].requires_grad_(False)
    objective = Objective(model, lambda m, x: (m["a"](x) + m["b"](x)).square().mean(), [torch.ones(2, 2)])
    assert objective.names == ["a.weight", "a.bias", "c.weight", "c.bias"]
    with torch.no_grad():
        gradient = objective.gradient()
    assert float(gradient[0].abs().sum()) > 0
    assert float(gradient[2].abs().sum()) == float(gradient[3].abs().sum()) == 0.0
    assert all(p.grad is None for p in model.parameters())


def test_half_precision_gradients_over_many_batches_keep_their_digits() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    batches = [torch.ones(1, 1, dtype=torch.bfloat16)] * 600
    gradient = Objective(model, lambda m, x: m(x).mean(), batches).gradient()[0]
    assert gradient.dtype == torch.bfloat16
    assert float(gradient) == 1.0  # a bfloat16 sum of 600 ones would stop at 256


def test_modes_are_two_functions_and_dropout_is_replayed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    batch = torch.randn(8, 4)
    loss = lambda m, x: m(x).square().mean()  # noqa: E731
    train = Objective(model, loss, [batch], mode="train")
    evaluation = Objective(model, loss, [batch])
    assert train.value() == train.value() != evaluation.value()
    assert Objective(model, loss, [batch], mode="train", seed=1).value() != train.value()


def test_a_shuffling_loader_is_replayed_and_its_draw_is_put_back() -> None:
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.arange(12.0).reshape(12, 1)), batch_size=5, shuffle=True)
    seen: list[list[float]] = []

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        seen.append(batch[0].flatten().tolist())
        return model(batch[0]).square().mean()

    model = nn.Linear(1, 1)
    state = torch.get_rng_state()
    objective = Objective(model, loss_fn, loader)
    objective.value()
    objective.value()
    assert torch.equal(torch.get_rng_state(), state)
    assert seen[:3] == seen[3:]


def test_a_transformer_has_one_loss_with_and_without_a_gradient() -> None:
    """In eval mode without gradients PyTorch takes a fused path through the layer."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=D)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    objective = Objective(model, lambda m, x: m(x).square().mean(), [torch.randn(3, 5, 8, dtype=D)])
    assert objective.value() == pytest.approx(objective.value_and_gradient()[0], rel=1e-12)


def test_costs_are_counted() -> None:
    model, X, Y = regression()
    objective = Objective(model, mean_loss, [(X, Y)])
    objective.value()
    assert objective.cost_ge == pytest.approx(10 * FORWARD_GE)
    objective.gradient()
    assert objective.cost_ge == pytest.approx(10 * FORWARD_GE + 10)


def test_a_compiled_module_is_replaced_by_its_original() -> None:
    model, X, Y = regression()

    class Compiled(nn.Module):
        """Has what torch.compile leaves behind."""

        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = model

        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the compiled module was called")

    objective = Objective(Compiled(), mean_loss, [(X, Y)])
    assert objective.model is model
    assert objective.value() == pytest.approx(F.mse_loss(model(X), Y).item())


def generated(batch: Any) -> Iterator[Any]:
    yield batch


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batches": torch.ones(4, 3)}, TypeError, r"pass a list: \[batch\]"),
        ({"batches": (torch.ones(4, 3), torch.ones(4, 1))}, TypeError, r"looks like one batch"),
        ({"batches": generated((torch.ones(4, 3), torch.ones(4, 1)))}, TypeError, "read only once"),
        ({"batches": []}, ValueError, "at least one batch"),
        ({"mode": "test"}, ValueError, "use 'eval' or 'train'"),
        ({"model": nn.ReLU()}, ValueError, "requires_grad=True"),
    ],
)
def test_wrong_usage_is_refused_at_once(change: dict[str, Any], error: type[Exception], message: str) -> None:
    model, X, Y = regression()
    arguments: dict[str, Any] = {"model": model, "batches": [(X, Y)], "mode": "eval"} | change
    with pytest.raises(error, match=message):
        Objective(arguments["model"], mean_loss, arguments["batches"], mode=arguments["mode"])


def test_wrong_losses_are_refused() -> None:
    model, X, Y = regression()
    with pytest.raises(ValueError, match=r"shape \(10, 1\).* mean loss"):
        Objective(model, lambda m, b: (m(b[0]) - b[1]).square(), [(X, Y)]).value()
    with pytest.raises(ValueError, match="total count of 0"):
        Objective(model, lambda m, b: (m(b[0]).sum(), 0), [(X, Y)]).value()


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deep", "pickle"]
)
def test_a_copy_after_a_look_is_measured_at_its_own_weights(copier: Callable[[Objective], Objective]) -> None:
    model, X, Y = regression()
    L = Objective(model, mean_loss, [(X, Y)])
    L.gradient()
    twin = copier(L)
    with torch.no_grad():
        for p in twin.params:
            p.add_(1.0)
    moved = L.gradient([p.detach() for p in twin.params])
    assert all(torch.equal(a, b) for a, b in zip(twin.gradient(), moved, strict=True))
    assert all(bool(g.any()) for g in moved)


def test_repr_says_what_it_is() -> None:
    model, X, Y = regression()
    assert repr(Objective(model, mean_loss, [(X, Y)], data="validation")) == (
        "Objective(Linear, 10 samples of validation, mode='eval', d=4)"
    )
