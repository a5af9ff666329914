r"""``safe_lr``: the user's schedule, capped by the critical step.

.. math:: \eta_k = \min\bigl(\eta^\mathrm{user}_k,\ \ell_k,\ s_k \max_{j \le k} \ell_j\bigr), \qquad
          \ell_k = c \cdot \mathrm{EMA}_{\log}(\eta_c)

eta_c is the largest step along the optimizer's own update that does not raise the loss of the batch it came from
(forward passes only). The cap starts tiny and may grow at most sixteenfold per probe, so a rate that is far too high
cannot ruin the weights before the first probes are in. It can make the user's rate smaller, never larger. s_k is the
shape of the schedule, the scheduled over the peak rate: where the user's peak is out of reach, the schedule is scaled
to the highest cap there has been, as a rate that stayed at the edge to the end would never settle.

The average is symmetric, so it lags when the edge falls. Where the step just made is seen to lie beyond its own edge
the average starts again from that probe: asymmetry belongs to the case that does damage, not to the filter. A rewind
halves the cap, and it never grows beyond that again: the gradient's own direction can hide a sharper one, so a cap
that came back would do the damage again.

Cost: a few forward passes per probe, inside the probe budget. When to use: a schedule that is trusted except for its
height. When not: with ``auto_lr``, which sets the height itself.

Defaults: c = 0.35. From 0.35 to 0.7 all train small nets from a rate 10,000 times too high; the larger ones lose up to
15 points under AdamW on MNIST-1D, where its steps meet the edge late.

Reference: critical learning rate of Kalra et al. 2026, arXiv:2601.16979 (there a diagnostic).
"""

from __future__ import annotations

import math

from optland.pilot.decision import Decision, Proposal
from optland.pilot.filters import LogEMA
from optland.pilot.history import Reader
from optland.pilot.policies.base import Policy, PolicyCard
from optland.pilot.policies.facts import HostFacts

__all__ = ["SafeLR"]

LATE = 20
"""Steps after which trouble shows in an average over ten losses: a rate may have done damage that long ago."""


class SafeLR(Policy):
    """Cap on the user's learning rate from the critical step.

    Args:
        fraction: c, share of the averaged critical step that the rate may reach; 0.35.
        initial_lr: Cap before the first probe; 1e-4, small for every net.
        growth: Largest factor by which the cap grows from one probe to the next; 16: three probes from a tiny cap to
            a usual rate. A budget that is kept at every update has four to spend at the start of a run.

    Attributes:
        critical: The averaged critical step.
        limit: The cap before the schedule's shape.
        rates: Learning rates of the last 20 updates, for the cap after a rewind.

    Raises:
        ValueError: A value outside its range.

    Example:
        >>> SafeLR(initial_lr=0.1).cap(shape=None)
        0.1
    """

    name = "safe_lr"
    card = PolicyCard(
        does="caps your schedule, never raises it",
        reads="critical step along the realised update",
        turns="cap on the lr",
        cost="1 copy of the weights",
        when="the schedule is trusted, its height is not",
        measured=("control_report",),
        reference="Kalra 2026, 2601.16979",
    )
    reads = frozenset({"edge/eta_c", "edge/ratio"})
    caps = frozenset({"lr"})
    kept = ("limit", "height", "bound", "from_below", "critical", "rates")

    def __init__(self, *, fraction: float = 0.35, initial_lr: float = 1e-4, growth: float = 16.0) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction: {fraction} is not in (0, 1]; use for example 0.35")
        if not initial_lr > 0:
            raise ValueError(f"initial_lr: {initial_lr} must be above 0; use for example 1e-4")
        if not growth > 1:
            raise ValueError(
                f"growth: {growth} must be above 1, or the cap could never rise; use for example 16"
            )
        self.fraction = fraction
        self.growth = growth
        self.critical = LogEMA(0.9)
        self.from_below = False
        """Whether the average is a bound from below, which the next sample replaces."""
        self.limit = initial_lr
        self.height = initial_lr
        """The highest cap so far, since the last rewind."""
        self.bound = math.inf
        """Half of the rate that the last rewind was for: the cap stays below."""
        self.rates: list[float] = []

    def begin(self, host: HostFacts) -> list[Proposal]:
        """The first cap holds before anything is known.

        Args:
            host: Not used.

        Returns:
            A cap of ``initial_lr``.
        """
        return [self._proposal(None, "no probe has run yet")]

    def decide(self, history: Reader) -> list[Proposal]:
        """The cap on the next update's rate, as the shape of the schedule and the last probes have it.

        Args:
            history: Signals ``edge/eta_c`` and ``edge/ratio``, settings ``lr`` and ``shape``.

        Returns:
            One cap, in every update, since the shape moves in each.
        """
        shape = history.setting("shape")
        user = history.setting("lr") or 0.0
        self.rates = [*self.rates, min(user, self.cap(shape))][-LATE:]
        edge, ratio = history.new("edge/eta_c"), history.last("edge/ratio")
        if edge is not None and edge.valid:
            applied = edge.value * (ratio.value if ratio is not None and ratio.step == edge.step else 0.0)
            self.observe(edge.value, applied, resolved=edge.why != "unbounded")
        average = self.critical.value
        return [self._proposal(shape, "no probe has met the edge" if average is None else
                               f"the critical rate averages {average:.3g}")]  # fmt: skip

    def _proposal(self, shape: float | None, why: str) -> Proposal:
        return Proposal("lr", self.cap(shape), f"{why}; the schedule is capped", cap=True)

    def cap(self, shape: float | None) -> float:
        """The cap in force: the limit, and the schedule scaled to the highest one.

        Args:
            shape: s_k, scheduled over peak rate; None without a schedule.
        """
        return self.limit if shape is None else min(self.limit, shape * self.height)

    def observe(self, eta_c: float, applied: float = 0.0, *, resolved: bool = True) -> None:
        """Move the cap towards c times the averaged critical step, at most ``growth``-fold up.

        Args:
            eta_c: A critical learning rate.
            applied: The learning rate of the step it was measured along.
            resolved: Whether it was met; else no trial reached it, and ``eta_c`` is a bound from below.
        """
        average = self.critical.value
        if resolved or average is None or eta_c > average:
            if applied > eta_c or self.from_below:
                self.critical = LogEMA(0.9)
            self.critical.update(eta_c)
            self.from_below = not resolved and (average is None or self.from_below)
        average = self.critical.value
        if average is not None:
            self.limit = min(self.fraction * average, self.growth * self.limit, self.bound)
            self.height = max(self.height, self.limit)

    def told(self, decision: Decision) -> None:
        """Halve the cap after a rewind, and forget the average that led there.

        Where the largest rate of the last steps is above the cap, probes have met a new edge since, and it is that rate
        that did the damage: the cap stays, and may grow to half of the rate.
        """
        if decision.actuator != "rewind" or not decision.taken:
            return
        old = self.limit
        self.bound = max(old, *self.rates, 0.0) / 2
        self.limit = self.height = min(old, self.bound)
        self.critical = LogEMA(0.9)

    def metrics(self) -> dict[str, float]:
        """``lr/ceiling``."""
        return {"lr/ceiling": self.limit}
