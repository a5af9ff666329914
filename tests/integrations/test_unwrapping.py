"""What a trainer has put around an optimizer or a model, and the pilot on it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optland import SAM, Pilot
from optland.pilot.host import unwrapped


def loss_fn(model: nn.Module, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


@pytest.mark.cell("Accelerate", "pilot monitor")
@pytest.mark.cell("Accelerate", "pilot control")
@pytest.mark.parametrize("mode", ["monitor", "control"])
def test_the_pilot_takes_what_accelerate_has_prepared(mode: str) -> None:
    """With the same numbers as around the optimizer itself."""
    accelerate = pytest.importorskip("accelerate")
    ends = []
    for prepared in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        own = optimizer = SAM(torch.optim.AdamW(net.parameters(), lr=1e-2), model=net)
        model = net
        if prepared:
            model, optimizer = accelerate.Accelerator(cpu=True).prepare(net, own)
            assert optimizer is not own
            assert unwrapped(optimizer) is own
        with Pilot(optimizer, model, loss_fn, total_steps=12, mode=mode) as pilot:
            for _ in range(12):
                batch = torch.randn(16, 4).double(), torch.randn(16, 1).double()
                for _ in own.passes():
                    loss = loss_fn(model, batch)
                    loss.backward()
                optimizer.step()
                pilot.after_step(batch, loss)
                optimizer.zero_grad()
        assert pilot.step == 12
        ends.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_what_is_not_wrapped_is_returned() -> None:
    net = nn.Linear(2, 1)
    optimizer = SAM(torch.optim.SGD(net.parameters(), lr=0.1))
    assert unwrapped(net) is net
    assert unwrapped(optimizer) is optimizer  # not its base
    assert unwrapped(torch.compile(net, backend="eager")) is net


def test_an_own_optimizer_that_holds_another_is_no_wrapper() -> None:
    """Only those of trainers are looked into, whatever an attribute is called."""

    class Holder(torch.optim.SGD):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)

    held = Holder(nn.Linear(2, 1).parameters(), lr=0.1)
    assert unwrapped(held) is held
