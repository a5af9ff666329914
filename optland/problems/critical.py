"""Small functions with a critical point whose kind is known: saddles, monkey saddles, flat bowls."""

from __future__ import annotations

import torch

from optland.objective import Objective
from optland.problems.points import function_objective

__all__ = [
    "monkey_saddle",
    "saddle",
    "two_factor",
]


def saddle(x: float = 0.0, y: float = 0.0) -> Objective:
    """L(x, y) = x^2 - y^2: a strict saddle at the origin, Hessian diag(2, -2), unbounded below along y.

    Args:
        x: Where to stand; the default is the saddle itself.
        y: The same along the direction of negative curvature.

    Example:
        >>> saddle(1.0, 2.0).value()
        -3.0
    """
    start = torch.tensor([x, y], dtype=torch.float64)
    return function_objective(lambda w: w[0] ** 2 - w[1] ** 2, start)


def two_factor(a: float, b: float) -> Objective:
    """L(a, b) = (ab - 1)^2 / 2: the smallest deep linear network, with a valley of minima on ab = 1.

    Args:
        a: Where to stand.
        b: The same of the other factor. At (0, 0) there is a strict saddle of curvature -1.

    Example:
        >>> L = two_factor(2.0, 0.5)
        >>> L.value(), [g.tolist() for g in L.gradient()]
        (0.0, [[0.0, 0.0]])
    """
    start = torch.tensor([a, b], dtype=torch.float64)
    return function_objective(lambda w: 0.5 * (w[0] * w[1] - 1.0) ** 2, start)


def monkey_saddle(x: float = 0.0, y: float = 0.0) -> Objective:
    """L(x, y) = x^3 - 3xy^2: at the origin gradient and Hessian are 0, and yet the loss falls in three directions.

    The Hessian is [[6x, -6y], [-6y, -6x]], with eigenvalues +-6 sqrt(x^2 + y^2): degenerate at the origin, a saddle
    of index 1 in shape everywhere else.

    Args:
        x: Where to stand; the default is the degenerate point itself.
        y: The same of the other variable.

    Example:
        >>> monkey_saddle().gradient()[0].tolist(), monkey_saddle(-1.0).value()
        ([0.0, 0.0], -1.0)
    """
    start = torch.tensor([x, y], dtype=torch.float64)
    return function_objective(lambda w: w[0] ** 3 - 3 * w[0] * w[1] ** 2, start)
