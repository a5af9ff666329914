r"""``safe_lr``: the user's schedule, capped by the critical step.

.. math:: \eta_k = \min\bigl(\eta^\mathrm{user}_k,\ \ell_k,\ s_k \max_{j \le k} \ell_j\bigr), \qquad
          \ell_k = c \cdot \mathrm{EMA}_{\log}(\eta_c)

eta_c is the largest step along the optimizer's own update that does not raise the loss of the batch it came from
(forward passes only). The cap starts tiny and may grow at most fourfold a probe, so a rate that is far too high
cannot ruin the weights before the first probes are in. It can make the user's rate smaller, never larger. s_k is the
shape of the schedule, the scheduled over the peak rate: where the user's peak is out of reach, the schedule is scaled
to the highest cap there has been, as a rate that stayed at the edge to the end would never settle.

The average is symmetric, so it lags when the edge falls. Where the step just made is seen to lie beyond its own edge
the average starts again from that probe: asymmetry belongs to the case that does damage, not to the filter. A rewind
halves the cap, and it never grows beyond that again: the gradient's own direction can hide a sharper one, so a cap
that came back would do the damage again.

Cost: a few forward passes a probe, inside the probe budget. When to use: a schedule that is trusted except for its
height. When not: with ``auto_lr``, which sets the height itself.

Defaults: c = 0.35. From 0.35 to 0.7 all train small nets from a rate 10,000 times too high; the larger ones lose up to
15 points under AdamW on MNIST-1D, where its steps meet the edge late.

Reference: critical learning rate of Kalra et al. 2026, arXiv:2601.16979 (there a diagnostic).
"""

from __future__ import annotations

import math
from typing import Any

from optland.control.filters import LogEMA

__all__ = ["SafeLR"]


class SafeLR:
    """Cap on the user's learning rate from the critical step.

    Args:
        fraction: c, share of the averaged critical step that the rate may reach; 0.35.
        start: Cap before the first probe; 1e-4, small for every net.
        growth: Largest factor by which the cap grows from one probe to the next; 4.

    Raises:
        ValueError: A value outside its range.

    Example:
        >>> policy = SafeLR(start=0.1)
        >>> policy.cap(1.0)
        (0.1, 'edge')
    """

    name = "safe_lr"
    probes = frozenset({"edge"})

    def __init__(self, *, fraction: float = 0.35, start: float = 1e-4, growth: float = 4.0) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction: {fraction} is not in (0, 1]; use for example 0.35")
        if not start > 0:
            raise ValueError(f"start: {start} must be above 0; use for example 1e-4")
        if not growth > 1:
            raise ValueError(
                f"growth: {growth} must be above 1, or the cap could never rise; use for example 4"
            )
        self.fraction = fraction
        self.growth = growth
        self.critical = LogEMA(0.9)
        self.from_below = False
        """Whether the average is a bound from below, which the next sample replaces."""
        self.limit = start
        self.height = start
        """The highest cap so far, since the last rewind."""
        self.bound = math.inf
        """Half of the rate that the last rewind was for: the cap stays below."""

    def cap(self, lr_user: float, shape: float | None = None) -> tuple[float, str]:
        """The learning rate to apply and what was binding: ``user`` or ``edge``.

        Args:
            lr_user: The user's rate, as scheduled now.
            shape: s_k, scheduled over peak rate; None without a schedule.
        """
        limit = self.limit if shape is None else min(self.limit, shape * self.height)
        return (lr_user, "user") if lr_user <= limit else (limit, "edge")

    def observe_critical_step(self, eta_c: float, applied: float = 0.0, *, resolved: bool = True) -> None:
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

    @property
    def pace(self) -> float:
        """What a rewind halves."""
        return self.limit

    def on_rewind(self, applied: float = 0.0) -> tuple[float, float]:
        """Halve the cap after a rewind and forget the average that led there; returns the cap before and after.

        Args:
            applied: The largest rate of the last steps. Where it is above the cap, probes have met a new edge since,
                and it is that rate that did the damage: the cap stays, and may grow to half of the rate.
        """
        old = self.limit
        self.bound = max(old, applied) / 2
        self.limit = self.height = min(old, self.bound)
        self.critical = LogEMA(0.9)
        return old, self.limit

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint."""
        return {
            "limit": self.limit,
            "height": self.height,
            "bound": self.bound,
            "from_below": self.from_below,
            "critical": self.critical.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.limit, self.height, self.bound = state["limit"], state["height"], state["bound"]
        self.from_below = state["from_below"]
        self.critical.load_state_dict(state["critical"])
