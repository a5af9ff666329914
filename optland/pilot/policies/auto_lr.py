r"""``auto_lr``: a schedule of the *relative* step, from which the learning rate follows.

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

Cost: no gradient evaluation and no probe; one copy of the weights and one of the gradients on the device, a few norms
per update. What is given: a learning rate counts for the ratios between parameter groups alone, and a schedule for its
shape, in a loop of one's own as in a recipe. When to use: the length of the run is known (an epoch count or a
scheduler). When not: optimizers whose move is not linear in the learning rate (closures that search, schedule-free
averages).

Defaults: tau = 0.05 at 1000 steps, fixed on small image models; ``AutoLR(tau=0.05)`` is the plain rule, whose pace
follows nothing. The critical step does not cap the rate unless ``ceiling`` says so, since runs with and without that
cap end alike (benchmarks/control.py, ablations); ``edge_monitor`` shows it beside the rate.

Reference: the relative step generalises the update-to-weight ratio of LARS (You et al. 2017, arXiv:1708.03888) to
the root-sum-square over tensors, any optimizer, and a schedule of the ratio itself. Signal and noise of a gradient:
McCandlish et al. 2018, arXiv:1812.06162; the cosine of successive gradients as a signal for the learning rate:
Baydin et al. 2018, arXiv:1703.04782.
"""

from __future__ import annotations

import math

from optland.pilot.decision import Decision, Proposal
from optland.pilot.filters import LogEMA, Mean
from optland.pilot.history import Reader
from optland.pilot.policies.base import Policy, PolicyCard
from optland.pilot.policies.facts import HostFacts

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

    Args:
        steps: Updates of the whole run; the same for 0 as for None.
        longest: Largest factor.

    Example:
        >>> [round(horizon_factor(n), 2) for n in (50, 125, 250, 1000, 100_000)]
        [2.2, 2.0, 1.59, 1.0, 1.0]
    """
    return float(min(max((1000 / steps) ** (1 / 3), 1.0), longest)) if steps else 1.0


def noise_factor(coherence: float | None, coherent: float = COHERENT) -> float:
    """n(gamma): how much the noise of the gradients shortens a step (None: not known yet).

    Args:
        coherence: Mean cosine of the gradients of two updates in a row.
        coherent: The coherence from which on a step is not shortened.

    Example:
        >>> [round(noise_factor(c), 2) for c in (0.5, 0.15, 0.075, -0.1)]
        [1.0, 1.0, 0.5, 0.25]
    """
    return 1.0 if coherence is None else float(min(max(coherence / coherent, SLOWEST), 1.0))


def linear_shape(progress: float, warmup: float = 0.05) -> float:
    """Schedule shape s: linear 0 to 1 over the first ``warmup`` of the run, then linear to 0 at its end.

    Args:
        progress: Share of the run that is done; below 0 counts as 0, above 1 as 1.
        warmup: Share of the run, in (0, 1).

    Example:
        >>> [round(linear_shape(p), 3) for p in (0.025, 0.05, 0.525, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return max(progress, 0.0) / warmup
    return max(1.0 - progress, 0.0) / (1.0 - warmup)


class AutoLR(Policy):
    """Relative step times schedule shape.

    Args:
        tau: Relative step at the peak of the schedule, taken as it is; None takes 0.05 and lets the run's length and
            the noise of its gradients set the pace.
        warmup: Share of the run over which the shape rises; 0.05.
        ceiling: The rate never exceeds this multiple of the averaged critical step; 1.0 is where a step raises the
            loss of its own batch. None, the default, caps nothing and needs no probe.

    Attributes:
        tau: Relative step at the peak now; a rewind halves it.
        rewinds: How many there were.
        coherence: The averaged coherence.
        critical: The averaged critical step; empty without ``ceiling``.

    Raises:
        ValueError: A value outside its range.

    Example:
        >>> policy = AutoLR()
        >>> policy.pace, policy.shape(0.525, None, 525)
        (0.05, 0.5)
    """

    name = "auto_lr"
    card = PolicyCard(
        does="sets the learning rate from a scheduled *relative* step; halves its pace after a rewind",
        reads="update relative to weights, coherence of gradients; with `ceiling` the critical step",
        turns="step length; with `ceiling` a cap on the lr",
        cost="on the device 1 copy of the weights and 1 of the gradients; "
        "in host memory the 2 snapshots of control mode",
        when="the length of the run is known, or its end is called; not for optimizers that are not linear in the rate",
        measured=("control_report", "control_development", "control_edge"),
        reference="ratio: You 2017, 1708.03888",
    )
    turns = frozenset({"step_length"})
    kept = ("tau", "rewinds", "coherence", "measured", "critical")

    def __init__(
        self, *, tau: float | None = None, warmup: float = 0.05, ceiling: float | None = None
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
        self.reads = frozenset({"noise/coherence"} if self.adaptive else ()) | (
            {"edge/eta_c"} if ceiling is not None else frozenset()
        )
        self.caps = frozenset({"lr"} if ceiling is not None else ())
        self.coherence = Mean()
        self.measured = 0
        """Update at which the coherence was measured last; a sample stands for those since."""
        self.critical = LogEMA(0.9)
        self.rewinds = 0
        self.two_pass = False
        self.steps: int | None = None
        self.passes: float | None = None

    def begin(self, host: HostFacts) -> list[Proposal]:
        """Take in the length of the run, and whether its steps take two passes, which follow the noise closer.

        Args:
            host: Its ``steps`` and ``passes`` set the pace, under SAM the span of the mean too.

        Returns:
            Nothing is asked for before the first update.

        Raises:
            ValueError: Nothing says how long the run is.
        """
        if not (host.has_length or host.has_schedule or host.open_ended):
            raise ValueError(
                f"{self.name} needs to know the length of the run: pass total_steps=epochs * len(loader), or take the "
                "batches from pilot.batches(loader, epochs=...), attach a scheduler to the optimizer first, or say "
                "open_ended=True and call pilot.decay(steps)"
            )
        self.steps, self.passes, self.two_pass = host.steps, host.passes, host.two_pass
        if self.two_pass:
            a_pass = self.steps / self.passes if self.steps and self.passes else UNKNOWN_PASS
            self.coherence.beta = max(1.0 - 1.0 / a_pass, 0.0)
        return []

    def shape(self, progress: float | None, user_shape: float | None, step: int) -> float:
        """s_k: the user's own schedule shape with a warm-up in front, or warm-up and linear decay.

        Args:
            progress: Share of the run that is done; None when the length is unknown.
            user_shape: Scheduled over peak learning rate where a scheduler is attached, else None.
            step: Updates made, for the warm-up (100 of them) where the length is unknown.
        """
        rise = step / 100.0 if progress is None else progress / self.warmup
        if user_shape is not None:
            return min(rise, 1.0) * user_shape
        return min(rise, 1.0) if progress is None else linear_shape(progress, self.warmup)

    def decide(self, history: Reader) -> list[Proposal]:
        """The length of the update just made, relative to the weights; with ``ceiling`` a cap on the rate besides.

        Args:
            history: Signals ``noise/coherence`` and, with ``ceiling``, ``edge/eta_c``; the setting ``shape``.

        Returns:
            One proposal in every update, and a cap after each probe that was valid.
        """
        coherence = history.new("noise/coherence")
        if coherence is not None and coherence.valid:
            self.coherence.update(coherence.value, max(coherence.step - self.measured, 1))
            self.measured = coherence.step
        shape = self.shape(history.progress, history.setting("shape"), history.step)
        asked = [Proposal("step_length", shape * self.pace, "the schedule's share of the pace")]
        if self.ceiling is None:
            return asked
        edge = history.new("edge/eta_c")
        if edge is not None and edge.valid:
            self.critical.update(edge.value)
            cap = self.ceiling * (self.critical.value or math.inf)
            asked.append(Proposal("lr", cap, f"{self.ceiling:g} of the averaged critical rate", cap=True))
        return asked

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

    def told(self, decision: Decision) -> None:
        """Halve the pace after a rewind."""
        if decision.actuator == "rewind" and decision.taken:
            self.tau /= 2
            self.rewinds += 1

    def metrics(self) -> dict[str, float]:
        """``ctl/pace``, and ``noise/coherence`` as it is averaged."""
        row = {"ctl/pace": self.pace}
        if self.coherence.value is not None:
            row["noise/coherence"] = self.coherence.value
        return row
