"""A finished run that goes on to a larger number of epochs: its schedule and pace are those of the longer run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optland.pilot import AutoLR, Pilot
from optland.pilot.policies.auto_lr import horizon_factor, linear_shape
from optland.train import BatchLoader

DATA = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0]).square().mean()


class Run:
    """Ten updates an epoch."""

    def __init__(self, epochs: int, *, given: bool) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)
        self.policy = AutoLR()
        self.loader = BatchLoader([DATA], 4, epochs=epochs)
        length = {"total_steps": 10 * epochs} if given else {}
        self.pilot = Pilot(self.optimizer, self.net, loss_fn, policies=[self.policy], budget=0.0, **length)

    def go(self, updates: int) -> Run:
        for batch in self.pilot.batches(self.loader):
            self.optimizer.zero_grad()
            loss = loss_fn(self.net, batch)
            loss.backward()
            self.optimizer.step()
            self.pilot.after_step(batch, loss)
            updates -= 1
            if not updates:
                break
        return self

    def parts(self) -> list[Any]:
        return [self.net, self.optimizer, self.loader, self.pilot]


@pytest.mark.parametrize("given", [False, True])
def test_pace_and_shape_are_those_of_the_longer_run(given: bool) -> None:
    short = Run(20, given=given).go(200)
    longer = Run(40, given=given)
    for part, before in zip(longer.parts(), short.parts(), strict=True):
        part.load_state_dict(copy.deepcopy(before.state_dict()))
    assert short.policy.steps == 200
    longer.go(1)
    assert longer.policy.steps == 400
    assert longer.pilot.step == 201
    noise = longer.policy.pace / (0.05 * horizon_factor(400))
    assert 0.25 <= noise <= 1.0
    asked = linear_shape(200.5 / 400) * longer.policy.pace
    w = DATA.new_tensor(short.net.weight.tolist())
    moved = float((longer.net.weight.detach() - w).norm() / w.norm())
    assert moved == pytest.approx(asked, rel=1e-4)


def test_a_resume_at_the_same_length_tells_nobody_anything() -> None:
    first = Run(20, given=False).go(57)
    again = Run(20, given=False)
    for part, before in zip(again.parts(), first.parts(), strict=True):
        part.load_state_dict(copy.deepcopy(before.state_dict()))
    told: list[Any] = []
    again.policy.begin = lambda facts: told.append(facts) or []  # type: ignore[method-assign, assignment]
    again.go(20)
    first.go(20)
    assert told == []
    assert torch.equal(again.net.weight, first.net.weight)
