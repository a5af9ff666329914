"""Loops that read a loader several times: whose length is the run's?"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from optland.pilot import Pilot
from optland.train import BatchLoader


def piloted(**options: object) -> tuple[Pilot, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    return Pilot(optimizer, net, loss_fn, budget=0.0, **options), optimizer


def loss_fn(model: nn.Module, batch: Tensor | tuple[Tensor, ...]) -> Tensor:
    x = batch if isinstance(batch, Tensor) else batch[0]
    return model(x).square().mean()


def train(pilot: Pilot, optimizer: torch.optim.Optimizer, batches: Iterable[Tensor]) -> int:
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_fn(pilot.host.model, batch)
        loss.backward()
        optimizer.step()
        pilot.after_step(batch, loss)
    return pilot.step


def list_of(number: int) -> list[Tensor]:
    return list(torch.randn(number, 4, 3, generator=torch.Generator().manual_seed(0)))


def test_a_second_pass_over_a_loader_whose_length_was_taken_for_the_runs_is_refused() -> None:
    pilot, optimizer = piloted()
    assert train(pilot, optimizer, pilot.batches(list_of(5))) == 5
    with pytest.raises(ValueError, match=r"total_steps=5, and now there is a second pass; .*epochs="):
        train(pilot, optimizer, pilot.batches(list_of(5)))


@pytest.mark.parametrize("options", [{"total_steps": 12}, {"total_samples": 48}, {"open_ended": True}])
def test_passes_of_a_run_whose_length_was_given_may_follow_each_other(options: dict[str, int]) -> None:
    pilot, optimizer = piloted(**options)
    loaders = [list_of(5), list_of(4), list_of(3)]
    assert train(pilot, optimizer, itertools.chain.from_iterable(map(pilot.batches, loaders))) == 12


def test_a_loader_of_all_epochs_that_was_left_goes_on_where_it_was() -> None:
    pilot, optimizer = piloted()
    loader = BatchLoader([torch.randn(20, 3)], 4, epochs=2)
    train(pilot, optimizer, itertools.islice(pilot.batches(loader), 3))
    assert train(pilot, optimizer, pilot.batches(loader)) == 10
    assert pilot.progress.total_steps == 10
