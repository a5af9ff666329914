r"""``late_sam`` and ``rho``: when SAM runs, and how far it climbs.

**late_sam** takes plain steps of the base until the run is nearly over, then SAM steps: SAM escapes the minimum that
the base found within a few epochs and flattens inside the same valley.

.. math:: \text{SAM} \iff t / T \ge 0.85 \ \text{ or, without a horizon, the schedule is below } 0.2 \text{ of its peak}

Cost: the second pass for 15 % of the steps, so +15 %. When: SAM's generalisation at nearly the base's price. When not:
label noise, where the base has memorised the noise by then.

**rho** ties the radius to the schedule, or to a budget for the rise of the loss:

.. math:: \rho_k = \rho_\min + (\rho_\max - \rho_\min)\, s_k, \qquad\text{or}\qquad \rho_k = \min(\rho_\max,\ c\,L_k /
|g_k|)

The second bounds the first-order rise rho |g| by a share c of the loss. Cost: none. When: one radius is too large
early (budget) or late (schedule). When not: the radius was searched for this task.

Defaults: 0.85 as in the reference; rho_min = 0.1 rho_max keeps a perturbation at the end; c = 0.1.

Reference: Zhou et al. 2024, arXiv:2410.10373; Zhuang et al. 2022 (GSAM), arXiv:2203.08065; loss-rise budget: Wang 2026,
arXiv:2605.10183.
"""

from __future__ import annotations

import math
from typing import Literal

from optland.control.view import Proposal, StepPolicy, StepView

__all__ = ["LateSAM", "Rho"]


class LateSAM(StepPolicy):
    """SAM in the last part of the run.

    Args:
        start: Share of the run from which SAM steps are taken; 0.85.
        below: Without a horizon: share of the schedule's peak below which they are; 0.2.

    Example:
        >>> policy = LateSAM()
        >>> [p.new for k in (1, 84, 85) for p in policy.propose(StepView(k, 1.0, progress=k / 100))]
        [0.0, 1.0]
    """

    name = "late_sam"
    needs = frozenset({"sam_duty"})
    _kept = ("duty", "peak")

    def __init__(self, *, start: float = 0.85, below: float = 0.2) -> None:
        if not 0 <= start <= 1:
            raise ValueError(f"start: {start} is not a share of the run; use for example 0.85")
        if not 0 < below < 1:
            raise ValueError(f"below: {below} is not a share of the peak rate; use for example 0.2")
        self.start, self.below = start, below
        self.duty = 1.0
        self.peak = 0.0

    @property
    def holds_sam(self) -> bool:
        """Unless it starts with the run."""
        return self.start > 0

    def propose(self, view: StepView) -> list[Proposal]:
        """Off at the first step, on once it is late."""
        late, why = self._late(view)
        wanted = 1.0 if late else 0.0
        if wanted == self.duty:
            return []
        old, self.duty = self.duty, wanted
        return [Proposal("sam_duty", old, wanted, why)]

    def _late(self, view: StepView) -> tuple[bool, str]:
        if view.progress is not None:
            return (
                view.progress >= self.start,
                f"{view.progress:.0%} of the run is done; SAM from {self.start:.0%}",
            )
        if view.shape is None:
            return True, "the length of the run is unknown and no schedule is attached: SAM from the start"
        self.peak = max(self.peak, view.shape)
        late = view.shape < self.below * self.peak
        return late, f"the schedule stands at {view.shape:.2g} of its peak; SAM from {self.below:g} downwards"


class Rho(StepPolicy):
    """The radius follows the schedule or a budget for the rise of the loss.

    Args:
        tie: ``lr`` or ``budget``.
        least: Smallest radius as a share of the optimizer's own; 0.1.
        budget: Share of the loss that the climb may add to first order; 0.1, under ``budget``.

    Example:
        >>> policy = Rho()
        >>> round(policy.propose(StepView(1, 2.0, shape=0.5, rho=0.1))[0].new, 3)
        0.055
    """

    name = "rho"
    needs = frozenset({"rho"})
    _kept = ("own",)

    def __init__(
        self, *, tie: Literal["lr", "budget"] = "lr", least: float = 0.1, budget: float = 0.1
    ) -> None:
        if tie not in ("lr", "budget"):
            raise ValueError(f"tie: {tie!r} is not known; choose 'lr' or 'budget'")
        if not 0 <= least <= 1 or not budget > 0:
            raise ValueError(f"least {least} must be in [0, 1] and budget {budget} above 0; use 0.1 and 0.1")
        self.tie, self.least, self.budget = tie, least, budget
        self.reads = frozenset({"grad_norm"}) if tie == "budget" else frozenset()  # type: ignore[misc]
        self.own: float | None = None

    def propose(self, view: StepView) -> list[Proposal]:
        """A new radius where it differs by more than a hundredth of the optimizer's own."""
        if view.rho is None:
            return []
        if self.own is None:
            self.own = view.rho
        wanted, why = self._wanted(view, self.own)
        if wanted is None or abs(wanted - view.rho) <= 0.01 * self.own:
            return []
        return [Proposal("rho", view.rho, wanted, why, {"sam/rho": view.rho})]

    def _wanted(self, view: StepView, own: float) -> tuple[float | None, str]:
        if self.tie == "budget":
            if not (view.grad_norm > 0 and math.isfinite(view.grad_norm) and math.isfinite(view.loss)):
                return None, ""
            share = self.budget * abs(view.loss) / view.grad_norm
            return min(
                own, share
            ), f"a climb may add {self.budget:.0%} of the loss {view.loss:.3g} to first order"
        shape = view.shape
        if shape is None and view.progress is not None:
            shape = 1.0 - min(view.progress, 1.0)
        if shape is None:
            return None, ""
        return own * (
            self.least + (1 - self.least) * shape
        ), f"the radius follows the schedule, now at {shape:.2g}"
