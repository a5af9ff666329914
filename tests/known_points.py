"""Small functions with a critical point, or none, whose kind is known: for tests alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optland.objective import Objective
from optland.problems import function_objective


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
