"""Count, cut, join and move the samples of a batch of any type.

A batch may be a tensor, a ``PackedSequence``, a tuple, a mapping (also Hugging Face's ``BatchEncoding``) or a
dataclass, nested in any way. Of any other type :class:`BatchKind` takes functions that count and cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    unpack_sequence,
)

__all__ = ["portion", "take"]


def _children(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        yield from batch.values()
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        yield from (getattr(batch, field.name) for field in dataclasses.fields(batch))
    elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        yield from batch


Leaf = Tensor | PackedSequence


def _leaves(batch: Any) -> Iterator[Leaf]:
    if isinstance(batch, Tensor | PackedSequence):
        yield batch
        return
    for child in _children(batch):
        yield from _leaves(child)


def _length(leaf: Leaf) -> int | None:
    """Entries along the leading dimension, sequences where they are packed; None for a single number."""
    if isinstance(leaf, PackedSequence):
        return int(leaf.batch_sizes[0])
    return leaf.shape[0] if leaf.ndim > 0 else None


def num_samples(batch: Any) -> int:
    """Number of samples: the leading dimension of the first tensor in the batch, or its packed sequences.

    Raises:
        TypeError: The batch holds no tensor with a leading dimension. Give ``num_samples=`` then, a function of
            the batch.

    Example:
        >>> num_samples({"x": torch.zeros(8, 3), "y": torch.zeros(8)})
        8
    """
    if type(batch) is tuple and batch and isinstance(batch[0], Tensor) and batch[0].ndim > 0:
        return batch[0].shape[0]  # the most usual batch, counted in every update
    for leaf in _leaves(batch):
        if (length := _length(leaf)) is not None:
            return length
    raise TypeError(
        f"cannot count the samples of a batch of type {type(batch).__name__}: it holds no tensor with a "
        "leading dimension. Give num_samples=, a function of the batch"
    )


def map_tensors(batch: Any, apply: Callable[[Tensor], Tensor]) -> Any:
    """The batch with ``apply`` done to every tensor, its structure and types kept.

    Args:
        batch: Tensors, mappings, tuples, lists, dataclasses and packed sequences, nested in any way.
        apply: Called once for each tensor; it must keep the number of samples.

    Example:
        >>> map_tensors({"x": torch.ones(2), "name": "a"}, lambda t: 2 * t)
        {'x': tensor([2., 2.]), 'name': 'a'}
    """

    def of_leaf(leaf: Leaf) -> Leaf:
        if isinstance(leaf, Tensor):
            return apply(leaf)
        order = [None if t is None else apply(t) for t in (leaf.sorted_indices, leaf.unsorted_indices)]
        return PackedSequence(apply(leaf.data), leaf.batch_sizes, *order)  # whose sizes stay on the CPU

    return _map_leaves(batch, of_leaf)


def _map_leaves(batch: Any, apply: Callable[[Leaf], Any], other: Callable[[Any], Any] = lambda x: x) -> Any:
    """The batch with ``apply`` done to every tensor and packed sequence, and ``other`` to what is no structure."""

    def mapped(item: Any) -> Any:
        return _map_leaves(item, apply, other)

    if isinstance(batch, Tensor | PackedSequence):
        return apply(batch)
    if isinstance(batch, Mapping):
        make: Any = type(batch)  # BatchEncoding and its like are made from a dictionary
        return make({key: mapped(value) for key, value in batch.items()})
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {f.name: mapped(getattr(batch, f.name)) for f in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **fields)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):  # a named tuple takes its fields one by one
        return type(batch)(*(mapped(item) for item in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(mapped(item) for item in batch)
    return other(batch)


def split(batch: Any, num_parts: int) -> list[Any]:
    """Cut a batch into ``num_parts`` contiguous pieces whose sizes differ by at most one.

    Tensors whose leading dimension is the number of samples are cut; everything else goes whole into each
    piece.

    Args:
        batch: Its first tensor says how many samples there are, see :func:`num_samples`.
        num_parts: From 1 to the number of samples.

    Returns:
        Batches of the same type, in order, views of the memory of the whole.

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

    return [_rows(batch, count, slice(a, b)) for a, b in pairwise(edges)]


def join(batches: Sequence[Any]) -> Any:
    """One batch of the samples of several, in order: the inverse of :func:`split`.

    Tensors whose leading dimension is the number of samples are concatenated, lists of one entry per sample too; of
    everything else the first is taken.

    Args:
        batches: All of one structure, at least one.

    Raises:
        ValueError: Tensors of one place differ in more than their leading dimension.

    Example:
        >>> join([(torch.zeros(2, 3), "a"), (torch.ones(1, 3), "a")])[0].shape
        torch.Size([3, 3])
    """
    return _join(list(batches), [num_samples(batch) for batch in batches])


def _join(items: list[Any], counts: list[int]) -> Any:
    first = items[0]
    if isinstance(first, PackedSequence):
        return pack_sequence([x for item in items for x in unpack_sequence(item)], enforce_sorted=False)
    if isinstance(first, Tensor):
        whole = any(_length(t) != count for t, count in zip(items, counts, strict=True))
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
    if next(_leaves(first), None) is None:  # names, say, one per sample
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
    """The first ``num_taken`` samples of a batch (all of them when it holds fewer), copied out of it.

    Args:
        batch: Of any type that this module knows; what is no tensor of samples is kept as it is.
        num_taken: How many.
    """
    return map_tensors(_rows(batch, num_samples(batch), slice(num_taken)), torch.clone)


def rows(batch: Any, start: int, stop: int) -> Any:
    """The samples of a batch from ``start`` up to ``stop``, not copied.

    Args:
        batch: Of any type that this module knows.
        start: First sample, from 0.
        stop: The sample after the last.

    Example:
        >>> rows(torch.arange(5), 1, 3).tolist()
        [1, 2]
    """
    return _rows(batch, num_samples(batch), slice(start, stop))


def thin(batch: Any, every: int) -> Any:
    """Every ``every``-th sample of a batch, the first one included.

    Args:
        batch: Of any type that this module knows.
        every: The distance between two samples that are kept, 1 for all.

    Example:
        >>> thin(torch.arange(5), 2).tolist()
        [0, 2, 4]
    """
    return _rows(batch, num_samples(batch), slice(None, None, every))


def portion(batch: Any, share: float) -> Any:
    """A share of the samples of a batch, evenly spaced, at least one; all of them at 1.

    Args:
        batch: Of any type that this module knows.
        share: Of the samples; the number kept is rounded.

    Raises:
        ValueError: The share is not within (0, 1].

    Example:
        >>> portion((torch.arange(8), "name"), 0.25)
        (tensor([0, 4]), 'name')
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share={share} is not a share of the batch; use 0.25, or 1 for all of it")
    if share == 1.0:
        return batch
    count = num_samples(batch)
    taken = max(round(share * count), 1)
    return _rows(batch, count, torch.arange(taken) * count // taken)


def _rows(batch: Any, count: int, which: slice | Tensor) -> Any:
    """Some of the ``count`` samples; whatever has another number of entries goes whole."""

    def of_leaf(leaf: Leaf) -> Leaf:
        if _length(leaf) != count:
            return leaf
        if isinstance(leaf, Tensor):
            return leaf[which]  # an index on the CPU serves every device
        padded, lengths = pad_packed_sequence(leaf, batch_first=True)
        return pack_padded_sequence(padded[which], lengths[which], batch_first=True, enforce_sorted=False)

    return _map_leaves(batch, of_leaf)


class BatchKind:
    """How batches of one kind are counted and cut: by their leading dimension, or by functions of the user's.

    Args:
        num_samples: ``num_samples(batch)`` for batches that are not counted by their first tensor.
        split: ``split(batch, parts)`` for batches that are not cut along their first dimension; a list of batches.

    Attributes:
        by_rows: Whether samples are the entries along the leading dimension.

    Raises:
        TypeError: ``num_samples`` or ``split`` is no function.

    Example:
        >>> packed = torch.arange(6)[None]  # two sequences of three tokens in one row
        >>> kind = BatchKind(lambda batch: batch.shape[1] // 3, lambda batch, parts: list(batch.tensor_split(parts, 1)))
        >>> kind.count(packed), [part.tolist() for part in kind.cut(packed, 2)]
        (2, [[[0, 1, 2]], [[3, 4, 5]]])
    """

    def __init__(
        self,
        num_samples: Callable[[Any], int] | None = None,
        split: Callable[[Any, int], Sequence[Any]] | None = None,
    ) -> None:
        for name, given in (("num_samples", num_samples), ("split", split)):
            if given is not None and not callable(given):
                raise TypeError(
                    f"{name}={given!r} is no function; give one of the batch, such as "
                    + ("num_samples=len" if name == "num_samples" else "split=lambda batch, parts: [...]")
                )
        self._num_samples, self._split = num_samples, split
        self.by_rows = num_samples is None and split is None

    def count(self, batch: Any) -> int:
        """Samples of a batch."""
        return num_samples(batch) if self._num_samples is None else int(self._num_samples(batch))

    def cut(self, batch: Any, num_parts: int) -> list[Any]:
        """A batch in ``num_parts`` pieces, or as many as ``split`` makes of it.

        Args:
            batch: Of this kind.
            num_parts: What ``split`` is asked for; it may make more or fewer.

        Raises:
            TypeError: Batches are counted by a function, and nothing says how they are cut.
            ValueError: Fewer samples than parts, or a ``split`` that loses some.
        """
        if self._split is not None:
            parts = list(self._split(batch, num_parts))
            found, whole = sum(self.count(part) for part in parts), self.count(batch)
            if found != whole:
                raise ValueError(
                    f"split(batch, {num_parts}) has made {len(parts)} parts with {found} samples in all of a batch of "
                    f"{whole}; every sample belongs in one part, and num_samples counts parts as it counts batches"
                )
            return parts
        self._require_rows(batch)
        return split(batch, num_parts)

    def first(self, batch: Any, num_taken: int) -> Any:
        """About the first ``num_taken`` samples; of a type with a ``split`` of its own the first part of that size.

        Args:
            batch: Of this kind.
            num_taken: How many; a batch that holds fewer is copied whole.

        Raises:
            TypeError: Batches are counted by a function, and nothing says how they are cut.
        """
        if self._split is not None:
            return self.cut(batch, max(self.count(batch) // num_taken, 1))[0]
        if num_taken >= self.count(batch):
            return map_tensors(batch, torch.clone)
        self._require_rows(batch)
        return take(batch, num_taken)

    def _require_rows(self, batch: Any) -> None:
        """A count of the user's that differs from the leading dimension says that rows are no samples."""
        if self._num_samples is None:
            return
        rows = next((n for leaf in _leaves(batch) if (n := _length(leaf)) is not None), None)
        if rows != self.count(batch):
            raise TypeError(
                f"a batch of type {type(batch).__name__} with {self.count(batch)} samples cannot be cut along the "
                f"leading dimension of its tensors ({rows}); give split=, a function of the batch and a number of parts"
            )


def to_device(batch: Any, device: torch.device | str) -> Any:
    """The batch with every tensor on ``device``, and every other object that has a ``to`` of its own.

    Args:
        batch: Of any type that this module knows.
        device: Where to. Copies to a GPU are queued and not waited for.
    """

    def moved(item: Any) -> Any:
        return item.to(device) if callable(getattr(item, "to", None)) else item

    return _map_leaves(
        map_tensors(batch, lambda t: t.to(device, non_blocking=True)), lambda leaf: leaf, moved
    )


def to_dtype(batch: Any, dtype: torch.dtype) -> Any:
    """The batch with every floating tensor in ``dtype``; integers such as labels and tokens stay.

    Args:
        batch: Of any type that this module knows.
        dtype: A floating type, that of the model's weights.

    Example:
        >>> [t.dtype for t in to_dtype((torch.ones(2), torch.tensor([0, 1])), torch.float64)]
        [torch.float64, torch.int64]
    """
    return map_tensors(batch, lambda t: t.to(dtype) if t.is_floating_point() else t)


class Cast:
    """Batches whose floating tensors are cast as they are read.

    Args:
        batches: Read anew in every pass.
        dtype: Of floating tensors; integers stay.
    """

    def __init__(self, batches: Iterable[Any], dtype: torch.dtype) -> None:
        self.batches, self.dtype = batches, dtype

    def __iter__(self) -> Iterator[Any]:
        return (to_dtype(batch, self.dtype) for batch in self.batches)
