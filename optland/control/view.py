"""What a policy sees of a step, and what it may ask for. Plain numbers: no tensor, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from optland.control.decision import Actuator

__all__ = ["HOST_ACTUATORS", "Proposal", "StepPolicy", "StepView"]

HOST_ACTUATORS = frozenset(
    {
        "lr_factor",
        "batch_size",
        "rho",
        "sam_duty",
        "clip",
        "skip",
        "rollback",
        "escape",
        "adam_v0",
        "stop",
        "alarm",
    }
)
"""Everything a policy may ask of a host; a host says which of them it has."""


@dataclass(frozen=True, slots=True)
class StepView:
    """One training step in numbers. NaN or None stands for what was not measured at this step.

    Attributes:
        step: Number of the step just made, from 1.
        loss: Training loss at the weights before the step.
        progress: Share of the run that is done; None when the horizon is unknown.
        lr: The user's learning rate as scheduled.
        shape: Scheduled over peak learning rate; None without a scheduler.
        factor: The factor on the learning rate in force.
        grad_norm: Norm of the gradient the step was made with.
        batch: Samples in a batch.
        dataset_size: Samples in the training set.
        rho: Radius of a SAM-type optimizer; None for others.
        w_dot_d: Inner product of the weights before the step with d = (w_before - w_after) / lr.
        d_sq: Squared norm of d.
        edge_ratio: Learning rate over the critical one; None where no probe ran.
        lambda_c: 2 / eta_c of the last edge probe.
        ncr: Negative-curvature ratio -lambda_min / lambda_max of the last curvature probe.
        noise_scale: Averaged B_simple; None while unresolved.
    """

    step: int
    loss: float
    progress: float | None = None
    lr: float = math.nan
    shape: float | None = None
    factor: float = 1.0
    grad_norm: float = math.nan
    batch: int = 1
    dataset_size: int | None = None
    rho: float | None = None
    w_dot_d: float = math.nan
    d_sq: float = math.nan
    edge_ratio: float | None = None
    lambda_c: float | None = None
    ncr: float | None = None
    noise_scale: float | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a policy asks for: an actuator, its value before and after, why, and on which signals."""

    actuator: Actuator
    old: float
    new: float
    reason: str
    signals: dict[str, float] = field(default_factory=dict)


class StepPolicy:
    """A policy that looks at every step and may ask for something.

    Subclasses set ``name``, ``needs`` (actuators without which the policy is pointless) and ``probes`` (signals that
    cost), and implement :meth:`propose`. Everything in ``_kept`` is the state that an exact resume needs.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    probes: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset()
    """What must be measured at every step: ``grad_norm``, ``sasa``."""
    _kept: ClassVar[tuple[str, ...]] = ()

    @property
    def holds_sam(self) -> bool:
        """Whether SAM has to wait from the first step on, before anything has been proposed."""
        return False

    def propose(self, view: StepView) -> list[Proposal]:
        """After a step: what to do, an empty list for nothing."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say what it proposes; implement propose(view)"
        )

    def refused(self, proposal: Proposal) -> None:
        """Called where the host did not carry a proposal out; nothing by default."""

    def metrics(self) -> dict[str, float]:
        """Numbers for the log."""
        return {}

    def check_host(self, has: frozenset[str]) -> None:
        """Refuse a host that lacks an actuator.

        Raises:
            TypeError: With what is missing and what to do about it.
        """
        missing = sorted(self.needs - has)
        if missing:
            raise TypeError(
                f"{self.name} needs {' and '.join(missing)}, which this optimizer or loop does not offer: "
                f"{'; '.join(_REMEDY[m] for m in missing)}. Or use mode='shadow' to log its advice only"
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists for the checkpoint."""
        kept = {name: getattr(self, name) for name in self._kept}
        return {name: list(value) if isinstance(value, list) else value for name, value in kept.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        for name in self._kept:
            value = state[name]
            setattr(self, name, list(value) if isinstance(value, list) else value)


_REMEDY = {
    "lr_factor": "give every parameter group an lr",
    "batch_size": "use optland.train.BatchLoader, which can change its batch size",
    "rho": "wrap the optimizer in one of optland's SAM methods with a rho",
    "sam_duty": "wrap the optimizer in optland.optim.SAM",
    "clip": "use an optimizer whose step takes gradients",
    "skip": "use a torch optimizer whose state can be copied",
    "rollback": "use a torch optimizer whose state can be copied",
    "escape": "pass the model whose parameters the optimizer holds",
    "adam_v0": "use torch.optim.Adam or AdamW without a wrapper",
    "stop": "take the batches from pilot.batches(loader)",
    "alarm": "pass a log",
}
