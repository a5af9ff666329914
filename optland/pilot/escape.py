"""Escape from a saddle along negative curvature when a policy asks for it and earlier batches agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optland.optim.saddle.leave import declared_cost, leave_saddle
from optland.pilot.budget import Budget
from optland.pilot.controls import Outcome
from optland.pilot.host import Host

__all__ = ["escape"]

PRODUCTS = 8
"""Hessian products of a look, on the step's batch."""


def escape(host: Host, earlier: Sequence[Any], budget: Budget, seed: int) -> Outcome:
    """Look, and leave the point if it is a saddle. The cost is the curvature probe's, and has to fit beforehand.

    Args:
        host: Its present batch is looked at, its weights are moved.
        earlier: Batches that have to certify the curvature as negative.
        budget: What it is booked under.
        seed: Of the random part of the search.

    Returns:
        Whether the weights were moved; the reason in words; the curvature found and the loss after the move.
    """
    if not earlier:
        return False, "no earlier batch can certify it yet", {}
    pieces = [piece for batch in earlier for piece in host.pieces(batch)]
    seen = host.objective(host.batch, seed=seed)
    other = host.over(pieces, seed=seed)
    declared = declared_cost(seen, other, max_matvecs=PRODUCTS)
    if not budget.affords("curvature", declared):
        left = budget.allowance("curvature") - budget.spent.get("curvature", 0.0)
        return False, f"a look may cost {declared:.3g} gradient evaluations and {left:.3g} are left", {}
    host.before.forget()  # the probes look along the update, and the weights are no longer where it led
    event = leave_saddle(seen, check=other, max_matvecs=PRODUCTS, seed=seed)
    budget.spend("curvature", seen.cost_ge + other.cost_ge)
    signals = {"curv/lambda_min": event.curvature, "train/loss_after": event.loss_after}
    return event.kind in ("escape", "kick"), event.reason.partition("; ")[2], signals
