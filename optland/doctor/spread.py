"""How large the entries of each layer's gradient are, over time: quantiles of their sizes, taken ever more rarely.

Cost: at updates 1, 2, 3, 4, 5, 7, 9, ... (each a quarter later than the one before), for at most six layers, the sizes
of 512 entries are sorted; on another device than the CPU that is one wait.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["QUANTILES", "Spread", "gradient_key"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LAYERS, ENTRIES, GROWTH = 6, 512, 1.25


def gradient_key(layer: str, quantile: float) -> str:
    """The key of a quantile of a layer.

    Example:
        >>> gradient_key("blocks.0.weight", 0.05)
        'layer/grad_q05 blocks_0_weight'
    """
    return f"layer/grad_q{round(100 * quantile):02d} {layer.replace('.', '_')}"


class Spread:
    """Quantiles of the sizes of gradient entries, by layer.

    Attributes:
        next: Update from which on it looks again.

    Example:
        >>> spread = Spread()
        >>> w = torch.zeros(3, 3, requires_grad=True)
        >>> w.grad = torch.arange(9.0).reshape(3, 3)
        >>> spread.look(1, ["weight"], [w])
        >>> spread.row()["layer/grad_q50 weight"], spread.row()
        (4.0, {})
    """

    def __init__(self) -> None:
        self.next = 1
        self._fresh: dict[str, float] = {}

    @torch.no_grad()
    def look(self, step: int, names: Sequence[str], params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Take the quantiles where it is time.

        Args:
            step: The update.
            names: Of the layers.
            params: Their weights, with their gradients.
            scale: What the loss was multiplied by, by a gradient scaler.
        """
        if step < self.next:
            return
        self.next = max(step + 1, math.ceil(GROWTH * step))
        gradients = {names[i]: params[i].grad for i in _evenly(len(params))}
        plain = {name: g for name, g in gradients.items() if g is not None and _plain(g)}
        if not plain:
            return
        for label, values in zip(plain, _quantiles(list(plain.values())), strict=True):
            self._fresh |= {gradient_key(label, q): v / scale for q, v in zip(QUANTILES, values, strict=True)}

    def row(self) -> dict[str, float]:
        """What was taken since the last call."""
        fresh, self._fresh = self._fresh, {}
        return fresh


def _evenly(count: int) -> list[int]:
    """At most six places, the first and the last among them."""
    if count <= LAYERS:
        return list(range(count))
    return [round(k * (count - 1) / (LAYERS - 1)) for k in range(LAYERS)]


def _plain(gradient: Tensor) -> bool:
    return type(gradient) is Tensor and gradient.layout is torch.strided and gradient.numel() > 0


def _quantiles(gradients: Sequence[Tensor]) -> list[list[float]]:
    """Of at most so many entries of each, evenly over the tensor, as ranks: nothing is interpolated.

    They come to the host in one transfer and are sorted there, which for so few takes less time than on any device.
    """
    flat, device = [g.detach().flatten() for g in gradients], gradients[0].device
    taken = [x[:: max(1, x.numel() // ENTRIES)][:ENTRIES].abs().float().to(device) for x in flat]
    sizes = torch.cat(taken).cpu().numpy()
    ends = list(itertools.accumulate(len(x) for x in taken))
    layers = [np.sort(sizes[end - len(x) : end]) for x, end in zip(taken, ends, strict=True)]
    return [[float(x[round(q * (len(x) - 1))]) for q in QUANTILES] for x in layers]
