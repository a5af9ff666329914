"""The closure of a step, a training loop that says how long each of its steps took, and several of them in turns."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from optland.objective import LossFn
from optland.pilot import Pilot

__all__ = ["Closure", "Side", "mean_of_next", "seconds_per_step", "timed", "turns"]

Side = Iterator[float]
"""Endless seconds per step."""


class Closure:
    """What an optimizer calls for a loss and its gradient; it counts the calls.

    Args:
        optimizer: Zeroes the gradients.
        loss: The loss at the present weights.

    Attributes:
        calls: How often it was called.
    """

    def __init__(self, optimizer: Optimizer, loss: Callable[[], Tensor]) -> None:
        self.optimizer, self.loss, self.calls = optimizer, loss, 0

    def __call__(self) -> Tensor:
        self.calls += 1
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss


def timed(step: Callable[[], object]) -> Side:
    """Make the step over and over."""
    while True:
        started = time.perf_counter()
        step()
        yield time.perf_counter() - started


def seconds_per_step(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: LossFn,
    batches: Sequence[Any],
    pilot: Pilot | None = None,
) -> Side:
    """Train on the batches over and over; with ``pilot`` under it."""
    endless = itertools.cycle(batches)

    def step() -> None:
        batch = next(endless)
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
        if pilot is not None:
            pilot.after_step(batch, loss)

    return timed(step)


def mean_of_next(side: Side, steps: int) -> float:
    """Seconds per step over the next few."""
    return statistics.fmean(next(side) for _ in range(steps))


def turns(
    sides: Mapping[str, Side], num_turns: int, steps: int, turn: Callable[[Side, int], float] = mean_of_next
) -> dict[str, list[float]]:
    """Let all sides train a few steps in each turn, so that they meet the same machine.

    Args:
        sides: The loops by name.
        num_turns: How often each has its turn.
        steps: Length of one.
        turn: Makes the steps of one side's turn and says how many seconds one of them took.

    Returns:
        By name, the seconds per step of each turn.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(num_turns):
        for name, side in sides.items():
            found[name].append(turn(side, steps))
    return found
