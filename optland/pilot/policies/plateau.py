r"""``plateau``: when the loss has stopped falling, drops the rate or escapes from a saddle.

Two tests at the end of every window, and both have to agree. **Slope**: the least-squares slope of the loss over the
window's newer part is not significantly below zero (one-sided t-test). **SASA+**: at stationarity of SGD with any
heavy-ball momentum

.. math:: E\bigl[\langle w_k, d_k\rangle - \tfrac{\eta}{2} |d_k|^2\bigr] = 0, \qquad w_{k+1} = w_k - \eta d_k,

which says that |w|^2 no longer changes; its mean must lie within a t-interval around 0 with batch-means variance. Where
the inner products are not measured the slope decides alone. Then the negative-curvature ratio NCR = -lambda_min /
lambda_max, where a curvature probe has a fresh one, chooses: above ``saddle`` the run is held up by a saddle and an
*escape* along the negative direction is asked for (once per window); else it is a noise floor, and the rate drops.

Cost: no gradient; one copy of the weights, two inner products per update, and the curvature probe inside the budget.
When: a run without a schedule. When not: with ``auto_lr`` or a decaying schedule, which cuts the rate by plan; windows
shorter than an epoch.

Defaults: window 100 steps, since a t-test on fewer batch losses has no power; level 0.05; drop to half, the mildest cut
that halves the noise floor; NCR 0.3: nets measured 0.86 at the initial plateau and below 0.1 later.

Reference: Zhang et al. 2020 (SASA+, SLOPE), arXiv:2002.10597; Alain et al. 2019, arXiv:1902.02366.
"""

from __future__ import annotations

import math

from optland.pilot.decision import Proposal
from optland.pilot.history import Reader
from optland.pilot.policies.base import Policy, PolicyCard
from optland.statistics import mean_interval, slope_t

__all__ = ["Plateau"]


class Plateau(Policy):
    """Drops the rate or escapes where the loss is flat.

    Args:
        window: Updates between two tests; 100.
        drop: Factor on the rate at a noise floor; 0.5.
        saddle: Negative-curvature ratio from which the plateau counts as a saddle; 0.3.
        least: Smallest factor on the rate; 1e-3.

    Attributes:
        losses: Of the present window.
        terms: Of the present window, w'd - lr |d|^2 / 2 of each update, d the move per unit of learning rate.
        slope: Of the last test, loss per update; NaN before it.
        stat: Mean of the terms at the last test; NaN before it.

    Raises:
        ValueError: A value outside its range.
    """

    name = "plateau"
    card = PolicyCard(
        does="drops the rate at a noise floor, or leaves a saddle",
        reads="loss slope, SASA statistic, negative-curvature ratio",
        turns="lr factor, escape",
        cost="1 copy of the weights, two inner products",
        when="no schedule; not with a decaying one",
        measured=("plateau",),
        reference="Zhang 2020, 2002.10597",
    )
    reads = frozenset({"train/loss", "update/w_dot_d", "update/d_sq", "curv/ncr"})
    turns = frozenset({"lr_factor", "escape"})
    kept = ("losses", "terms", "slope", "stat")

    def __init__(
        self, *, window: int = 100, drop: float = 0.5, saddle: float = 0.3, least: float = 1e-3
    ) -> None:
        if window < 16:
            raise ValueError(
                f"window: {window} updates are too few for a t-test; use 16 or more, for example 100"
            )
        if not 0 < drop < 1:
            raise ValueError(f"drop: {drop} is not in (0, 1); use for example 0.5")
        if not saddle > 0 or not 0 < least < 1:
            raise ValueError(f"saddle {saddle} must be above 0 and least {least} in (0, 1); use 0.3 and 1e-3")
        self.window, self.drop, self.saddle, self.least = window, drop, saddle, least
        self.losses: list[float] = []
        self.terms: list[float] = []
        self.slope = math.nan
        self.stat = math.nan

    def decide(self, history: Reader) -> list[Proposal]:
        """At the end of a window: nothing while the loss falls, else a drop or an escape.

        Args:
            history: Signals ``train/loss``, ``update/w_dot_d``, ``update/d_sq`` and ``curv/ncr``; settings
                ``lr_applied`` and ``lr_factor``. A loss that is not finite is left out of the window.

        Returns:
            At most one, every ``window`` updates; no drop where the factor is ``least`` already.
        """
        loss = history.new("train/loss")
        if loss is None or not math.isfinite(loss.value):
            return []
        self.losses.append(loss.value)
        product, square = history.new("update/w_dot_d"), history.new("update/d_sq")
        if product is not None and square is not None:
            term = product.value - 0.5 * (history.setting("lr_applied") or 0.0) * square.value
            if math.isfinite(term):
                self.terms.append(term)
        if len(self.losses) < self.window:
            return []
        flat, why = self._flat()
        self.losses, self.terms = [], []
        return self._act(history, loss.value, why) if flat else []

    def _flat(self) -> tuple[bool, str]:
        """Whether the newer part of the window (7 of 8, the rest is forgotten) is stationary, and why."""
        newer = self.losses[len(self.losses) // 8 :]
        self.slope, t, bound = slope_t(newer)
        if t < bound:
            return False, ""
        why = f"the slope of the loss, {self.slope:.2g} per step, is not below zero (t = {t:.1f})"
        terms = self.terms[len(self.terms) // 8 :]
        if len(terms) < 16:
            return True, why
        self.stat, half = mean_interval(terms)
        if abs(self.stat) > half:
            return False, ""
        return True, f"{why} and the length of the weights is stationary ({self.stat:.2g} +- {half:.2g})"

    def _act(self, history: Reader, loss: float, why: str) -> list[Proposal]:
        signals = {"train/loss": loss, "test/slope": self.slope}
        # A ratio from before an escape says nothing after it: each is used once, while it is of this window.
        ncr, age = history.new("curv/ncr"), history.age("curv/ncr")
        fresh = ncr is not None and ncr.valid and age is not None and age <= self.window
        if ncr is not None and fresh and ncr.value > self.saddle:
            reason = f"{why}, with negative curvature {ncr.value:.2f} of the largest: a saddle, to be left along it"
            return [Proposal("escape", 1.0, reason, signals | {"curv/ncr": ncr.value})]
        factor = history.setting("lr_factor") or 1.0
        new = max(factor * self.drop, self.least)
        if new >= factor:
            return []
        return [Proposal("lr_factor", new, f"{why}: a noise floor, the rate drops", signals)]

    def metrics(self) -> dict[str, float]:
        """``test/slope`` and ``test/sasa_stat`` of the last test."""
        found = {"test/slope": self.slope, "test/sasa_stat": self.stat}
        return {key: value for key, value in found.items() if math.isfinite(value)}
