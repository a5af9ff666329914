"""A pilot over a model that the loop calls through ``torch.compile``: the run without the compiler, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optland.optim import SAM
from optland.pilot import Pilot

STEPS = 30


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def trained(*, compiled: bool, mode: str | None) -> tuple[list[Tensor], Pilot | None]:
    """Weights and running statistics at the end, and the pilot."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
    called: Any = torch.compile(model, backend="eager") if compiled else model
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.1, model=called)
    pilot = None
    if mode is not None:
        policies = ["auto_lr", "edge_monitor"]
        pilot = Pilot(optimizer, called, loss_fn, policies=policies, mode=mode, total_steps=STEPS, budget=0.5)
    for _ in range(STEPS):
        batch = torch.randn(16, 4, dtype=torch.float64), torch.randint(3, (16,))

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(called, batch)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        if pilot is not None:
            pilot.after_step(batch, loss)
    return [t.detach().clone() for t in model.state_dict().values()], pilot


@pytest.mark.cell("torch.compile", "pilot control")
def test_a_compiled_model_is_steered_as_it_is_without() -> None:
    found, pilot = trained(compiled=True, mode="control")
    expected, alone = trained(compiled=False, mode="control")
    assert pilot is not None
    assert alone is not None
    # The end of its course is at zero; the rate in the groups is 0.1.
    assert pilot.steering.applied() == alone.steering.applied() < 0.05
    assert pilot.budget.state_dict() == alone.budget.state_dict()
    assert pilot.budget.probe_ge > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.cell("torch.compile", "pilot monitor")
def test_looking_at_a_compiled_model_changes_nothing() -> None:
    found, pilot = trained(compiled=True, mode="monitor")
    expected, _ = trained(compiled=True, mode=None)
    assert pilot is not None
    assert pilot.budget.probe_ge > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
