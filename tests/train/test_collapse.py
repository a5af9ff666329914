"""A net that dies without a loss rise is seen by its gradients and brought back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.control import AutoLR
from optland.train import BatchLoader, Pilot
from optland.train.collapse import PATIENCE, SilentLayers


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def kill(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[2].bias.fill_(-1e3)


def backward(model: nn.Module, x: Tensor) -> None:
    model.zero_grad()
    F.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long)).backward()


def test_silence_is_counted_in_matrices_that_had_a_gradient() -> None:
    model, x = net(), torch.randn(8, 6)
    unused = nn.Parameter(torch.zeros(2, 2))
    unused.grad = torch.zeros(2, 2)
    layers = SilentLayers([*model.parameters(), unused])
    backward(model, x)
    layers.observe()
    assert layers.steps == 0
    kill(model)
    for _ in range(PATIENCE - 1):
        backward(model, x)
        layers.observe()
    assert layers.trouble is None
    layers.observe()
    # Both hidden matrices, and the last one, whose input is zero.
    assert layers.trouble is not None
    assert "3 of 4 weight matrices has been exactly zero for 10 steps" in layers.trouble
    layers.forget()
    assert layers.trouble is None


def test_a_matrix_that_comes_back_is_no_collapse() -> None:
    model, x = net(), torch.randn(8, 6)
    layers = SilentLayers(list(model.parameters()))
    for i in range(3 * PATIENCE):
        backward(model, x)
        if i % PATIENCE:
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
        layers.observe()
    assert layers.trouble is None
    twin = SilentLayers(list(model.parameters()))
    twin.load_state_dict(layers.state_dict())
    assert twin.steps == layers.steps == PATIENCE - 1


def test_the_pilot_rewinds_a_dead_net_to_before_it_died() -> None:
    model = net()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(256, 6, generator=generator)
    y = (x @ torch.randn(6, 3, generator=generator)).argmax(1)
    loader = BatchLoader([x, y], 16, epochs=20, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def loss_fn(m: nn.Module, b: Any) -> Tensor:
        return F.cross_entropy(m(b[0]), b[1])

    pilot = Pilot(
        optimizer, model, loss_fn, policies=[AutoLR()], budget=0.0, total_samples=loader.total_samples
    )
    pilot.steering.guard.ceiling = 1e9  # the loss alone shall not tell
    pilot.steering.guard.lost = pilot.steering.guard.slack = 1e9
    for batch in pilot.batches(loader):

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        if pilot.step == 100:
            kill(model)
        pilot.after_step(batch, loss)
    (rewind,) = [d for d in pilot.decisions if d.actuator == "rewind"]
    assert "collapsed" in rewind.reason
    assert rewind.step <= 100 + PATIENCE + 2
    with torch.no_grad():
        assert float((model(x).argmax(1) == y).float().mean()) > 0.9
