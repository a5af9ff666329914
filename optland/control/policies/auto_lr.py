r"""``auto_lr``: no learning rate to choose; the *relative* step is scheduled and the rate read off from it.

.. math:: \eta_k = s_k\,\tau / R_k, \qquad
          R_k = \sqrt{\sum_{l \in D} \bigl(\lVert u_l\rVert / \max(\lVert w_l\rVert, \phi_l)\bigr)^2}

u_l is the optimizer's whole proposed move of tensor l per unit of learning rate (momentum, preconditioner, weight
decay included), D the tensors with two or more dimensions, s_k the schedule's shape: a warm-up over the first 5 % of
the run, then linear to zero. The shape multiplies the whole; a ceiling outside it would leave the end undecayed.

Cost: no gradient evaluation; one copy of the weights and two norms over them a step. When to use: a horizon is known
(an epoch count or a scheduler). When not: fine-tuning with zero-initialised factors, and optimizers whose move is not
linear in the learning rate (closures that search, schedule-free averages).

Defaults: tau = 0.05 for a base optimizer, fixed on small image and text models. Under a SAM-type optimizer, whose
stability edge lies below the base's and falls with the gradient norm, tau = 0.02 x 500 / steps, kept between 0.005 and
0.04: at a fixed pace a run twice as long travels twice as far and, with noisy labels, ends by memorising what SAM had
kept out. The critical step caps the rate where a step would raise the loss of its own batch
(``ceiling`` times its average) and raises an alarm above ``alarm``.

What it does not know: very short runs (100 to 250 steps) want a larger tau, very small batches a smaller one.

Reference: the relative step generalises the update-to-weight ratio of LARS (You et al. 2017, arXiv:1708.03888) to
the root-sum-square over tensors, any optimizer, and a schedule of the ratio itself.
"""

from __future__ import annotations

import math
from typing import Any

from optland.control.filters import LogEMA

__all__ = ["TAU", "TAU_TWO_PASS", "AutoLR", "default_pace", "linear_shape"]

TAU = 0.05
TAU_TWO_PASS = 0.02


def default_pace(*, two_pass: bool, steps: int | None) -> float:
    """Tau for a run of ``steps`` steps (None: of unknown length).

    Example:
        >>> [round(default_pace(two_pass=True, steps=n), 3) for n in (125, 500, 1000, 10_000)]
        [0.04, 0.02, 0.01, 0.005]
    """
    if not two_pass:
        return TAU
    return min(max(TAU_TWO_PASS * 500 / steps, 0.005), 0.04) if steps else TAU_TWO_PASS


def linear_shape(progress: float, warmup: float = 0.05) -> float:
    """Schedule shape s: linear 0 to 1 over the first ``warmup`` of the run, then linear to 0 at its end.

    Example:
        >>> [round(linear_shape(p), 3) for p in (0.025, 0.05, 0.525, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return max(progress, 0.0) / warmup
    return max(1.0 - progress, 0.0) / (1.0 - warmup)


class AutoLR:
    """Relative step times schedule shape, under a critical-step ceiling.

    Args:
        tau: Relative step at the peak of the schedule; None takes :func:`default_pace`.
        warmup: Share of the run over which the shape rises; 0.05.
        ceiling: The rate never exceeds this multiple of the averaged critical step; 1.0, because beyond it the next
            step raises the loss of its own batch.
        alarm: Edge ratio (rate over critical step) above which a decision of kind ``alarm`` is logged; 0.7.
        two_pass: Whether the optimizer perturbs the weights (SAM); for the default of ``tau``.
        steps: Steps of the run; for the default of ``tau``.

    Raises:
        ValueError: A value outside its range.

    Example:
        >>> policy = AutoLR()
        >>> policy.step_size(relative_speed=0.5, shape=1.0)
        (0.1, 'ratio')
    """

    name = "auto_lr"
    probes = frozenset({"edge"})

    def __init__(
        self,
        *,
        tau: float | None = None,
        warmup: float = 0.05,
        ceiling: float = 1.0,
        alarm: float = 0.7,
        two_pass: bool = False,
        steps: int | None = None,
    ) -> None:
        tau = default_pace(two_pass=two_pass, steps=steps) if tau is None else tau
        if not tau > 0 or not math.isfinite(tau):
            raise ValueError(f"tau: {tau} is not a relative step; use a number such as {TAU}")
        if not 0 < warmup < 1:
            raise ValueError(f"warmup: {warmup} is not a share of the run; use a number such as 0.05")
        if not ceiling > 0:
            raise ValueError(f"ceiling: {ceiling} must be above 0; 1.0 caps at the critical step")
        self.tau = tau
        self.warmup = warmup
        self.ceiling = ceiling
        self.alarm = alarm
        self.critical = LogEMA(0.9)
        self.rewinds = 0

    def shape(self, progress: float | None, user_shape: float | None, step: int) -> float:
        """s_k: the user's own schedule shape with a warm-up in front, or warm-up and linear decay.

        Args:
            progress: Share of the run that is done; None when the horizon is unknown.
            user_shape: Scheduled over initial learning rate where a scheduler is attached, else None.
            step: Steps done, for the warm-up (100 steps) where the horizon is unknown.
        """
        rise = step / 100.0 if progress is None else progress / self.warmup
        if user_shape is not None:
            return min(rise, 1.0) * user_shape
        if progress is None:
            raise ValueError("auto_lr needs a horizon: pass total_samples to Pilot, or attach a scheduler")
        return linear_shape(progress, self.warmup)

    def step_size(self, relative_speed: float, shape: float) -> tuple[float, str]:
        """The learning rate of this step and what was binding: ``ratio`` or ``edge``.

        Args:
            relative_speed: R_k, per unit of learning rate; a step that moved nothing gives rate 0.
            shape: s_k from :meth:`shape`.
        """
        if not (relative_speed > 0 and math.isfinite(relative_speed)):
            return 0.0, "guard"
        rate = shape * self.tau / relative_speed
        critical = self.critical.value
        if critical is not None and rate > self.ceiling * critical:
            return self.ceiling * critical, "edge"
        return rate, "ratio"

    def observe_critical_step(self, eta_c: float, applied: float = 0.0) -> None:
        """Take in a resolved critical learning rate, measured along a step of rate ``applied``."""
        self.critical.update(eta_c)

    @property
    def pace(self) -> float:
        """What a rewind halves."""
        return self.tau

    def on_rewind(self) -> tuple[float, float]:
        """Halve the pace after a rewind; returns tau before and after."""
        old, self.tau = self.tau, self.tau / 2
        self.rewinds += 1
        return old, self.tau

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint."""
        return {"tau": self.tau, "rewinds": self.rewinds, "critical": self.critical.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.tau, self.rewinds = state["tau"], state["rewinds"]
        self.critical.load_state_dict(state["critical"])
