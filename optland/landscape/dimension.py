r"""The effective dimension of a set of gradients.

With gradients g_1 ... g_T and singular values s_i of the matrix that they make,

.. math:: k_{90} = \min \Bigl\{ k : \sum_{i \le k} s_i^2 \ge 0.9 \sum_i s_i^2 \Bigr\}, \qquad
          \mathrm{PR} = \frac{(\sum_i s_i^2)^2}{\sum_i s_i^4} .

At one point over minibatches these measure the gradient noise; along training, the path. The whole is taken from the
T x T Gram matrix, or, for models too large to keep T gradients of, from Gaussian sketches of ``sketch`` numbers each,
which keep inner products to about 1/sqrt(sketch) of their size.

**What T can hide.** k90 is at most T. It is measured again with every second gradient: where it halves with T it
measures T and not the landscape, and the ``measures_count`` flag is set. Uncentred, the mean gradient decides first.

References: Gur-Ari et al. 2018, arXiv:1812.04754 (gradients live in the top eigenspace); Sagun et al. 2017,
arXiv:1706.04454.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from optland.archive import Archived
from optland.vectors import Vector

__all__ = ["EffectiveDimension", "GradientSketch", "effective_dimension"]


@dataclass(frozen=True, slots=True)
class EffectiveDimension(Archived):
    """Dimensions of a set of gradients.

    Attributes:
        k90: Directions that hold 90 % of the squared length.
        participation: Participation ratio.
        count: T, gradients.
        k90_half: k90 of every second gradient.
        measures_count: Whether k90 follows T: then it says nothing of the landscape.
        centred: Whether the mean gradient was taken off.
        values: Squared singular values, descending.
        sketch: Numbers kept of a gradient; 0 for all.
    """

    k90: int
    participation: float
    count: int
    k90_half: int
    measures_count: bool
    centred: bool
    values: Tensor
    sketch: int

    def __str__(self) -> str:
        flag = " (MEASURES T: take more gradients)" if self.measures_count else ""
        return f"k90 = {self.k90} of T = {self.count}, participation ratio {self.participation:.3g}{flag}"


def effective_dimension(
    gradients: Iterable[Vector] | Tensor, *, centred: bool = False, sketch_size: int = 0
) -> EffectiveDimension:
    """k90 and participation ratio of gradients.

    Args:
        gradients: Vectors, or a tensor with one gradient per row.
        centred: Take the mean gradient off first.
        sketch_size: What the rows are sketches of (see :class:`GradientSketch`), for the record.

    Returns:
        Counts without units; ``measures_count`` is true where they count the gradients given rather than their
        directions, and more of them are needed.

    Raises:
        ValueError: Fewer than 4 gradients, or one that is not finite.

    Example:
        >>> effective_dimension(torch.eye(10).repeat(3, 1)).k90
        9
    """
    rows = _rows(gradients)
    if len(rows) < 4:
        raise ValueError(f"{len(rows)} gradients are too few to tell a dimension; use at least 4")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("a gradient is not finite; leave it out")
    values, half = _spectrum(rows, centred), _spectrum(rows[::2], centred)
    k90, k90_half = _k90(values), _k90(half)
    # Doubling T from T/2 doubled k90 (within a fifth), and k90 is a fair part of T.
    follows = k90 > 1.6 * k90_half and k90 > 0.4 * len(rows)
    total = float(values.sum())
    participation = total**2 / float(values.square().sum()) if total > 0 else math.nan
    return EffectiveDimension(k90, participation, len(rows), k90_half, follows, centred, values, sketch_size)


def _rows(gradients: Iterable[Vector] | Tensor) -> Tensor:
    if isinstance(gradients, Tensor):
        return gradients.double()
    return torch.stack([torch.cat([t.detach().flatten().double() for t in g]) for g in gradients])


def _spectrum(rows: Tensor, centred: bool) -> Tensor:
    """Squared singular values from the Gram matrix, descending."""
    if centred:
        rows = rows - rows.mean(0)
    values: Tensor = torch.linalg.eigvalsh(rows @ rows.T)
    return values.flip(0).clamp_min(0.0)


def _k90(values: Tensor) -> int:
    total = float(values.sum())
    if total == 0.0:
        return 0
    return int((values.cumsum(0) < 0.9 * total * (1 - 1e-12)).sum()) + 1


class GradientSketch:
    """Keeps ``size`` numbers of each gradient: Gaussian projections, made again from the seed at every use.

    Inner products of sketches equal those of the gradients on average, with a relative error of about 1/sqrt(size).

    Args:
        size: Numbers kept; 512 gives 4 %.
        seed: Of the projections.

    Raises:
        ValueError: ``size`` below 1.
    """

    def __init__(self, size: int = 512, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size {size} must be at least 1; 512 gives inner products to about 4 %")
        self.size = size
        self.seed = seed
        self.kept: list[Tensor] = []

    def add(self, gradient: Vector) -> None:
        """Keep the sketch of a gradient."""
        found = torch.zeros(self.size, dtype=torch.float64)
        generator = torch.Generator()
        for i, t in enumerate(gradient):
            flat = t.detach().flatten().cpu().double()
            for block, start in enumerate(range(0, len(flat), 4096)):
                piece = flat[start : start + 4096]
                generator.manual_seed(hash((self.seed, i, block)) & 0x7FFFFFFF)
                found += (
                    torch.randn(self.size, len(piece), generator=generator, dtype=torch.float32).double()
                    @ piece
                )
        self.kept.append(found / math.sqrt(self.size))

    def dimension(self) -> EffectiveDimension:
        """:func:`effective_dimension` of what was kept.

        Raises:
            ValueError: No gradient was added yet.
        """
        if not self.kept:
            raise ValueError("no gradient was added yet")
        return effective_dimension(torch.stack(self.kept), sketch_size=self.size)
