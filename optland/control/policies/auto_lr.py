r"""``auto_lr``: no learning rate to choose; the *relative* step is scheduled and the rate read off from it.

.. math:: \eta_k = s_k\,\pi_k / R_k, \qquad
          R_k = \sqrt{\sum_{l \in D} \bigl(\lVert u_l\rVert / \max(\lVert w_l\rVert, \phi_l)\bigr)^2}, \qquad
          \pi_k = \tau\, h(T)\, n(\gamma_k)

u_l is the optimizer's whole proposed move of tensor l per unit of learning rate (momentum, preconditioner, weight
decay included), D the tensors with two or more dimensions, s_k the schedule's shape: a warm-up over the first 5 % of
the run, then linear to zero. The shape multiplies the whole; a ceiling outside it would leave the end undecayed.

The pace pi_k starts from one constant and follows two things that the run knows:

* its length T in steps, h = (1000 / T)^(1/3) between 1 and 2.2: a short run has to travel further in a step;
* the coherence gamma of the gradients, the mean cosine of two successive ones (in the metric of an adaptive optimizer).
  For gradients g = G + noise of successive batches it estimates |G|^2 / E|g|^2, the share of a step that is signal
  (McCandlish et al. 2018), and it falls below that where the steps bounce between the walls of a sharp valley:
  n = gamma / 0.15, between 0.25 and 1. Noise slows the pace, coherence never hastens it.

The mean runs over the whole run: one that follows the present decay of the signal would add a second decay to the
schedule's. SAM is another matter. Where labels are noisy, what it has kept out is learnt once the signal runs out, and
sooner the more often the same samples come by. There the mean follows the last pass over the data, the coherence that
leaves a step whole is (passes / 5)^(1/3) times as large, and h stays below 1.6, since SAM's stability edge lies below
the base's and falls with the gradient norm.

Cost: no gradient evaluation; one copy of the weights and one of the gradients, and a few norms a step. When to use: a
horizon is known (an epoch count or a scheduler). When not: optimizers whose move is not linear in the learning
rate (closures that search, schedule-free averages).

Defaults: tau = 0.05 at 1000 steps, fixed on small image models. The critical step is shown beside
the rate and raises an alarm above ``alarm``; it does not cap the rate unless ``ceiling`` says so, since runs with and
without that cap end alike (benchmarks/control.py, ablations).

Reference: the relative step generalises the update-to-weight ratio of LARS (You et al. 2017, arXiv:1708.03888) to
the root-sum-square over tensors, any optimizer, and a schedule of the ratio itself. Signal and noise of a gradient:
McCandlish et al. 2018, arXiv:1812.06162; the cosine of successive gradients as a signal for the learning rate:
Baydin et al. 2018, arXiv:1703.04782.
"""

from __future__ import annotations

import math
from typing import Any

from optland.control.filters import LogEMA, Mean

__all__ = ["TAU", "AutoLR", "horizon_factor", "linear_shape", "noise_factor"]

TAU = 0.05
"""Relative step of a run of 1000 steps while the gradients are coherent."""

COHERENT = 0.15
"""Coherence down to which noise does not slow a step."""

SLOWEST = 0.25
"""Bound on the noise's factor."""

LONGEST, LONGEST_TWO_PASS = 2.2, 1.6
"""Bounds on the horizon's factor, reached at 100 steps, and under SAM at 250."""

FEW_PASSES = 5.0
"""Passes over the data up to which SAM's steps bear as much noise as the base's."""

UNKNOWN_PASS = 20
"""Steps that SAM's coherence is averaged over where nobody knows the size of the data."""


def horizon_factor(steps: int | None, longest: float = LONGEST) -> float:
    """h(T): how much longer a step of a run of ``steps`` steps is than one of 1000 (None: of unknown length).

    The exponent 1/3 lies between that of a straight path (1) and none at all. Above 1000 steps nothing was gained by
    going slower, so the factor stays 1.

    Example:
        >>> [round(horizon_factor(n), 2) for n in (50, 125, 250, 1000, 100_000)]
        [2.2, 2.0, 1.59, 1.0, 1.0]
    """
    return float(min(max((1000 / steps) ** (1 / 3), 1.0), longest)) if steps else 1.0


def noise_factor(coherence: float | None, coherent: float = COHERENT) -> float:
    """n(gamma): how much the noise of the gradients shortens a step (None: not known yet).

    Example:
        >>> [round(noise_factor(c), 2) for c in (0.5, 0.15, 0.075, -0.1)]
        [1.0, 1.0, 0.5, 0.25]
    """
    return 1.0 if coherence is None else float(min(max(coherence / coherent, SLOWEST), 1.0))


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
    """Relative step times schedule shape, watched by the critical step.

    Args:
        tau: Relative step at the peak of the schedule, taken as it is; None takes 0.05 and lets the run's length and
            the noise of its gradients set the pace.
        warmup: Share of the run over which the shape rises; 0.05.
        ceiling: The rate never exceeds this multiple of the averaged critical step; 1.0 is where a step raises the
            loss of its own batch. None, the default, caps nothing.
        alarm: Edge ratio (rate over critical step) above which a decision of kind ``alarm`` is logged; 0.7.
        two_pass: Whether the optimizer perturbs the weights (SAM), which follows the noise closer.
        steps: Steps of the run; None leaves it to :meth:`begin`.

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
        ceiling: float | None = None,
        alarm: float = 0.7,
        two_pass: bool = False,
        steps: int | None = None,
    ) -> None:
        self.adaptive = tau is None
        tau = TAU if tau is None else tau
        if not tau > 0 or not math.isfinite(tau):
            raise ValueError(f"tau: {tau} is not a relative step; use a number such as {TAU}")
        if not 0 < warmup < 1:
            raise ValueError(f"warmup: {warmup} is not a share of the run; use a number such as 0.05")
        if ceiling is not None and not ceiling > 0:
            raise ValueError(
                f"ceiling: {ceiling} must be above 0; 1.0 caps at the critical step, None not at all"
            )
        self.tau = tau
        self.warmup = warmup
        self.ceiling = ceiling
        self.alarm = alarm
        self.two_pass = two_pass
        self.steps = steps
        self.passes: float | None = None
        self.coherence = Mean(1.0 - 1.0 / UNKNOWN_PASS if two_pass else None)
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
            raise ValueError(
                f"{self.name} needs a horizon: pass total_samples to Pilot, or attach a scheduler"
            )
        return linear_shape(progress, self.warmup)

    def step_size(self, relative_speed: float, shape: float) -> tuple[float, str]:
        """The learning rate of this step and what was binding: ``ratio`` or ``edge``.

        Args:
            relative_speed: R_k, per unit of learning rate; a step that moved nothing gives rate 0.
            shape: s_k from :meth:`shape`.
        """
        if not (relative_speed > 0 and math.isfinite(relative_speed)):
            return 0.0, "guard"
        rate = shape * self.pace / relative_speed
        critical = self.critical.value
        if self.ceiling is None or critical is None or rate <= self.ceiling * critical:
            return rate, "ratio"
        return self.ceiling * critical, "edge"

    def observe_critical_step(self, eta_c: float, applied: float = 0.0, *, resolved: bool = True) -> None:
        """Take in a critical learning rate, or a bound from below, measured along a step of rate ``applied``."""
        self.critical.update(eta_c)

    def begin(self, steps: int, passes: float | None = None) -> None:
        """Take in the length of the run, known with its first batch; a number of steps given before stays.

        Args:
            steps: Steps of the run.
            passes: Passes over the data; None where nobody knows the size of the data.
        """
        if self.steps is None:
            self.steps = steps
        self._know(passes)

    def _know(self, passes: float | None) -> None:
        self.passes = passes
        if self.two_pass and self.steps and passes:
            self.coherence.beta = max(1.0 - passes / self.steps, 0.0)

    def observe_coherence(self, cosine: float) -> None:
        """Take in the cosine of the last two gradients; one that is not finite is left out."""
        self.coherence.update(cosine)

    @property
    def pace(self) -> float:
        """pi_k, the relative step at the schedule's peak; what a rewind halves."""
        if not self.adaptive:
            return self.tau
        longest, coherent = LONGEST, COHERENT
        if self.two_pass:
            longest = LONGEST_TWO_PASS
            coherent *= max((self.passes or FEW_PASSES) / FEW_PASSES, 1.0) ** (1 / 3)
        return self.tau * horizon_factor(self.steps, longest) * noise_factor(self.coherence.value, coherent)

    def on_rewind(self, applied: float = 0.0) -> tuple[float, float]:
        """Halve the pace after a rewind; returns it before and after. Rates do not matter to a relative step."""
        old, self.tau = self.pace, self.tau / 2
        self.rewinds += 1
        return old, self.pace

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint."""
        return {
            "tau": self.tau,
            "rewinds": self.rewinds,
            "steps": self.steps,
            "passes": self.passes,
            "critical": self.critical.state_dict(),
            "coherence": self.coherence.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.tau, self.rewinds, self.steps = state["tau"], state["rewinds"], state["steps"]
        self._know(state["passes"])
        self.critical.load_state_dict(state["critical"])
        self.coherence.load_state_dict(state["coherence"])
