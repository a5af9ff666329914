"""The verdict of a saddle-escaping optimizer on its present point, and the events that led to it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from optland.curvature.points.verdict import PointKind
from optland.optim.saddle.krylov import Krylov

__all__ = ["Event", "judge"]

FLAT = 1e-3
"""Curvature below this share of the largest counts as zero: degenerate, neither a minimum nor a strict saddle."""


@dataclass(frozen=True)
class Event:
    """A look at the curvature, or a move, with its reason.

    Attributes:
        step: Number of the step.
        kind: ``probe`` (looked and left the base optimizer to it), ``escape``, ``kick``, ``rejected``.
        verdict: Of the point.
        curvature: Smallest curvature seen, along the escape; NaN for a kick without a probe.
        loss: Before.
        loss_after: After; equal to ``loss`` where nothing moved.
        length: Of the move.
        calls: Closure calls that it took.
        reason: In words.
        tau: No eigenvalue lies below -tau with probability 99 % (exact where the whole space was seen); NaN where
            nothing of the kind is known.
    """

    step: int
    kind: str
    verdict: PointKind
    curvature: float
    loss: float
    loss_after: float
    length: float
    calls: int
    reason: str
    tau: float = math.nan

    @property
    def taken(self) -> bool:
        """Whether it moved the weights: an escape or a kick, neither a look nor a move that was rejected."""
        return self.kind in ("escape", "kick")

    def to_log(self, name: str) -> dict[str, Any]:
        """As a decision of a logger, by the optimizer of that name.

        Args:
            name: Of the optimizer.

        Returns:
            The fields of a :class:`~optland.pilot.decision.Decision`, with losses as old and new value.
        """
        return {
            "step": self.step, "policy": name, "actuator": self.kind, "old": self.loss, "new": self.loss_after,
            "reason": self.reason, "taken": self.taken, "signals": {"curv/lambda_min": self.curvature},
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """For a log."""
        return {**asdict(self), "verdict": self.verdict.value}

    @classmethod
    def of(cls, told: dict[str, Any]) -> Event:
        """What :meth:`to_dict` gave."""
        return cls(**{**told, "verdict": PointKind(told["verdict"])})


def judge(space: Krylov, dim: int, *, rounding: float) -> PointKind:
    """The verdict at a point whose gradient counts as zero.

    ``strict saddle`` needs a Ritz value that is negative beyond its residual and rounding; ``minimum up to tau`` a
    certificate that tau is small; ``degenerate`` one that the smallest eigenvalue is zero for all that can be told.
    Everything else is ``unknown``.

    Args:
        space: The curvature there.
        dim: Number of weights d.
        rounding: Relative error of a curvature.
    """
    size = space.size
    floor = max(rounding * size, 2.0 * space.error)
    if size <= floor:
        return PointKind.DEGENERATE if space.complete or space.num_matvecs >= 3 else PointKind.UNKNOWN
    if space.lowest < -max(FLAT * size, floor) and space.lowest + space.residual < 0:
        return PointKind.STRICT_SADDLE
    tau = space.tau(dim, rounding)
    if tau is None:
        return PointKind.UNKNOWN
    tau = max(tau, 2.0 * space.error)
    if space.lowest > max(FLAT * size, floor) and tau <= FLAT * size:
        return PointKind.MINIMUM
    if space.complete or tau <= 2 * FLAT * size:
        return PointKind.DEGENERATE
    return PointKind.UNKNOWN
