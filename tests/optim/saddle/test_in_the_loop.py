"""What loops do to every wrapper and solver: micro-batches, frozen, unused and tied parameters, bf16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.optim.saddle import (
    CubicNewton,
    NegativeCurvature,
    NoisyGradient,
    PerturbedGradient,
    SaddleFreeNewton,
    Trigger,
    TrustRegionNewton,
)


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


MAKERS: dict[str, Any] = {
    "NegativeCurvature": lambda p: NegativeCurvature(
        sgd(p), trigger=Trigger(("every",), every=3), max_matvecs=4
    ),
    "PerturbedGradient": lambda p: PerturbedGradient(sgd(p)),
    "NoisyGradient": lambda p: NoisyGradient(sgd(p)),
    "CubicNewton": lambda p: CubicNewton(p, max_matvecs=4),
    "SaddleFreeNewton": lambda p: SaddleFreeNewton(p, max_matvecs=4),
    "TrustRegionNewton": lambda p: TrustRegionNewton(p, max_matvecs=4),
}
EVERY = pytest.mark.parametrize("name", MAKERS)


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(12, 3, generator=draw, dtype=dtype), torch.randint(2, (12,), generator=draw)


def trained(name: str, model: nn.Module, parts: int = 1, steps: int = 7) -> list[Tensor]:
    """The weights after some steps, the batch taken in equal parts."""
    x, y = data(next(model.parameters()).dtype)
    optimizer = MAKERS[name](list(model.parameters()))

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for xs, ys in zip(x.chunk(parts), y.chunk(parts), strict=True):
            loss = F.cross_entropy(model(xs).double(), ys) / parts
            loss.backward()
            total = total + loss.detach()
        return total

    for _ in range(steps):
        optimizer.step(closure)
    return [p.detach().clone() for p in model.parameters()]


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


@EVERY
def test_micro_batches_are_their_batch_in_one_piece(name: str) -> None:
    whole, pieces = trained(name, net()), trained(name, net(), parts=4)
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@EVERY
def test_frozen_parameters_keep_their_bits_and_the_others_move_as_if_they_were_constants(name: str) -> None:
    model, bare = net(), net()
    model[0].requires_grad_(False)
    frozen = [p.clone() for p in model[0].parameters()]
    after = trained(name, model)
    assert all(torch.equal(a, b) for a, b in zip(frozen, after[:2], strict=True))

    class Rest(nn.Module):  # the same net with the first layer no parameter at all
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = [bare[0]], bare[2]

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first[0](x).detach()))

    for a, b in zip(after[2:], trained(name, Rest()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@EVERY
def test_a_parameter_that_no_loss_uses_is_no_obstacle(name: str) -> None:
    model = net()
    model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    after = dict(zip((n for n, _ in model.named_parameters()), trained(name, model), strict=True))
    assert all(bool(p.isfinite().all()) for p in after.values())
    if name not in ("NoisyGradient", "PerturbedGradient"):  # whose kicks go in all directions
        torch.testing.assert_close(after["unused"], torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)


class Tied(nn.Module):
    """One matrix in two places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.out = nn.Linear(3, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


@EVERY
def test_a_tied_parameter_is_one_parameter(name: str) -> None:
    model = Tied()
    before = F.cross_entropy(model(data()[0]), data()[1]).item()
    after = trained(name, model, steps=12)
    assert len(after) == 5
    assert model.a.weight is model.b.weight
    assert F.cross_entropy(model(data()[0]), data()[1]).item() < before


@EVERY
def test_pure_bfloat16_weights_train(name: str) -> None:
    model = net(torch.bfloat16)
    x, y = data(torch.bfloat16)
    before = F.cross_entropy(model(x).double(), y).item()
    assert all(p.dtype is torch.bfloat16 and bool(p.isfinite().all()) for p in trained(name, model, steps=12))
    assert F.cross_entropy(model(x).double(), y).item() < before
