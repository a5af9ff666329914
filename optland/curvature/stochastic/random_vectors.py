r"""Rademacher vectors w, evenly +1 and -1: the test vectors of trace and diagonal estimators.

.. math:: E[w w^\top] = I, \qquad E[w^\top A w] = \mathrm{tr}\,A, \qquad E[w \circ A w] = \mathrm{diag}\,A, \qquad
          \mathrm{Var}\,w^\top A w = 2 \Big( \|A\|_F^2 - \sum_i A_{ii}^2 \Big)

Gaussian vectors have the variance 2 ||A||_F^2, which is more by the diagonal.

**Caveats.** Vectors are drawn on the CPU from a generator of their own: the same seed gives the same vectors on
every device, and the global random state is untouched.

**References.** Girard 1989; Hutchinson 1990 (Rademacher vectors).
"""

from __future__ import annotations

import torch
from torch import Tensor

from optland import vectors
from optland.vectors import Vector

__all__ = ["RandomVectors"]


class RandomVectors:
    """A stream of independent flat test vectors.

    Args:
        like: Shapes, types and devices of the vectors of the operator.
        seed: Seed of the stream.

    Example:
        >>> draws = RandomVectors([torch.zeros(2), torch.zeros(1)], seed=0)
        >>> draws.next().abs().tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(self, like: Vector, seed: int) -> None:
        self._d = vectors.numel(like)
        self._target = vectors.flatten([like[0].detach().reshape(-1)[:1]])  # type and device of a flat vector
        self._generator = torch.Generator().manual_seed(seed)

    def next(self) -> Tensor:
        """The next vector, (d,), in the type and on the device of the arithmetic.

        Returns:
            Entries +1 or -1, each with probability 1/2; drawn on the CPU, so the same on every device.
        """
        signs = torch.randint(0, 2, (self._d,), generator=self._generator, dtype=torch.int8) * 2 - 1
        return self._target.new_empty(self._d).copy_(signs)

    def direction(self) -> Tensor:
        """A unit vector uniform on the sphere, (d,), from the same stream."""
        w = torch.randn(self._d, generator=self._generator, dtype=torch.float64)
        return self._target.new_empty(self._d).copy_(w / float(torch.linalg.vector_norm(w)))
