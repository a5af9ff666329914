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
        """Bring the copies up to date; one whose version has not moved since is left alone."""
        for name, buffer in buffers.items():
            known = self._kept.get(name)
            if known is not None and known[0] is buffer:
                if known[1] == buffer._version:
                    continue
                copied = known[2].copy_(buffer)
            else:
                copied = buffer.detach().clone()
            self._kept[name] = (buffer, buffer._version, copied)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back those that have changed since."""
        for name, (buffer, version, copied) in self._kept.items():
            if buffer._version != version:
                buffer.copy_(copied)
                self._kept[name] = (buffer, buffer._version, copied)
