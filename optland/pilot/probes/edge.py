"""The edge probe: the critical learning rate along the realised update, from the weights before it."""

from __future__ import annotations

import math
from typing import Any

from optland.curvature import critical_step
from optland.failpoints import reach
from optland.objective import FORWARD_GE
from optland.pilot.host import Host
from optland.pilot.probes.base import Probe
from optland.pilot.signal import Signal

__all__ = ["EdgeProbe"]

FORWARDS = 5  # base loss, a warm bracket of two, two refinements
BURN_IN, BURN_EVERY, EVERY = 20, 3, 5
"""Probes at the start of a run, and updates between them: the edge moves fastest there and a cap has to find it, but no
faster than the momentum builds up that makes the same rate a longer step."""


class EdgeProbe(Probe):
    """``edge/eta_c`` and what follows from it: the sharpness 2 / eta_c and the edge ratio, rate over eta_c.

    Args:
        seed: Of the dropout masks inside.
    """

    name = "edge"
    yields = frozenset({"edge/eta_c", "edge/ratio", "edge/lambda_c"})
    along_update = True
    joint = True
    every = BURN_EVERY
    ahead = 4  # enough for a cap to find its edge within a warm-up

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.start = 1.0
        self.count = 0

    def cost(self, host: Host) -> float:
        """Five forward passes of the batch."""
        return FORWARD_GE * FORWARDS * host.probed_batch_size

    def measure(self, host: Host) -> list[Signal]:
        """The critical multiple of the step just made.

        Args:
            host: Gives the weights before the update, the move, and the rate that it was made at.

        Returns:
            Nothing where the weights before are not known or the rate was 0. The critical multiple t of the move gives
            ``edge/eta_c`` = t lr, ``edge/ratio`` = 1 / t and ``edge/lambda_c`` = 2 / (t lr), all valid where an edge
            was met (``resolved``) or no trial rose (``unbounded``). Errors are the distance to the farther end of the
            bracket.
        """
        reach("probe.edge")
        self.spent = 0.0
        moved, rate = host.update(), host.applied
        if moved is None or not rate > 0:
            return []
        origin, update = moved
        objective = host.objective(host.batch, mode="train", seed=self.seed + host.step, joint=True)
        found = critical_step(
            objective, update, origin=origin, initial_step=self.start, max_forwards=FORWARDS
        )
        self.spent, t = found.cost_ge, found.step.value
        self.count += 1
        self.every = BURN_EVERY if self.count < BURN_IN else EVERY
        usable = found.status in ("resolved", "unbounded") and t > 0
        # One that found no descent was far beyond the edge: the next begins below its smallest trial.
        self.start = min(max(t, 0.25), 64.0) if t > 0 else 1.0
        return [*_along(t if usable else math.nan, found.step.error, rate, found.status.value, host.step),
                Signal("edge/resolved", float(found.status == "resolved"), host.step),
                Signal("edge/not_descent", float(found.status == "not_descent"), host.step)]  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Where the search begins."""
        return {"start": self.start, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.start, self.count = state["start"], state["count"]
        self.every = BURN_EVERY if self.count < BURN_IN else EVERY


def _along(t: float, error: float, rate: float, status: str, step: int) -> list[Signal]:
    """The signals of a critical multiple ``t`` of a step made at ``rate``; NaN where it is unknown."""
    eta_c, relative = t * rate, error / t
    values = {
        "edge/eta_c": (eta_c, error * rate),
        "edge/ratio": (1.0 / t, relative / t),
        "edge/lambda_c": (2.0 / eta_c, 2.0 * relative / eta_c),
    }
    why, valid = "" if status == "resolved" else status, not math.isnan(t)
    return [Signal(name, value, step, wide, valid, why) for name, (value, wide) in values.items()]
