"""What two ranks agree on, as two threads: the loss by samples, the rest from rank 0, and norms that are not finite."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn

from optland.pilot.ranks import Ranks
from optland.pilot.scalars import Scalars


class Thread(Ranks):
    """One of two ranks; ``told`` and ``all_there`` are what they share."""

    def __init__(self, rank: int, told: dict[int, tuple[Tensor, Tensor]], all_there: Barrier) -> None:
        super().__init__(nn.Linear(1, 1))
        self.size, self.rank, self.told, self.all_there = 2, rank, told, all_there

    def agree(self, numbers: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        self.told[self.rank] = numbers, sums
        self.all_there.wait(timeout=60.0)
        return self.told[0][0], self.told[0][1] + self.told[1][1]


def agreed(
    losses: tuple[float, float], samples: tuple[int, int], norms: tuple[float, float]
) -> list[tuple[dict[str, float], list[float], list[float]]]:
    """What each rank delivers, and the norms and numbers that it gets."""
    told: dict[int, tuple[Tensor, Tensor]] = {}
    all_there = Barrier(2)

    def on(rank: int) -> tuple[dict[str, float], list[float], list[float]]:
        scalars = Scalars(Thread(rank, told, all_there), torch.device("cpu"))
        scalars.samples = samples[rank]
        scalars.put(train__loss=losses[rank], update__rel=torch.tensor(float(rank)))
        back = scalars.fetch(torch.tensor([norms[rank]]), [10.0 + rank])
        return scalars.delivered, *back

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(on, (0, 1)))


def test_the_loss_is_the_mean_over_all_samples_and_the_rest_is_that_of_rank_0() -> None:
    """(8 * 1 + 24 * 4) / 32 = 3.25."""
    first, second = agreed((1.0, 4.0), (8, 24), (0.5, 0.7))
    assert first == second
    delivered, norms, extra = first
    assert delivered == {"train/loss": pytest.approx(3.25), "update/rel": 0.0}
    assert (norms, extra) == ([0.5], [10.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_gradient_that_is_not_finite_anywhere_is_so_everywhere(rank: int, bad: float) -> None:
    for _, norms, _ in agreed((1.0, 1.0), (8, 8), (bad, 0.7) if rank == 0 else (0.5, bad)):
        assert math.isnan(norms[0])


def test_norms_that_are_numbers_already_bring_what_waits_with_them() -> None:
    scalars = Scalars(Ranks(nn.Linear(1, 1)), torch.device("cpu"))
    for loss in (2.5, 1.5):
        scalars.put(train__loss=torch.tensor(loss))
        assert scalars.fetch([3.0], [7.0]) == ([3.0], [7.0])
        assert scalars.delivered == {"train/loss": loss}
