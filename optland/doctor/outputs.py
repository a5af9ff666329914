r"""What the gradient at the model's outputs says of the loss behind them.

For the mean cross-entropy of N rows of scores z with labels y the gradient is known in closed form:

.. math:: g = s (p - e_y), \qquad p = \mathrm{softmax}(z), \quad s = 1 / N

so the scale s is read off the gradient and the scores alone, without the labels (the label is where g is negative) and
without another pass. A sum in place of the mean has s = 1, a mean that is divided twice s = 1 / N^2. Where a softmax
stands before the loss that takes one itself, g is that of the composition, or the scores are probabilities already.
For the squared error, g = 2 (z - y) / n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Behind", "behind_classes", "behind_numbers", "scores_of"]

FITS = 0.02
"""Largest share of the gradient that a form of the loss may leave unexplained."""

FITTED = 1e-4
"""Share of the largest gradient of a row below which a row's own says nothing."""

ROWS = 256
"""Rows that are looked at."""


@dataclass(frozen=True)
class Behind:
    """The loss behind the outputs.

    Attributes:
        share: s times the number of rows: 1 for a mean over them.
        rows: Rows that the loss is over.
        twice: Whether a softmax or sigmoid was taken twice.
        broadcast: Whether outputs and targets were broadcast against each other.
        chance: The loss of knowing nothing: ln of the number of classes, or the variance of the targets.
    """

    share: float
    rows: int
    twice: bool = False
    broadcast: bool = False
    chance: float = math.nan


def scores_of(output: Any) -> Tensor | None:
    """The scores among what a model returns: the tensor, or the ``logits`` of one that returns more.

    Args:
        output: Of a forward pass.

    Returns:
        A tensor of real numbers with a graph; None where there is none.
    """
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if isinstance(found, Tensor) and found.is_floating_point() and found.ndim >= 1 and found.requires_grad:
        return found
    return None


def behind_classes(scores: Tensor, gradient: Tensor) -> Behind | None:
    """The loss where it is a cross-entropy; None where it is another.

    Args:
        scores: Outputs, classes last.
        gradient: Of the loss with respect to them.

    Returns:
        With ``share`` 1 for a mean over the rows that count: those with a gradient, or fitted to 0.9998.

    Example:
        >>> scores = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]], requires_grad=True)
        >>> loss = torch.nn.functional.cross_entropy(scores, torch.tensor([1, 0]), reduction="sum")
        >>> (gradient,) = torch.autograd.grad(loss, scores)
        >>> round(behind_classes(scores, gradient).share, 3)  # a sum over two rows
        2.0
    """
    z, g = _as_rows(scores), _as_rows(gradient)
    if z is None or g is None:
        return None
    sizes = g.abs().amax(1)
    used = sizes > FITTED * sizes.max()
    # A row without a gradient is left out of the loss, or fitted so well that its label cannot be told from rounding.
    count = (
        int((used | (z.softmax(1).amax(1) > 1 - 2 * FITTED)).sum())
        if z.shape[1] > 1
        else int((sizes > 0).sum())
    )
    z, g = z[used][:ROWS], g[used][:ROWS]
    if len(z) == 0 or not bool(torch.isfinite(g).all()) or not bool(torch.isfinite(z).all()):
        return None
    if z.shape[1] == 1:
        return _behind_binary(z[:, 0], g[:, 0], count)
    p, y = z.softmax(1), torch.zeros_like(z).scatter_(1, g.argmin(1, keepdim=True), 1.0)
    if (scale := _fit(g, p - y)) is not None:
        probabilities = bool((z >= 0).all()) and bool(((z.sum(1) - 1).abs() < 1e-4).all())
        return Behind(scale * count, count, twice=probabilities, chance=math.log(z.shape[1]))
    u = p.softmax(1) - y
    if (scale := _fit(g, p * (u - (p * u).sum(1, keepdim=True)))) is not None:
        return Behind(scale * count, count, twice=True, chance=math.log(z.shape[1]))
    return None


def _as_rows(x: Tensor) -> Tensor | None:
    x = x.detach()
    if x.ndim == 1:
        return x.reshape(-1, 1).double()
    if x.ndim > 3 or x.numel() > 50_000_000:
        return None
    return x.reshape(-1, x.shape[-1]).double()


def _fit(g: Tensor, form: Tensor) -> float | None:
    """The factor of the form in the gradient, where the form explains it."""
    square = float((form * form).sum())
    if square == 0.0:
        return None
    scale = float((g * form).sum()) / square
    left = float((g - scale * form).norm()) / float(g.norm())
    return scale if scale > 0 and left < FITS else None


def _behind_binary(z: Tensor, g: Tensor, count: int) -> Behind | None:
    p = z.sigmoid()
    if float(p.max() - p.min()) < 1e-3:  # of outputs that are all far out any loss has this form
        return None
    if (scale := _fit(g, torch.where(g > 0, p, p - 1))) is not None and len(z) > 4:
        return Behind(
            scale * count, count, chance=math.log(2)
        )  # scores within (0, 1) prove nothing: those of a fresh net may be
    q = p.sigmoid()
    if (scale := _fit(g, torch.where(g > 0, q, q - 1) * p * (1 - p))) is not None and len(z) > 4:
        return Behind(scale * count, count, twice=True, chance=math.log(2))
    return None


def behind_numbers(outputs: Tensor, gradient: Tensor, targets: Tensor) -> Behind | None:
    """The loss where it is a squared error against these targets; None where it is another.

    Args:
        outputs: Of the model.
        gradient: Of the loss with respect to them.
        targets: As many numbers.

    Returns:
        With ``share`` 1 for a mean over all numbers, and the variance of the targets as ``chance``.

    Example:
        >>> z, y = torch.tensor([1.0, 2.0, 4.0]), torch.zeros(3)
        >>> round(behind_numbers(z, 2 * z / 3, y).share, 3)
        1.0
    """
    z, g, y = (t.detach().flatten().double() for t in (outputs, gradient, targets))
    if (
        not (z.numel() == g.numel() == y.numel() > 1)
        or not bool(torch.isfinite(g).all())
        or float(g.norm()) == 0
    ):
        return None
    variance = float(y.var())
    if (scale := _fit(g, z - y)) is not None:
        return Behind(scale * z.numel() / 2, len(outputs), chance=variance)
    if outputs.shape != targets.shape and (scale := _fit(g, z - y.mean())) is not None:
        return Behind(scale * z.numel() / 2, len(outputs), broadcast=True, chance=variance)
    return None
