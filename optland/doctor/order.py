r"""Whether the batches are drawn at random from the data: one analysis of variance over them.

For any number c computed from one sample, N batches of n shuffled samples have means as far apart as chance makes them:

.. math:: F = \frac{n \, \mathrm{Var}_b(\bar c_b)}{\mathrm{mean}_b \, \mathrm{Var}(c \mid b)} \approx 1

whatever c is and however it is distributed; of data in an order that has to do with c, F is many times that. Of a text
c are its first token, the mean of its tokens and how often it has the commonest ones; of labels, and of numbers to be
predicted, their value.

Reference: Fisher, "Statistical Methods for Research Workers" (1925).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Order"]

TOKENS, COMMON = 256, 8
"""Tokens of a text that are looked at, and how many of the commonest are counted."""


class Order:
    """Batch after batch, how far the means are apart beside the spread inside.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> tokens = torch.randint(50, (320, 16))
        >>> in_order, mixed = Order(), Order()
        >>> for i in range(0, 320, 32):
        ...     in_order.look((tokens[tokens[:, 0].argsort()][i : i + 32],))
        ...     mixed.look((tokens[i : i + 32],))
        >>> in_order.facts()["order_ratio"] > 30, mixed.facts()["order_ratio"] < 4
        (True, True)
    """

    def __init__(self) -> None:
        self._common: Tensor | None = None
        self._shape: tuple[int, ...] = ()
        self._rows: list[int] = []
        self._means: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._on = True

    def look(self, batch: Any) -> None:
        """Take in a batch; a list of micro-batches is one."""
        found = _numbers_of(batch) if self._on else None
        if found is None or len(found) < 4:
            return
        shape = (found.shape[1],) if found.ndim > 1 else ()
        if (
            self._means and shape != self._shape
        ):  # texts are grouped by their length, which is an order of its own
            self._on = False
            return
        self._shape = shape
        numbers = self._of_text(found) if shape else found.double()[:, None]
        self._rows.append(len(numbers))
        self._means.append(numbers.mean(0))
        self._squares.append((numbers - numbers.mean(0)).square().sum(0))

    def _of_text(self, tokens: Tensor) -> Tensor:
        tokens = tokens[:, :TOKENS]
        if self._common is None:
            values, counts = torch.unique(tokens, return_counts=True)
            self._common = values[counts.argsort(descending=True)][:COMMON]
        counted = torch.stack([(tokens == token).double().mean(1) for token in self._common], 1)
        return torch.cat([tokens[:, :1].double(), tokens.double().mean(1, keepdim=True), counted], 1)

    def facts(self) -> dict[str, float]:
        """The largest F, and the number of batches; nothing while there are too few.

        Returns:
            ``order_ratio``, about 1 for shuffled samples, and ``order_batches``. Empty before five batches, for batches
            of texts of several lengths, and where nothing varies.
        """
        if not self._on or len(self._means) < 5:
            return {}
        rows = torch.tensor(self._rows, dtype=torch.float64, device=self._means[0].device)[:, None]
        means = torch.stack(self._means)
        whole = (rows * means).sum(0) / rows.sum()
        between = (rows * (means - whole).square()).sum(0) / (len(means) - 1)
        within = torch.stack(self._squares).sum(0) / (rows.sum() - len(means))
        known = between + within > 1e-12 * whole.square()
        if not bool(known.any()):
            return {}
        ratios = between[known] / within[known].clamp_min(1e-9 * between[known])
        return {"order_ratio": float(ratios.max()), "order_batches": float(len(means))}


def _numbers_of(batch: Any) -> Tensor | None:
    """What is looked at: the tokens of a text, else what is to be predicted; None where there is neither."""
    if isinstance(batch, dict):
        batch = list(batch.values())
    if isinstance(batch, Tensor):
        batch = [batch]
    if not isinstance(batch, (list, tuple)) or not batch:
        return None
    if isinstance(batch[0], (list, tuple, dict)):
        parts = [_numbers_of(part) for part in batch]
        whole = [part for part in parts if part is not None]
        alike = len(whole) == len(parts) and len({part.shape[1:] for part in whole}) == 1
        return torch.cat(whole) if alike else None
    tensors = [t.detach() for t in batch if isinstance(t, Tensor) and t.layout is torch.strided]
    texts = [t for t in tensors if t.ndim == 2 and t.shape[1] > 1 and _is_whole(t)]
    if texts:
        return texts[0]
    targets = [t.flatten() for t in tensors if t.ndim in (1, 2) and t.numel() == len(t)]
    return _repeated(targets[-1]) if targets else None


def _repeated(values: Tensor) -> Tensor | None:
    """Numbers, or labels; a number that every sample has of its own is its place, and no label."""
    if not _is_whole(values):
        return values if bool(torch.isfinite(values).all()) else None
    return values if len(torch.unique(values)) <= max(2, len(values) // 2) else None


def _is_whole(x: Tensor) -> bool:
    return not x.is_floating_point() and not x.is_complex()
