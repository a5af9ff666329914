"""What a probe has to know of a batch of any type: how many samples it holds, how to cut it, how to move it.

A batch may be a tensor, a tuple, a mapping (also Hugging Face's ``BatchEncoding``) or a dataclass, nested in
any way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

__all__ = ["map_tensors", "num_samples", "split", "take", "thin", "to_device", "to_dtype"]


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


def split(batch: Any, parts: int) -> list[Any]:
    """Cut a batch into ``parts`` contiguous pieces whose sizes differ by at most one.

    Tensors whose leading dimension is the number of samples are cut; everything else goes whole into each
    piece.

    Raises:
        ValueError: The batch has fewer samples than ``parts``.

    Example:
        >>> [len(piece) for piece in split(torch.arange(5), 2)]
        [3, 2]
    """
    count = num_samples(batch)
    if not 1 <= parts <= count:
        raise ValueError(f"cannot cut a batch of {count} samples into {parts} parts; use 1 to {count}")
    edges = [-(-count * i // parts) for i in range(parts + 1)]

    return [_slice(batch, count, a, b) for a, b in pairwise(edges)]


def take(batch: Any, count: int) -> Any:
    """The first ``count`` samples of a batch (all of them when it holds fewer), copied out of it."""
    return map_tensors(_slice(batch, num_samples(batch), 0, count), torch.clone)


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
