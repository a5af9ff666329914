r"""Leaving a saddle: a step along the direction of most negative curvature, its length tried by forward passes.

A quadratic model has no best step where the curvature is negative, so the loss itself chooses among a geometric grid
on both sides. On L = (a x^2 - b y^2) / 2 + y^4 / 4 at the origin the direction is +-e_y and the best step sqrt(b).

Cost: ``products`` Hessian-vector products and two forward passes a length. Reference: Alain et al. 2019,
arXiv:1902.02366.
"""

from __future__ import annotations

import math

from optland import vectors
from optland.curvature import hessian, lanczos
from optland.objective import Objective

__all__ = ["leave_saddle"]


def leave_saddle(
    objective: Objective, *, products: int = 8, lengths: int = 9, smallest: float = 1e-3, largest: float = 2.0
) -> float:
    """Move the objective's parameters along negative curvature to the lowest loss seen; returns how much it fell.

    Args:
        objective: What is minimised; its parameters are moved.
        products: Hessian-vector products for the direction.
        lengths: Lengths tried on either side, geometrically spaced.
        smallest: Shortest step, relative to the length of the weights (absolute where that is 0).
        largest: Longest step, in the same unit.

    Returns:
        The fall of the loss; 0, with the weights untouched, where no length lowered it or no curvature is negative.
    """
    start = objective.value()
    with hessian(objective) as H:
        found = lanczos(H, k=1, max_products=products)
    if not found.bottom.value < 0 or not math.isfinite(start):
        return 0.0
    direction = found.vectors[-1]
    unit = float(vectors.norm(objective.params)) or 1.0
    ratio = (largest / smallest) ** (1 / (lengths - 1))
    steps = [sign * unit * smallest * ratio**k for k in range(lengths) for sign in (1, -1)]
    values = [objective.value(objective.displaced(direction, t)) for t in steps]
    best, t = min((v, t) for v, t in zip(values, steps, strict=True) if math.isfinite(v))
    if best >= start:
        return 0.0
    vectors.copy_(objective.params, objective.displaced(direction, t))
    return start - best
