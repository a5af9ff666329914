"""The parts of a batch that the processes of a run are served: together the batch of one process, in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from optland import processes
from optland.batches import num_samples, split
from optland.train import BatchLoader, DatasetLoader, GroupedLoader
from optland.train.loops.loader import ResumableLoader

NUM = 23


@contextmanager
def process(rank: int, size: int) -> Iterator[None]:
    """As within a launcher's; loaders ask for no more than rank and size."""
    processes._present[:] = [rank, size]
    try:
        yield
    finally:
        processes._present.clear()


def noisy(batch: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """What is drawn for a sample depends on its place in the whole batch."""
    x, *others = batch
    return x + torch.rand(x.shape, generator=generator), *others


def tensors() -> list[Tensor]:
    return [torch.arange(float(NUM)), torch.arange(NUM)]


def in_memory() -> ResumableLoader:
    return BatchLoader(tensors(), 5, epochs=2, seed=3, transform=noisy)


def dataset() -> ResumableLoader:
    return DatasetLoader(TensorDataset(*tensors()), 5, epochs=2, seed=3)


def grouped() -> ResumableLoader:
    return GroupedLoader(
        DataLoader(TensorDataset(*tensors()), 5, shuffle=True), epochs=2, seed=3, transform=noisy
    )


LOADERS = [in_memory, dataset, grouped]


def served(
    make: Callable[[], ResumableLoader], rank: int, size: int, grows: bool
) -> list[tuple[Any, int, float]]:
    """Each batch, the samples of it that count, and their weight."""
    with process(rank, size):
        loader: Any = make()
        found = []
        for batch in loader:
            found.append((batch, loader.own, loader.weight))
            if grows and len(found) == 2:
                loader.set_batch_size(10)
        assert loader.samples_served == 2 * NUM
        return found


@pytest.mark.parametrize("make", LOADERS)
@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("grows", [False, True])
def test_the_parts_of_all_are_the_batches_of_one(
    make: Callable[[], ResumableLoader], size: int, grows: bool
) -> None:
    alone = served(make, 0, 1, grows)
    ranks = [served(make, rank, size, grows) for rank in range(size)]
    assert all(weight == 1.0 for _, _, weight in alone)
    for whole, *parts in zip(alone, *ranks, strict=True):
        counted = [(batch, own) for batch, own, _ in parts if own]
        for k, column in enumerate(whole[0]):
            together = torch.cat([batch[k][:own] for batch, own in counted])
            assert torch.equal(together, column)
        assert sum(own for _, own, _ in parts) == num_samples(whole[0])
        weights = [weight for _, _, weight in parts]
        assert sum(weights) == pytest.approx(size)
        # The mean over processes of weighted means is the mean over samples.
        mean = sum(float(batch[1].double().mean()) * weight for batch, _, weight in parts) / size
        assert mean == pytest.approx(float(whole[0][1].double().mean()))


@pytest.mark.parametrize("make", LOADERS)
def test_a_part_is_cut_as_a_batch_is(make: Callable[[], ResumableLoader]) -> None:
    (whole, _, _), *_ = served(make, 0, 1, grows=False)
    for rank, part in enumerate(split(whole, 2)):
        (mine, _, _), *_ = served(make, rank, 2, grows=False)
        assert torch.equal(mine[1], part[1])


@pytest.mark.parametrize("make", LOADERS)
def test_another_number_of_processes_goes_on_with_the_same_batches(
    make: Callable[[], ResumableLoader],
) -> None:
    with process(1, 2):
        loader: Any = make()
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        state = loader.state_dict()
    alone = served(make, 0, 1, grows=False)
    resumed: Any = make()
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == len(alone) - 3
    for batch, (expected, _, _) in zip(rest, alone[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))


def test_a_batch_has_a_sample_for_each_process() -> None:
    with (
        process(0, 4),
        pytest.raises(ValueError, match="batch size 3 must be at least 4: one for each of 4 processes"),
    ):
        BatchLoader(tensors(), 3, epochs=1)
