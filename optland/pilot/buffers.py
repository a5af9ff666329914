"""Copies of floating-point buffers from before an update's forward pass, to undo a cancelled update."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from optland.vectors import no_graph

__all__ = ["BuffersBefore"]

LARGE = 65_536
"""Elements from which a buffer is taken for a constant, such as a mask, unless its version says that it was written."""


class BuffersBefore:
    """Copies of those buffers that change.

    The kernels of normalisation layers write running statistics without raising a tensor's version, so that small
    buffers, as those are, are copied after every update.
    """

    def __init__(self) -> None:
        self._small: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._large: list[tuple[Tensor, int, Tensor]] = []

    @torch.no_grad()
    def take(self, buffers: Mapping[str, Tensor]) -> None:
        """Copy these buffers.

        Args:
            buffers: Floating-point ones by name; from 65,536 elements on one is copied anew only where its version has
                moved.
        """
        small = [b for b in buffers.values() if b.numel() < LARGE]
        self._small = small, [b.detach().clone() for b in small]
        large = [b for b in buffers.values() if b.numel() >= LARGE]
        self._large = [(b, b._version, b.detach().clone()) for b in large]

    @no_graph
    def refresh(self) -> None:
        """Bring the copies up to date."""
        buffers, copies = self._small
        if buffers:
            torch._foreach_copy_(copies, buffers)
        for i, (buffer, version, copied) in enumerate(self._large):
            if buffer._version != version:
                self._large[i] = buffer, buffer._version, copied.copy_(buffer)

    @torch.no_grad()
    def restore(self, *, broken: bool = False) -> None:
        """Put back those that have changed since.

        Args:
            broken: Only those that hold something not finite. Before the first update the copies may be older than one
                forward pass, and a state may have been loaded since.
        """
        for buffer, copied in zip(*self._small, strict=True):
            if not (broken and bool(buffer.isfinite().all())):
                buffer.copy_(copied)
        for i, (buffer, version, copied) in enumerate(self._large):
            if buffer._version != version and not (broken and bool(buffer.isfinite().all())):
                buffer.copy_(copied)
                self._large[i] = buffer, buffer._version, copied
