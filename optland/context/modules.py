"""Module modes and buffers, saved and restored module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["preserve_buffers", "preserve_modes", "set_modes"]


def set_modes(model: nn.Module, *, training: bool) -> None:
    """Set the ``training`` flag of every module, without calling user overrides of ``train()``."""
    for module in model.modules():
        module.training = training


@contextmanager
def preserve_modes(model: nn.Module) -> Iterator[None]:
    """Restore each module's own train/eval flag (a frozen BatchNorm in a training model stays frozen)."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def preserve_buffers(model: nn.Module) -> Iterator[None]:
    """Restore every buffer, both its identity and its bits (BatchNorm's running statistics and counters).

    The bits are written behind the version counter: batch norm's kernel does not advance the counter when it
    writes its statistics, so the counter cannot tell what changed; and since the bits are those of before, an
    autograd graph of the caller that holds the buffer stays right, and must not be declared stale.
    """
    saved = [(m, name, buffer) for m in _modules(model) for name, buffer in m._buffers.items()]
    # Not b.detach(), which shares the version counter.
    bits = [(b.data, b.detach().clone()) for _, _, b in saved if b is not None]
    try:
        yield
    finally:
        for module, name, buffer in saved:
            module._buffers[name] = buffer
        for bit, copy in bits:
            bit.copy_(copy)


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    """Every module once, as ``model.modules()``, whose nested generators take longer than a small net's forward."""
    seen: set[int] = set()
    left = [model]
    while left:
        module = left.pop()
        if id(module) not in seen:
            seen.add(id(module))
            yield module
            left.extend(child for child in module._modules.values() if child is not None)
