"""Count, cut, join and move the samples of a batch of any type.

A batch may be a tensor, a tuple, a mapping (also Hugging Face's ``BatchEncoding``) or a dataclass, nested in
any way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Cast",
    "join",
    "map_tensors",
    "num_samples",
    "split",
    "take",
    "thin",
    "to_device",
]


def _children(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        yield from batch.values()
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        yield from (getattr(batch, field.name) for field in dataclasses.fields(batch))
    elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        yield from batch


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
        return
    for child in _children(batch):
        yield from _tensors(child)


def num_samples(batch: Any) -> int:
    """Number of samples: the leading dimension of the first tensor in the batch.

    Raises:
        TypeError: The batch holds no tensor with a leading dimension. Let ``loss_fn`` return ``(sum, count)``
            and give the objective its ``num_samples`` then.

    Example:
        >>> num_samples({"x": torch.zeros(8, 3), "y": torch.zeros(8)})
        8
    """
    if type(batch) is tuple and batch and isinstance(batch[0], Tensor) and batch[0].ndim > 0:
        return batch[0].shape[0]  # the most usual batch, counted in every update
    for tensor in _tensors(batch):
        if tensor.ndim > 0:
            return tensor.shape[0]
    raise TypeError(
        f"cannot count the samples of a batch of type {type(batch).__name__}: it holds no tensor with a "
        "leading dimension. Let loss_fn return (sum of losses, count), and give the Objective num_samples=..."
    )


def map_tensors(batch: Any, apply: Callable[[Tensor], Tensor]) -> Any:
    """The batch with ``apply`` done to every tensor, its structure and types kept."""
    if isinstance(batch, Tensor):
        return apply(batch)
    if isinstance(batch, Mapping):
        items = {key: map_tensors(value, apply) for key, value in batch.items()}
        make: Any = type(batch)  # BatchEncoding and its like are made from a dictionary
        return make(items)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(
            batch, **{f.name: map_tensors(getattr(batch, f.name), apply) for f in dataclasses.fields(batch)}
        )
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):  # a named tuple takes its fields one by one
        return type(batch)(*(map_tensors(item, apply) for item in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map_tensors(item, apply) for item in batch)
    return batch


def split(batch: Any, num_parts: int) -> list[Any]:
    """Cut a batch into ``num_parts`` contiguous pieces whose sizes differ by at most one.

    Tensors whose leading dimension is the number of samples are cut; everything else goes whole into each
    piece.

    Raises:
        ValueError: The batch has fewer samples than ``num_parts``.

    Example:
        >>> [len(piece) for piece in split(torch.arange(5), 2)]
        [3, 2]
    """
    count = num_samples(batch)
    if not 1 <= num_parts <= count:
        raise ValueError(f"cannot cut a batch of {count} samples into {num_parts} parts; use 1 to {count}")
    edges = [-(-count * i // num_parts) for i in range(num_parts + 1)]

    return [_slice(batch, count, a, b) for a, b in pairwise(edges)]


def join(batches: Sequence[Any]) -> Any:
    """One batch of the samples of several, in order: the inverse of :func:`split`.

    Tensors whose leading dimension is the number of samples are concatenated, lists of one entry per sample too; of
    everything else the first is taken.

    Raises:
        ValueError: Tensors of one place differ in more than their leading dimension.

    Example:
        >>> join([(torch.zeros(2, 3), "a"), (torch.ones(1, 3), "a")])[0].shape
        torch.Size([3, 3])
    """
    return _join(list(batches), [num_samples(batch) for batch in batches])


def _join(items: list[Any], counts: list[int]) -> Any:
    first = items[0]
    if isinstance(first, Tensor):
        whole = any(t.ndim == 0 or t.shape[0] != count for t, count in zip(items, counts, strict=True))
        return first if whole else _concatenate(items)
    if isinstance(first, Mapping):
        make: Any = type(first)
        return make({key: _join([item[key] for item in items], counts) for key in first})
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first)]
        return dataclasses.replace(
            first, **{n: _join([getattr(item, n) for item in items], counts) for n in names}
        )
    if not isinstance(first, list | tuple):
        return first
    if next(_tensors(first), None) is None:  # names, say, one per sample
        each = all(len(item) == count for item, count in zip(items, counts, strict=True))
        return type(first)(entry for item in items for entry in item) if each else first
    parts = [_join(list(place), counts) for place in zip(*items, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)


def _concatenate(tensors: list[Tensor]) -> Tensor:
    shapes = sorted({tuple(t.shape[1:]) for t in tensors})
    if len(shapes) > 1:
        raise ValueError(
            f"batches with samples of shapes {shapes} cannot be joined; let collate_fn pad all samples to one shape"
        )
    return torch.cat(tensors)


def take(batch: Any, num_taken: int) -> Any:
    """The first ``num_taken`` samples of a batch (all of them when it holds fewer), copied out of it."""
    return map_tensors(_slice(batch, num_samples(batch), 0, num_taken), torch.clone)


def thin(batch: Any, every: int) -> Any:
    """Every ``every``-th sample of a batch, the first one included.

    Example:
        >>> thin(torch.arange(5), 2).tolist()
        [0, 2, 4]
    """
    count = num_samples(batch)
    return map_tensors(batch, lambda t: t[::every] if t.ndim > 0 and t.shape[0] == count else t)


def _slice(batch: Any, count: int, start: int, stop: int) -> Any:
    return map_tensors(batch, lambda t: t[start:stop] if t.ndim > 0 and t.shape[0] == count else t)


def to_device(batch: Any, device: torch.device | str) -> Any:
    """The batch with every tensor on ``device``."""
    return map_tensors(batch, lambda t: t.to(device, non_blocking=True))


def to_dtype(batch: Any, dtype: torch.dtype) -> Any:
    """The batch with every floating tensor in ``dtype``; integers such as labels and tokens stay.

    Example:
        >>> [t.dtype for t in to_dtype((torch.ones(2), torch.tensor([0, 1])), torch.float64)]
        [torch.float64, torch.int64]
    """
    return map_tensors(batch, lambda t: t.to(dtype) if t.is_floating_point() else t)


class Cast:
    """Batches whose floating tensors are cast as they are read."""

    def __init__(self, batches: Iterable[Any], dtype: torch.dtype) -> None:
        self.batches, self.dtype = batches, dtype

    def __iter__(self) -> Iterator[Any]:
        return (to_dtype(batch, self.dtype) for batch in self.batches)
