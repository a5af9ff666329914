"""An escape of a saddle wrapper is no gradient step: under a policy that sets lengths it is as long as without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optland.optim import SAM
from optland.optim.saddle import NegativeCurvature, PerturbedGradient
from optland.pilot import Pilot


class Saddle(nn.Module):
    """x^2 - y^2 + y^4, from exactly 0: the gradient is zero there, and the minima are y = +-1 / sqrt(2)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self) -> Tensor:
        x, y = self.w
        return x**2 - y**2 + y**4


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    loss = model()
    assert isinstance(loss, Tensor)
    return loss


def descend(
    make: Callable[[Saddle], Any], updates: int, *, piloted: bool, mode: Any = "control"
) -> tuple[Tensor, Any, Tensor]:
    """The weights that the first moving update began its gradient step at, the optimizer, and the last weights."""
    torch.manual_seed(0)
    model = Saddle()
    optimizer = make(model)
    pilot = (
        Pilot(optimizer, model, loss_fn, policies=["auto_lr"], mode=mode, total_steps=updates)
        if piloted
        else None
    )
    batch, places = torch.zeros(4, 1), []
    innermost = optimizer.base.base if isinstance(optimizer.base, SAM) else optimizer.base
    innermost.register_step_pre_hook(lambda *_: places.append(model.w.detach().clone()))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        return loss

    for _ in range(updates):
        loss = optimizer.step(closure)
        if pilot is not None:
            pilot.after_step(batch, loss)
    left = next(w for w in places if w.abs().max() > 0)
    return left, optimizer, model.w.detach()


WRAPPERS: dict[str, Callable[[Saddle], Any]] = {
    "sgd": lambda m: NegativeCurvature(torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.5), model=m),
    "adamw": lambda m: NegativeCurvature(torch.optim.AdamW(m.parameters(), lr=0.05), model=m),
    "sam": lambda m: NegativeCurvature(
        SAM(torch.optim.SGD(m.parameters(), lr=0.05), rho=0.01, model=m), model=m
    ),
    "kick": lambda m: PerturbedGradient(torch.optim.SGD(m.parameters(), lr=0.05), model=m),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_an_escape_is_as_long_as_without_the_pilot(name: str) -> None:
    alone, first, _ = descend(WRAPPERS[name], 40, piloted=False)
    steered, second, last = descend(WRAPPERS[name], 40, piloted=True)
    assert first.events[0].to_dict() == second.events[0].to_dict()
    assert torch.equal(alone, steered)
    if name != "kick":  # which is small, and taken back where nothing comes of it
        assert alone.norm() > 0.3, "the move off the saddle is of the size of its surroundings"
        x, y = last.tolist()
        assert x**2 - y**2 + y**4 < -0.2, "and training goes on to the minimum at -0.25"
