"""The loader: every sample once per epoch, whatever the batch size does, and exact resume inside an epoch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optland.train import BatchLoader


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 3),
    st.lists(st.integers(1, 50), min_size=1, max_size=30),
    st.integers(0, 99),
)
def test_every_sample_is_served_once_an_epoch_while_the_batch_size_changes(
    n: int, epochs: int, sizes: list[int], seed: int
) -> None:
    loader = BatchLoader([torch.arange(n)], sizes[0], epochs=epochs, seed=seed)
    served: list[list[int]] = [[] for _ in range(epochs)]
    for k, (batch,) in enumerate(loader):
        epoch = loader.epoch - 1 if loader.at_epoch_end else loader.epoch
        served[epoch] += batch.tolist()
        loader.set_batch_size(sizes[k % len(sizes)])
    assert [sorted(s) for s in served] == [list(range(n))] * epochs
    assert loader.samples_served == loader.total_samples == n * epochs


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 7), st.integers(0, 60))
def test_resume_inside_an_epoch_serves_exactly_the_rest(n: int, size: int, stop_after: int) -> None:
    whole = [b.tolist() for (b,) in BatchLoader([torch.arange(n)], size, epochs=2, seed=3)]
    first = BatchLoader([torch.arange(n)], size, epochs=2, seed=3)
    head = []
    for _, (batch,) in zip(range(stop_after), first, strict=False):
        head.append(batch.tolist())
    second = BatchLoader([torch.arange(n)], size, epochs=2, seed=99)
    second.load_state_dict(first.state_dict())
    assert head + [b.tolist() for (b,) in second] == whole


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = {
        tuple(b.tolist())
        for seed in range(3)
        for (b,) in BatchLoader([torch.arange(50)], 50, epochs=3, seed=seed)
    }
    assert len(orders) == 9


def test_bad_input_is_named() -> None:
    x = torch.arange(4)
    with pytest.raises(ValueError, match="batch size 0 must be at least 1"):
        BatchLoader([x], 0, epochs=1)
    with pytest.raises(ValueError, match="epochs 0"):
        BatchLoader([x], 1, epochs=0)
    with pytest.raises(ValueError, match=r"lengths \[3, 4\]"):
        BatchLoader([x, x[:3]], 1, epochs=1)
    with pytest.raises(ValueError, match="empty"):
        BatchLoader([x[:0]], 1, epochs=1)
    other = BatchLoader([torch.arange(9)], 1, epochs=1)
    with pytest.raises(ValueError, match="9 samples, the data set has 4"):
        BatchLoader([x], 1, epochs=1).load_state_dict(other.state_dict())


# ---------------------------------------------------------------- augmentation


def jitter(batch: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    (x,) = batch
    return (x + torch.rand(len(x), generator=generator, dtype=torch.float64),)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 20))
def test_augmentation_resumes_exactly_while_the_batch_size_changes(
    n: int, sizes: list[int], stop_after: int
) -> None:
    def loader(seed: int) -> BatchLoader:
        return BatchLoader([torch.arange(n)], sizes[0], epochs=2, seed=seed, transform=jitter)

    def serve(loader: BatchLoader, start: int) -> Any:
        for k, (batch,) in enumerate(loader, start):
            loader.set_batch_size(sizes[k % len(sizes)])
            yield batch.tolist()

    whole = list(serve(loader(3), 0))
    first, second = loader(3), loader(99)
    head = [batch for _, batch in zip(range(stop_after), serve(first, 0), strict=False)]
    second.load_state_dict(first.state_dict())
    assert head + list(serve(second, len(head))) == whole


def test_augmentation_differs_between_epochs_positions_and_seeds_and_leaves_the_global_generator_alone() -> (
    None
):
    before = torch.get_rng_state()
    drawn = [
        value
        for seed in (0, 1)
        for (batch,) in BatchLoader([torch.zeros(6)], 2, epochs=2, seed=seed, transform=jitter)
        for value in batch.tolist()
    ]
    assert len(set(drawn)) == len(drawn) == 24
    assert all(0 <= value < 1 for value in drawn)
    assert torch.equal(torch.get_rng_state(), before)
