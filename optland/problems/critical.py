"""Small functions with a critical point whose kind is known: saddles, monkey saddles, flat bowls."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optland.objective import Objective
from optland.problems.points import function_objective

__all__ = [
    "flat_bowl",
    "gradient_flat",
    "monkey_saddle",
    "saddle",
    "separable_products",
    "two_factor",
]


def saddle(x: float = 0.0, y: float = 0.0) -> Objective:
    """L(x, y) = x^2 - y^2: a strict saddle at the origin, Hessian diag(2, -2), unbounded below along y.

    Example:
        >>> saddle(1.0, 2.0).value()
        -3.0
    """
    start = torch.tensor([x, y], dtype=torch.float64)
    return function_objective(lambda w: w[0] ** 2 - w[1] ** 2, start)


def two_factor(a: float, b: float) -> Objective:
    """L(a, b) = (ab - 1)^2 / 2: the smallest deep linear network, with a valley of minima on ab = 1.

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

    Example:
        >>> monkey_saddle().gradient()[0].tolist(), monkey_saddle(-1.0).value()
        ([0.0, 0.0], -1.0)
    """
    start = torch.tensor([x, y], dtype=torch.float64)
    return function_objective(lambda w: w[0] ** 3 - 3 * w[0] * w[1] ** 2, start)


def flat_bowl(power: int = 4, d: int = 2, at: float = 0.0) -> Objective:
    """L(w) = sum_i w_i^power at w = (at, ..., at): a minimum that the Hessian does not see when power > 2.

    At the origin gradient and Hessian are 0 from power 3 on; an odd power makes the origin no minimum at all.

    Example:
        >>> flat_bowl(4).value(), flat_bowl(4).gradient()[0].tolist()
        (0.0, [0.0, 0.0])
    """
    return function_objective(lambda w: w.pow(power).sum(), torch.full((d,), at, dtype=torch.float64))


def gradient_flat(x: float = 0.0, y: float = 0.0) -> Objective:
    """L(x, y) = x + y^2 / 2: on y = 0 the gradient (1, 0) lies in the kernel of the Hessian diag(0, 1).

    There |g|^2 is stationary although the loss has no critical point anywhere: the trap of methods that minimise the
    norm of the gradient (Frye et al. 2021, arXiv:2003.10397).

    Example:
        >>> gradient_flat().gradient()[0].tolist()
        [1.0, 0.0]
    """
    start = torch.tensor([x, y], dtype=torch.float64)
    return function_objective(lambda w: w[0] + 0.5 * w[1] ** 2, start)


def separable_products(s: Sequence[float], at_origin: Sequence[bool] | None = None) -> Objective:
    """L(a, b) = sum_i (a_i b_i - s_i)^2 / 2 at one of its 2^m kinds of critical point; w = (a_1..a_m, b_1..b_m).

    Where ``at_origin`` holds, the pair is (0, 0), with eigenvalues +-s_i; elsewhere it lies on a_i b_i = s_i, at
    (sqrt |s_i|, s_i / sqrt |s_i|), with eigenvalues 0 and a_i^2 + b_i^2 = 2 |s_i|. With all s_i different from 0 the
    index is the number of pairs at the origin, and the nullity the number of the others. The loss is the sum of
    s_i^2 / 2 over the pairs at the origin. Every minimum is global and every other critical point a strict saddle.

    Args:
        s: Targets, m numbers different from 0.
        at_origin: Which pairs start at the origin; all by default.

    Example:
        >>> L = separable_products([2.0, 1.0], [True, False])
        >>> L.value(), float(L.gradient()[0].abs().max())
        (2.0, 0.0)
    """
    target = torch.tensor(list(s), dtype=torch.float64)
    asleep = torch.ones_like(target) if at_origin is None else torch.tensor(list(at_origin)).to(target)
    root = target.abs().sqrt()
    a, b = (1 - asleep) * root, (1 - asleep) * target / root
    m = len(target)
    return function_objective(lambda w: 0.5 * (w[:m] * w[m:] - target).square().sum(), torch.cat([a, b]))
