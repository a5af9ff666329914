"""Floating-point buffers as they were before the forward pass of an update, for one that becomes none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["BuffersBefore"]


class BuffersBefore:
    """Copies of those buffers that change; constants are copied once."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Tensor, int, Tensor]] = {}

    @torch.no_grad()
    def take(self, buffers: Mapping[str, Tensor]) -> None:
        """Copy these buffers."""
        self._kept = {name: (b, b._version, b.detach().clone()) for name, b in buffers.items()}

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the copies up to date; one whose version has not moved since is left alone."""
        for name, (buffer, version, copied) in self._kept.items():
            if buffer._version != version:
                self._kept[name] = (buffer, buffer._version, copied.copy_(buffer))

    @torch.no_grad()
    def restore(self, *, broken: bool = False) -> None:
        """Put back those that have changed since.

        Args:
            broken: Only those that hold something not finite. Before the first update the copies may be older than one
                forward pass, and a state may have been loaded since.
        """
        for name, (buffer, version, copied) in self._kept.items():
            if buffer._version != version and not (broken and bool(buffer.isfinite().all())):
                buffer.copy_(copied)
                self._kept[name] = (buffer, buffer._version, copied)
