r"""Look once at the curvature of a point and leave it if it is a saddle, as ``NegativeCurvature`` does.

The curvature is explored in a Krylov space from the gradient and a random vector; a strict saddle is left along its
most negative direction, the length found by doubling while the loss falls; a degenerate point by a kick where the loss
falls along one; a minimum is left alone, and a budget too small to tell says so.

**Cost.** ``max_matvecs`` Hessian products and some forward passes on ``objective``, five forward passes on
every batch of ``check``; :func:`declared_cost` bounds it beforehand.

**Minibatches.** Their most negative eigenvector is mostly noise: pass other batches, three at least, as ``check``.

Reference: Alain, Le Roux & Manzagol 2019, arXiv:1902.02366 (a step along negative curvature, its length searched).
"""

from __future__ import annotations

import math

import torch

from optland import vectors
from optland.curvature import hessian
from optland.curvature.operators.hessian import declared_product_cost
from optland.curvature.points import two_batch
from optland.objective import FORWARD_GE, Objective
from optland.optim.saddle.evaluations import OnObjective
from optland.optim.saddle.krylov import explore
from optland.optim.saddle.verdict import Event, judge
from optland.optim.saddle.way_off import ROUNDING, carry_out, first_length, outcome, require, way_off

__all__ = ["declared_cost", "leave_saddle"]

MOST = 16
"""Lengths tried along a direction, either way; doubling, they span a factor of 30 thousand."""

IN_ALL = 48
"""Lengths tried over all kicks at a degenerate point, four directions where none falls: what a look declares."""


def leave_saddle(
    objective: Objective,
    *,
    check: Objective | None = None,
    max_matvecs: int = 20,
    radius: float | None = None,
    seed: int = 0,
) -> Event:
    """Look at the point that the parameters are at, and move them off it if it is a saddle.

    Args:
        objective: What is minimised; its parameters are moved.
        check: Independent batches that have to certify the curvature as negative and confirm the fall of the loss.
        max_matvecs: Hessian products of the look; 20. In d dimensions d of them see everything.
        radius: First length tried; None takes 1 % of the weights' norm, at least 1e-3.
        seed: Of the random part of the search.

    Returns:
        What was found and done; ``calls`` are gradient evaluations of all samples of ``objective``, rounded up.

    Raises:
        ValueError: ``max_matvecs`` below 2, or a radius that is not positive.

    Example:
        >>> from optland.problems import saddle
        >>> event = leave_saddle(saddle())
        >>> event.kind, event.verdict, event.loss_after < event.loss
        ('escape', 'strict saddle', True)
    """
    require(max_matvecs, radius)
    generator = torch.Generator().manual_seed(seed)
    cost = sum(o.cost_ge for o in (objective, check) if o is not None)
    seen, dim = OnObjective(objective), vectors.numel(objective.params)
    loss, g = objective.value_and_gradient()
    with hessian(objective) as H:
        space = explore(H.matvec, g, budget=min(max_matvecs, dim), generator=generator, until_negative=True)
    verdict = judge(space, dim, rounding=ROUNDING)
    start = first_length(objective.params, radius)
    limits = {"most": MOST, "in_all": IN_ALL}
    move, against = way_off(
        seen, space, verdict, loss, g, start=start, check=check, generator=generator, **limits
    )
    kind, why = outcome(verdict, move, against)
    spent = sum(o.cost_ge for o in (objective, check) if o is not None) - cost
    calls = math.ceil(spent / objective.num_samples)
    return carry_out(
        seen, space, verdict, move, loss, kind=kind, step=0, calls=calls, reason=f"asked for; {why}"
    )


def declared_cost(objective: Objective, check: Objective | None = None, *, max_matvecs: int = 20) -> float:
    """The most that a look can cost, in gradient evaluations.

    Args:
        objective: Of the look.
        check: Independent data that certify the curvature and confirm the fall; None for none.
        max_matvecs: Hessian products of the look.
    """
    n = objective.num_samples
    look = declared_product_cost(objective, max_matvecs) + n + FORWARD_GE * max(2 * MOST, IN_ALL) * n
    if check is None:
        return look
    return look + two_batch.certify.cost(check, distance=1.0) + 2 * FORWARD_GE * check.num_samples
