"""The settings that a policy can turn, its proposals, and the decisions on them. This list is the only one.

============== ============================================================= ==================
turned         what is done                                                  acts
============== ============================================================= ==================
step_length    the update just made becomes this long, relative to w         at once
lr             a bound on the learning rate; only ever capped                next update
lr_factor      a factor on the learning rate                                 next update
batch_size     samples of an update                                          next batch
rho            the radius of a SAM method, in every group                    next update
weight_decay   in every group                                                next update
momentum       in every group                                                next update
beta1, beta2   Adam's, in every group                                        next update
gate           0: the second pass is left out; 1: the optimizer's own gate   next update
clip           norm that the gradient is cut to; 0 ends it                   next update
skip           cancels the update: the optimizer never sees its gradient     before the update
rewind         weights and optimizer state go back to a snapshot             before the update
escape         along the direction of most negative curvature                after the update
stop           no further batch                                              next batch
alarm          nothing; it is only said                                      --
============== ============================================================= ==================

Each has at most one policy that sets it. Any number of policies may cap ``lr`` or ``lr_factor``, and the least cap
wins. Of what is asked for in one update skip beats rewind beats escape beats length.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["BEFORE", "TURNED", "Decision", "Proposal", "Turned"]


@dataclass(frozen=True, slots=True)
class Turned:
    """The bounds of something that can be turned, and what to do where a host lacks it.

    Attributes:
        low: Least value.
        high: Largest value.
        growth: Largest factor by which one decision may make it grow.
        lacking: What a host without it can do about it.
    """

    low: float = -math.inf
    high: float = math.inf
    growth: float = math.inf
    lacking: str = ""

    def within(self, old: float, new: float) -> float:
        """``new`` inside the bounds; what is not finite leaves the old value.

        Args:
            old: The present value; growth is bounded where it is above 0.
            new: The value asked for.

        Example:
            >>> TURNED["lr_factor"].within(0.1, 5.0), TURNED["lr_factor"].within(1.0, 1e-9)
            (0.2, 0.0001)
        """
        if math.isnan(new):
            return old
        most = self.growth * old if old > 0 else self.high
        kept = min(max(new, self.low), most, self.high)
        return kept if math.isfinite(kept) else old


_SCALED = (
    "use an optimizer whose move is linear in the learning rate, such as SGD or AdamW, on float32 weights"
)
_GROUP = "use an optimizer whose parameter groups have it"
TURNED = {
    "step_length": Turned(0.0, lacking=_SCALED),
    "lr": Turned(0.0, lacking="give every parameter group an lr"),
    # Below 1e-4 nothing is learnt; four doublings of the batch can call for 16.
    "lr_factor": Turned(1e-4, 16.0, growth=2.0, lacking="give every parameter group an lr"),
    "batch_size": Turned(1.0, lacking="take the batches from pilot.batches(loader), a loader of optland.train"),
    "rho": Turned(0.0, lacking="wrap the optimizer in one of optland's SAM methods with a rho"),
    "weight_decay": Turned(0.0, lacking=_GROUP),
    "momentum": Turned(0.0, 1.0, lacking=_GROUP),
    "beta1": Turned(0.0, 0.999999, lacking=_GROUP),  # Adam divides by 1 - beta^t
    "beta2": Turned(0.0, 0.999999, lacking=_GROUP),
    "gate": Turned(0.0, 1.0, lacking="wrap the optimizer in optland.optim.SAM"),
    "clip": Turned(0.0, lacking="use an optimizer whose step takes gradients"),
    "skip": Turned(lacking="use an optimizer whose step takes gradients"),
    "rewind": Turned(lacking="use a torch optimizer whose state can be copied"),
    "escape": Turned(lacking="train in one process, where one look moves all weights"),
    "stop": Turned(lacking="take the batches from pilot.batches(loader)"),
    "alarm": Turned(),
}  # fmt: skip
"""Everything that a policy may turn."""

BEFORE = frozenset({"skip", "rewind"})
"""A policy that turns one of these is asked before the update, with the gradient's norm in hand; others after it."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """The proposal of a policy: what to turn, to which value, and why.

    Attributes:
        actuator: What to turn, a key of :data:`TURNED`.
        new: The value asked for.
        reason: One sentence with the numbers that led to it.
        signals: The signal values it was based on.
        cap: Whether ``new`` is an upper bound, in force until the policy gives another, and not a setting.
    """

    actuator: str
    new: float
    reason: str
    signals: dict[str, float] = field(default_factory=dict)
    cap: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """One line of the audit trail.

    Attributes:
        step: Update at which it was decided.
        policy: Who decided: a policy's name, or ``guard``.
        actuator: What it is about, a key of :data:`TURNED`.
        old: Value before.
        new: Value asked for, within its bounds.
        reason: One sentence with the numbers that led to it.
        taken: False in shadow mode, and where the host could not carry it out.
        signals: The signal values it was based on.
    """

    step: int
    policy: str
    actuator: str
    old: float
    new: float
    reason: str
    taken: bool
    signals: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary of all fields."""
        return asdict(self)
