r"""Random vectors w with E[w w'] = I, the test vectors of trace and diagonal estimators.

.. math:: E[w^\top A w] = \mathrm{tr}\,A, \qquad E[w \circ A w] = \mathrm{diag}\,A

===========  ==================================  =====================================================
name         entries                             variance of w'Aw
===========  ==================================  =====================================================
rademacher   +1 or -1, evenly                    2 (||A||_F^2 - sum_i A_ii^2)
gaussian     standard normal                     2 ||A||_F^2
sphere       uniform on the sphere |w|^2 = d     2 d / (d + 2) (||A||_F^2 - (tr A)^2 / d)
===========  ==================================  =====================================================

**Caveats.** Vectors are drawn on the CPU from a generator of their own: the same seed gives the same vectors on
every device, and the global random state is untouched.

**References.** Girard 1989; Hutchinson 1990 (Rademacher vectors).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from optland import vectors
from optland.vectors import Vector

__all__ = ["Distribution", "RandomVectors"]

Distribution = Literal["rademacher", "gaussian", "sphere"]


class RandomVectors:
    """A stream of independent flat test vectors.

    Args:
        like: Shapes, types and devices of the vectors of the operator.
        seed: Seed of the stream.
        distribution: ``"rademacher"`` (default: the least variance of the three on most matrices, and none on
            diagonal ones), ``"gaussian"`` or ``"sphere"``.

    Raises:
        ValueError: The distribution is unknown.

    Example:
        >>> draws = RandomVectors([torch.zeros(2), torch.zeros(1)], seed=0)
        >>> draws.next().abs().tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(self, like: Vector, seed: int, distribution: Distribution = "rademacher") -> None:
        if distribution not in get_args(Distribution):
            names = ", ".join(map(repr, get_args(Distribution)))
            raise ValueError(f"distribution {distribution!r} is not known; use {names}")
        self.distribution = distribution
        self._d = vectors.numel(like)
        self._target = vectors.flatten([like[0].detach().reshape(-1)[:1]])  # type and device of a flat vector
        self._generator = torch.Generator().manual_seed(seed)

    def next(self) -> Tensor:
        """The next vector, (d,), in the type and on the device of the arithmetic."""
        if self.distribution == "rademacher":
            return self._target.new_empty(self._d).copy_(self._signs())
        w = torch.randn(self._d, generator=self._generator, dtype=torch.float64)
        if self.distribution == "sphere":
            w *= math.sqrt(self._d) / float(torch.linalg.vector_norm(w))
        return self._target.new_empty(self._d).copy_(w)

    def direction(self) -> Tensor:
        """A unit vector uniform on the sphere, (d,), from the same stream, whatever the distribution."""
        w = torch.randn(self._d, generator=self._generator, dtype=torch.float64)
        return self._target.new_empty(self._d).copy_(w / float(torch.linalg.vector_norm(w)))

    def _signs(self) -> Tensor:
        return torch.randint(0, 2, (self._d,), generator=self._generator, dtype=torch.int8) * 2 - 1
