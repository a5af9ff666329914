"""Choose a move away from a point whose verdict is known: along negative curvature, a kick, or none.

Shared by the wrapper, which asks at every sign of a standstill, and by single looks.
"""

from __future__ import annotations

import math

import torch

from optland import vectors
from optland.curvature import Certificate, certify
from optland.curvature.points.two_batch import FEWEST_BATCHES
from optland.curvature.points.verdict import PointKind
from optland.objective import Objective
from optland.optim.saddle.evaluations import Evaluations, is_lower
from optland.optim.saddle.krylov import Krylov
from optland.optim.saddle.moves import Move, forward_search, kick_search
from optland.optim.saddle.verdict import Event
from optland.vectors import Vector

__all__ = ["ROUNDING", "carry_out", "first_length", "outcome", "require", "way_off"]

ROUNDING = 1e-6
"""Relative rounding of curvatures that verdicts allow for."""

CHECKED = 1e-6
"""Relative fall of the loss that independent data have to confirm."""

NOWHERE = "no move lowered the loss"
"""What stands against a move where none was found."""

VISIBLE = 8.0
"""First step along a direction of negative curvature, in multiples of rounding that the loss falls by."""


def way_off(
    seen: Evaluations,
    space: Krylov,
    verdict: PointKind,
    loss: float,
    g: Vector,
    *,
    start: float,
    check: Objective | None,
    generator: torch.Generator,
    most: int = 40,
    in_all: int | None = None,
) -> tuple[Move | None, str]:
    """The move away from a point, if its verdict calls for one and the loss agrees; else why there is none.

    Args:
        seen: The loss, where the point was looked at.
        space: The curvature there.
        verdict: What the curvature says of the point.
        loss: At the point.
        g: The gradient there; the direction that does not climb it is tried first.
        start: First length tried.
        check: Independent batches that have to certify the curvature, over a quarter of the move's length where the
            loss is still near its quadratic, and confirm the fall; None trusts ``seen``.
        generator: Of kicks.
        most: Lengths tried along a direction, either way.
        in_all: Lengths tried over all kicks; None for ten kicks.

    Returns:
        The move, or None and what stood against one; empty where the verdict calls for none.
    """
    if verdict == PointKind.STRICT_SADDLE:
        v = space.lowest_vector
        if float(vectors.dot(v, g)) > 0:
            v = vectors.scaled(-1.0, v)
        # A quadratic falls by |curvature| t^2 / 2, which has to be more than the loss's rounding.
        visible = math.sqrt(VISIBLE * seen.rounding * abs(loss) / -space.lowest)
        move = forward_search(seen, v, loss, start=max(start, visible), most=most)
        if move is None or check is None:
            return move, NOWHERE
        certificate = certify(v, check, distance=move.length / 4)
        return _confirmed(move, check) if certificate.certified else (None, _not_certified(certificate))
    if verdict == PointKind.DEGENERATE:
        kick = kick_search(seen, loss, radius=start, generator=generator, most=most, in_all=in_all)
        return _confirmed(kick, check)
    return None, ""


def _confirmed(move: Move | None, check: Objective | None) -> tuple[Move | None, str]:
    """The move, if the loss of the independent data falls too."""
    if move is None or check is None:
        return move, NOWHERE
    lower = is_lower(check.value(move.point), check.value(), CHECKED)
    return (move, "") if lower else (None, "the move lowered the loss, and not that of check")


def _not_certified(found: Certificate) -> str:
    """Why the batches of ``check`` do not bear out the negative curvature."""
    count = len(found.values)
    if count < FEWEST_BATCHES:
        batches = "one batch" if count == 1 else f"{count} batches"
        return (
            f"check has {batches}, and certifies nothing with fewer than {FEWEST_BATCHES}: the error of the curvature "
            f"is its spread over them; give check {FEWEST_BATCHES} or more"
        )
    return (
        f"the {count} batches of check do not certify the curvature as negative: {found.curvature.value:.3g} along its "
        f"direction, at most {found.upper:.3g} with probability {found.confidence:g}"
    )


def first_length(weights: Vector, radius: float | None = None) -> float:
    """``radius``, or 1 % of the weights' norm and at least 1e-3.

    Args:
        weights: The present ones.
        radius: What the user gave; None for the default.

    Example:
        >>> round(first_length([torch.tensor([30.0, 40.0])]), 6), first_length([torch.zeros(2)])
        (0.5, 0.001)
    """
    if radius is not None:
        return radius
    size = float(vectors.norm([p.detach() for p in weights]))
    return max(0.01 * size, 1e-3) if math.isfinite(size) else 1e-3


def outcome(verdict: PointKind, move: Move | None, against: str) -> tuple[str, str]:
    """Kind of the event, and why in words.

    Args:
        verdict: Of the point.
        move: The accepted one, None where there is none.
        against: What stood against one.

    Returns:
        ``escape``, ``kick``, ``rejected`` or ``probe``, and a sentence.
    """
    if move is not None:
        kind = "escape" if verdict == PointKind.STRICT_SADDLE else "kick"
        return kind, f"{verdict}: moved by {move.length:.3g}"
    if verdict in (PointKind.STRICT_SADDLE, PointKind.DEGENERATE):
        return "rejected", f"{verdict}, but {against}"
    return "probe", f"{verdict}: the base optimizer goes on"


def carry_out(
    seen: Evaluations,
    space: Krylov,
    verdict: PointKind,
    move: Move | None,
    loss: float,
    *,
    kind: str,
    step: int,
    calls: int,
    reason: str,
) -> Event:
    """Make the move, if there is one, and say what was found and done.

    Args:
        seen: Moves the weights.
        space: The curvature at the point.
        verdict: Of the point.
        move: The accepted one, None where there is none.
        loss: At the point.
        kind: As :func:`outcome` has it.
        step: Number of the step.
        calls: Of the closure, that all of it took.
        reason: In words.
    """
    after, length = (loss, 0.0) if move is None else (move.loss, move.length)
    if move is not None:
        seen.move(move.point)
    tau = space.tau_or_nan(ROUNDING)
    return Event(step, kind, verdict, space.lowest, loss, after, length, calls, reason, tau)


def require(max_matvecs: int, radius: float | None = None) -> None:
    """Refuse what no look can be made with.

    Args:
        max_matvecs: Hessian products of a look.
        radius: First length tried; None for the default.

    Raises:
        ValueError: ``max_matvecs`` below 2, or a radius that is not positive.
    """
    if max_matvecs < 2:
        raise ValueError(f"max_matvecs={max_matvecs}: curvature in more than one direction needs at least 2")
    if radius is not None and not radius > 0:
        raise ValueError(f"radius {radius} must be above 0, or None for 1 % of the weights' norm")
