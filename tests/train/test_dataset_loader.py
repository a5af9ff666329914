"""The loader over worker processes: the same order, the same samples, the same resume, however many workers read."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest
import torch
from tiers import slow
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from optland.context.rng import rng_state
from optland.train import BatchLoader
from optland.train.loops.dataset_loader import DatasetLoader


class Noisy(Dataset[Any]):
    """Samples with randomness of every kind in them."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        if not 0 <= index < self.n:
            raise IndexError(index)
        return index, torch.tensor([torch.rand(()).item(), random.random(), np.random.rand()])  # noqa: NPY002


class WhoReads(Dataset[Any]):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def served(
    loader: DatasetLoader, change: dict[int, int] | None = None, start: int = 0, stop: int = 999
) -> list[Any]:
    """Batches ``start`` to ``stop``, the batch size set to ``change[k]`` after batch k."""
    batches = []
    for k, (index, noise) in enumerate(loader, start):
        batches.append((index.tolist(), noise.tolist()))
        loader.set_batch_size((change or {}).get(k, loader.batch_size))
        if k + 1 == stop:
            break
    return batches


def flat(batches: list[Any]) -> list[Any]:
    return [(index, tuple(noise)) for batch in batches for index, noise in zip(*batch, strict=True)]


def test_it_serves_what_the_loader_in_memory_serves() -> None:
    x = torch.arange(23)
    here = BatchLoader([x], 5, epochs=2, seed=4)
    there = DatasetLoader(TensorDataset(x), 5, epochs=2, seed=4)
    for (a,), (b,) in zip(here, there, strict=True):
        assert torch.equal(a, b)
        assert (here.epoch, here.position, here.at_epoch_end) == (
            there.epoch,
            there.position,
            there.at_epoch_end,
        )
        assert here.samples_served == there.samples_served
    assert there.samples_served == there.total_samples == 46


def test_samples_are_the_same_with_any_number_of_workers_and_any_batch_size_and_differ_between_epochs() -> (
    None
):
    runs = [
        flat(served(DatasetLoader(Noisy(12), size, epochs=2, seed=1, num_workers=workers)))
        for size, workers in ((4, 0), (4, 1), (4, 2), (5, 2))
    ]
    assert runs[0] == runs[1] == runs[2] == runs[3]
    assert sorted(index for index, _ in runs[0]) == sorted([*range(12)] * 2)
    noise = [value for _, values in runs[0] for value in values]
    assert len(set(noise)) == len(noise) == 72, "no two samples and no two epochs share their randomness"


def test_workers_do_the_reading() -> None:
    readers = {
        pid for batch in DatasetLoader(WhoReads(), 4, epochs=1, num_workers=2) for pid in batch.tolist()
    }
    assert len(readers) == 2
    assert os.getpid() not in readers


@pytest.mark.parametrize("workers", [0, 2])
def test_the_runs_own_generators_are_left_alone(workers: int) -> None:
    before = rng_state()
    served(DatasetLoader(Noisy(9), 2, epochs=1, num_workers=workers))
    after = rng_state()
    assert torch.equal(before["torch"], after["torch"])
    assert before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    assert before["numpy"][2:] == after["numpy"][2:]


def test_a_new_batch_size_comes_two_batches_a_worker_later_and_loses_nothing() -> None:
    for workers, sizes in ((0, [2, 5, 5, 5, 5, 2]), (2, [2, 2, 2, 2, 2, 5, 5, 4])):
        loader = DatasetLoader(Noisy(24), 2, epochs=1, num_workers=workers)
        batches = served(loader, {0: 5})
        assert [len(index) for index, _ in batches] == sizes
        assert sorted(index for index, _ in flat(batches)) == list(range(24))
        assert loader.samples_served == 24


@pytest.mark.parametrize(
    ("workers", "stop"),
    [
        *((0, stop) for stop in (1, 2, 5, 9, 10, 14)),
        (2, 9),
        *slow(*((2, stop) for stop in (1, 2, 5, 10, 14))),
    ],
)
def test_resume_goes_on_as_the_unbroken_run_batches_on_their_way_included(workers: int, stop: int) -> None:
    """The size changes shortly before some of the stops, so that batches of the old size are read but not served."""
    change = {0: 3, 1: 4, 8: 1, 12: 6}

    def loader(seed: int) -> DatasetLoader:
        return DatasetLoader(Noisy(20), 2, epochs=2, seed=seed, num_workers=workers)

    whole = served(loader(1), change)
    first = loader(1)
    head = served(first, change, stop=stop)
    state = first.state_dict()
    assert state["epoch"] * 20 + state["position"] == sum(len(index) for index, _ in head)
    second = loader(2)
    second.load_state_dict(state)
    assert head + served(second, change, start=stop) == whole


def test_resume_with_another_number_of_workers_loses_and_repeats_no_sample() -> None:
    first = DatasetLoader(Noisy(20), 3, epochs=1, seed=1, num_workers=2)
    head = served(first, {1: 4}, stop=3)
    second = DatasetLoader(Noisy(20), 3, epochs=1, num_workers=0)
    second.load_state_dict(first.state_dict())
    whole = flat(served(DatasetLoader(Noisy(20), 3, epochs=1, seed=1)))
    assert flat(head) + flat(served(second)) == whole


def test_an_iteration_left_and_taken_up_again_goes_on_where_it_was() -> None:
    loader = DatasetLoader(Noisy(20), 3, epochs=1, seed=1, num_workers=2)
    whole = served(DatasetLoader(Noisy(20), 3, epochs=1, seed=1, num_workers=2))
    assert served(loader, stop=3) + served(loader) == whole


def test_the_transform_of_a_batch_is_seeded_by_its_position() -> None:
    def shift(batch: Any, generator: torch.Generator) -> Any:
        return batch[0] + torch.rand((), generator=generator, dtype=torch.float64)

    def values(loader: Any) -> list[Any]:
        return [batch.tolist() for batch in loader]

    data = torch.arange(10)
    one = values(DatasetLoader(TensorDataset(data), 4, epochs=2, seed=7, transform=shift))
    two = values(DatasetLoader(TensorDataset(data), 4, epochs=2, seed=7, num_workers=2, transform=shift))
    assert one == two == values(BatchLoader([data], 4, epochs=2, seed=7, transform=shift))


def test_a_collate_function_is_used_and_mappings_come_through() -> None:
    def collate(samples: list[Any]) -> dict[str, Tensor]:
        return {"x": torch.stack([x for (x,) in samples])}

    for workers in (0, 1):
        loader = DatasetLoader(
            TensorDataset(torch.arange(4)), 3, epochs=1, num_workers=workers, collate_fn=collate
        )
        assert [sorted(batch) for batch in loader] == [["x"], ["x"]]


def test_pinned_memory_is_asked_for_only_where_cuda_is() -> None:
    (batch,) = next(iter(DatasetLoader(TensorDataset(torch.arange(4)), 4, epochs=1, pin_memory=True)))
    assert batch.is_pinned() == torch.cuda.is_available()


def test_bad_input_is_named() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(3))

    data = TensorDataset(torch.arange(4))
    with pytest.raises(TypeError, match=r"a Stream is a stream: exact resume needs a dataset with len\(\)"):
        DatasetLoader(Stream(), 1, epochs=1)
    with pytest.raises(ValueError, match="num_workers -1 is negative; use 0"):
        DatasetLoader(data, 1, epochs=1, num_workers=-1)
    with pytest.raises(ValueError, match="batch size 0"):
        DatasetLoader(data, 0, epochs=1)
    with pytest.raises(ValueError, match="empty"):
        DatasetLoader(TensorDataset(torch.arange(0)), 1, epochs=1)
    with pytest.raises(ValueError, match="4 samples, the data set has 5"):
        DatasetLoader(TensorDataset(torch.arange(5)), 1, epochs=1).load_state_dict(
            DatasetLoader(data, 1, epochs=1).state_dict()
        )
