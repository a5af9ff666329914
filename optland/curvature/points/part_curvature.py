r"""The error of the curvature along one direction over the choice of the data, from its spread over parts.

.. math:: q_j = u^\top H_j u, \qquad \mathrm{se}^2 = \frac{1}{k (k-1)} \sum_j (q_j - \bar q)^2

**Cost.** One product on every part, together as much as one product on all data with its own set-up.

**Caveats.** It is the error for a direction that was chosen without these data. An eigenvector of the same data has a
curvature that is biased outwards, by an amount that no spread shows: test it on fresh batches.
"""

from __future__ import annotations

import math

import numpy as np

from optland import vectors
from optland.curvature.operators.hessian import Method, hessian
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["DATA_PARTS", "curvature_error"]

DATA_PARTS = 8
"""Parts each batch is cut into; their spread is known to a quarter of itself."""

QUANTILE = 2.4
"""Student's t for 95 % and seven degrees of freedom, rounded up."""


def curvature_error(L: Objective, u: Vector, *, method: Method = "auto") -> float:
    """Half-width of the 95 % interval of u'Hu over the choice of the data; inf when they cannot be cut in two.

    Args:
        L: The objective, whose samples are drawn as the data that matter are.
        u: Unit vector.
        method: How products are computed.

    Example:
        >>> import torch
        >>> from optland.problems import linear_regression
        >>> X = torch.tensor([[1.0], [1.0], [3.0], [3.0]])  # curvatures 2, 2, 18, 18 of single samples
        >>> L = linear_regression(X, torch.zeros(4, 1))
        >>> round(curvature_error(L, [torch.ones(1, 1)]), 3)  # 2.4 * 16 / sqrt(12)
        11.085
    """
    curvatures: list[float] = []
    for batch in L.batches:
        for part in L.kind.cut(batch, min(DATA_PARTS, L.kind.count(batch))):
            with hessian(L.on(part, L.kind.count(part)), method=method) as H:
                curvatures.append(float(vectors.dot(u, H.matvec(u))))
    if len(curvatures) < 2:
        return math.inf
    return QUANTILE * float(np.std(curvatures, ddof=1)) / math.sqrt(len(curvatures))
