"""The part of one vector that lies across another."""

from __future__ import annotations

import torch
from torch import Tensor

from optland import vectors

__all__ = ["across"]

_ROUNDING = 32.0
"""Multiples of the machine's precision below which the part across is nothing but rounding."""


@vectors.no_graph
def across(x: list[Tensor], y: list[Tensor]) -> list[Tensor]:
    """The rest x - (<x, y> / |y|^2) y, of all tensors; zero where x is parallel to y up to rounding, or y is zero.

    Args:
        x: Tensors.
        y: In the same shapes.

    Returns:
        New tensors in the types of x; nothing waits for a device.

    Example:
        >>> across([torch.tensor([3.0, 4.0])], [torch.tensor([2.0, 0.0])])
        [tensor([0., 4.])]
    """
    square = vectors.dot(y, y)
    share = torch.where(square > 0, vectors.dot(x, y) / square, torch.zeros_like(square))
    rest = vectors.add(x, -share.item() if share.is_cpu else -share, y)
    precision = max((torch.finfo(a.dtype).eps for a in x), default=0.0)
    real = (square > 0) & (vectors.norm(rest) > _ROUNDING * precision * vectors.norm(x))
    if real.is_cpu:
        return rest if real else [torch.zeros_like(a) for a in rest]
    for i, a in enumerate(rest):  # one after the other, so that there are never two copies of all
        rest[i] = torch.where(real.to(a.device), a, torch.zeros_like(a))
    return rest
