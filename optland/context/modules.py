"""Module modes and buffers, saved and restored module by module."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = [
    "BATCH_NORMS", "BufferSnapshot", "every_module", "preserve_buffers", "preserve_modes", "reshard", "set_modes",
]  # fmt: skip

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Layers that normalise by the batch's statistics and keep running ones."""


SMALL = 2**20
"""Bytes of buffers below which the memory of a snapshot is kept for the next one."""


def every_module(model: nn.Module) -> list[nn.Module]:
    """All modules once; ``model.modules()`` and its nested generators take longer than a small net's layer.

    Args:
        model: Comes first.

    Returns:
        Parents before their children, level by level; a module that stands in several places is in it once.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Tanh())
        >>> [type(module).__name__ for module in every_module(net)]
        ['Sequential', 'Sequential', 'Tanh', 'ReLU']
    """
    every, seen = [model], {id(model)}
    for module in every:  # which grows meanwhile
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                every.append(child)
    return every


def reshard(model: nn.Module) -> bool:
    """Free the whole weights that a forward pass of FSDP2 left behind, so that the shards are read by the next one.

    Args:
        model: Of any kind; without FSDP2 nothing is done.

    Returns:
        Whether there was anything that is sharded.
    """
    if "torch.distributed.fsdp" not in sys.modules:  # long to load; without it there is no sharded module
        return False
    from torch.distributed.fsdp import FSDPModule

    sharded = [module for module in every_module(model) if isinstance(module, FSDPModule)]
    for module in sharded:
        module.reshard()
    return bool(sharded)


def set_modes(model: nn.Module, *, training: bool) -> None:
    """Set the ``training`` flag of every module, without calling user overrides of ``train()``.

    Args:
        model: All modules in it, whatever mode each was in.
        training: True for train mode.
    """
    for module in every_module(model):
        module.training = training


@contextmanager
def preserve_modes(model: nn.Module) -> Iterator[None]:
    """Restore each module's own train/eval flag (a frozen BatchNorm in a training model stays frozen).

    Args:
        model: Modules that are added inside the block keep their flag.

    Example:
        >>> net = nn.Dropout()
        >>> with preserve_modes(net):
        ...     _ = net.eval()
        >>> net.training
        True
    """
    flags = [(module, module.training) for module in every_module(model)]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


class BufferSnapshot:
    """Every buffer of a model at this moment, its identity and its bits (BatchNorm's statistics and counters).

    The bits are written behind the version counter: batch norm's kernel does not advance the counter when it
    writes its statistics, so the counter cannot tell what changed; and since the bits are those of before, an
    autograd graph of the caller that holds the buffer stays right, and must not be declared stale.

    Args:
        model: The model.
        last: An earlier one of the same model, which is of no use any more: where the buffers are still the same
            tensors in the same memory, this one takes over its tensors, since to make new ones takes ten times as
            long as the copy.

    Attributes:
        is_small: Whether it may be kept for the next one: plain tensors, and less than a megabyte of them.
    """

    __slots__ = ("_bits", "_buffers", "_data", "_owners", "_places", "is_small")

    def __init__(self, model: nn.Module, last: BufferSnapshot | None = None) -> None:
        self._data: list[Tensor]
        self._bits: list[Tensor]
        self._places: list[int]
        self.is_small: bool
        self._owners = [(m, name, b) for m in every_module(model) for name, b in m._buffers.items()]
        self._buffers = [b for _, _, b in self._owners if b is not None]
        if last is not None and last._serves(self._buffers):
            self._data, self._bits, self._places = last._data, last._bits, last._places
            self.is_small = last.is_small
            if self._data:
                torch._foreach_copy_(self._bits, self._data)
        else:
            self._data = [b.data for b in self._buffers]
            self._bits = [data.clone() for data in self._data]
            plain = {type(b) for b in self._buffers} <= {Tensor}
            size = sum(bits.numel() * bits.element_size() for bits in self._bits)
            self._places = [data.data_ptr() for data in self._data] if plain else []
            self.is_small = plain and size < SMALL

    def _serves(self, buffers: list[Tensor]) -> bool:
        return (
            len(buffers) == len(self._buffers)
            and all(map(operator.is_, buffers, self._buffers))
            and [b.data_ptr() for b in buffers] == self._places
        )

    def restore(self) -> None:
        """Put all buffers back."""
        for module, name, buffer in self._owners:
            module._buffers[name] = buffer
        if self._data:
            torch._foreach_copy_(self._data, self._bits)


@contextmanager
def preserve_buffers(model: nn.Module) -> Iterator[None]:
    """Restore every buffer after the block.

    Args:
        model: A buffer that was replaced inside the block is the old tensor again; one that was added stays.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with preserve_buffers(norm):
        ...     _ = norm(torch.randn(4, 2))
        >>> norm.num_batches_tracked
        tensor(0)
    """
    saved = BufferSnapshot(model)
    try:
        yield
    finally:
        saved.restore()
