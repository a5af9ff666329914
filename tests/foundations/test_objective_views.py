"""Objectives made from objectives: fewer parameters, another precision; and what an objective refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optland import vectors
from optland.objective import Objective

D = torch.float64


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 2),
    )


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.Linear(1, 4), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(4, 2)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutional": (convolutional, (6, 1, 5, 5)),
    "transformer": (transformer, (6, 3, 1)),
}


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_float64_copy_is_the_model_built_in_float64(name: str, mode: Any) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make()
    x = torch.randn(shape)
    model(x)  # running statistics that are not at their start
    loss = lambda m, b: F.cross_entropy(m(b["x"]).flatten(1)[:, :2], b["y"])  # noqa: E731
    batches = [{"x": x, "y": torch.tensor([0, 1, 0, 1, 0, 1])}]
    before = [t.clone() for t in model.state_dict().values()]
    objective = Objective(model, loss, batches, mode=mode)
    wide = objective.double()
    model_64 = make().double()
    model_64.load_state_dict(model.state_dict())
    by_hand = Objective(model_64, loss, [{"x": x.double(), "y": batches[0]["y"]}], mode=mode)
    assert wide.value() == pytest.approx(by_hand.value(), rel=1e-14)
    torch.testing.assert_close(wide.gradient(), by_hand.gradient(), rtol=1e-12, atol=1e-14)
    assert wide.dtype == "float64"
    assert wide.value() == pytest.approx(objective.value(), rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_a_copy_shares_the_meter_and_can_be_refreshed() -> None:
    model = nn.Linear(2, 1)
    objective = Objective(model, lambda m, x: m(x).square().mean(), [torch.ones(4, 2)])
    wide = objective.double()
    wide.gradient()
    assert objective.cost_ge == wide.cost_ge == 4
    model.weight.data.mul_(2.0)
    stale = wide.value()
    wide.refresh(objective)
    assert wide.value() != stale
    assert wide.value() == pytest.approx(objective.value(), rel=1e-6)
    with pytest.raises(ValueError, match="not a floating type"):
        objective.cast(torch.int64)


def test_a_stream_is_cast_as_it_is_read() -> None:
    class Stream:
        def __iter__(self) -> Any:
            return iter([(torch.ones(3, 2), torch.zeros(3, 1)), (torch.ones(1, 2), torch.zeros(1, 1))])

    objective = Objective(nn.Linear(2, 1), lambda m, b: F.mse_loss(m(b[0]), b[1]), Stream())
    assert objective.double().value() == pytest.approx(objective.value(), rel=1e-6)


def test_a_view_has_the_gradient_of_its_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    objective = Objective(model, lambda m, x: m(x).square().mean(), [torch.randn(5, 2, dtype=D)])
    view = objective.select([1, 2])
    assert view.names == ["0.bias", "2.weight"]
    torch.testing.assert_close(view.gradient(), objective.gradient()[1:3])
    moved = view.displaced(vectors.random_unit(view.params, 0), 0.5)
    with view.at(moved):
        there = objective.value()
        assert objective.location == view.location != 0
    assert view.value(moved) == pytest.approx(there)
    assert objective.double().select([0]).names == objective.select([0]).double().names == ["0.weight"]


def test_complex_parameters_and_losses_and_losses_without_a_graph_are_refused() -> None:
    x = torch.ones(3, 2)
    with pytest.raises(TypeError, match=r"'weight' is complex.*view_as_real"):
        Objective(nn.Linear(2, 1, dtype=torch.complex64), lambda m, b: m(b).abs().mean(), [x])
    model = nn.Linear(2, 1)

    def gradient(loss_fn: Callable[[nn.Module, Tensor], Any]) -> None:
        Objective(model, loss_fn, [x]).gradient()

    with pytest.raises(ValueError, match="returned a complex number"):
        gradient(lambda m, b: torch.complex(m(b), m(b)).mean())
    with pytest.raises(ValueError, match="the loss has no graph"):
        gradient(lambda m, b: m(b).detach().mean())
    # A batch whose terms are all masked weighs nothing, and may be a constant.
    masked = Objective(
        model, lambda m, b: (m(b).sum(), 3) if b.sum() > 0 else (torch.zeros(()), 0), [x, 0 * x]
    )
    assert masked.value() == pytest.approx(float(model(x).mean().detach()))
    torch.testing.assert_close(masked.gradient()[1], torch.ones(1))
