r"""``edge_monitor``, ``noise_monitor``, ``curvature_monitor``: log numbers, and warn when one leaves its range.

.. math:: r = \eta / \eta_c, \qquad e = 1 / (1 + B / B_\mathrm{simple})

**Edge ratio** r: the learning rate over the critical one along the optimizer's own update. Below 0.2 the rate is
wasteful, 0.3 to 0.8 is healthy, above 1 the next step raises the loss of its own batch. **Efficiency** e of a sample:
near 1 while the batch is far below the noise scale, 1/2 at B = B_simple, near 0 where most samples are wasted.

**Curvature**: both ends of the Hessian's spectrum on a fixed set of samples, shown and not judged.

Cost: that of the probe, inside the budget: an edge probe five forward passes, a noise probe one gradient, a curvature
probe up to eight Hessian products of 32 samples. None of them acts. When: one wants to see where a run stands; in
monitor and shadow mode all probes run without them. When not: every gradient counts.

Defaults: r is averaged over about ten probes (logarithms, beta 0.9), since one probe is uncertain by a factor of 1.5;
an alarm when the average crosses 1 upwards, taken back below 0.8. With ``metric="adam"`` r is the largest eigenvalue of
the preconditioned Hessian over Adam's threshold (:mod:`optland.pilot.probes.adam_edge`), up to eight products per look.
The batch is called too small or too large beyond a factor of 4 in three successive probes, since B_simple is a proxy
that is right within such a factor.

Reference: critical learning rate of Kalra et al. 2026, arXiv:2601.16979; noise scale of McCandlish et al. 2018,
arXiv:1812.06162; spectra through training: Ghorbani et al. 2019, arXiv:1901.10159.
"""

from __future__ import annotations

from typing import Literal

from optland.pilot.decision import Proposal
from optland.pilot.filters import LogEMA
from optland.pilot.history import Reader
from optland.pilot.policies.base import Policy, PolicyCard
from optland.pilot.policies.facts import HostFacts

__all__ = ["CurvatureMonitor", "EdgeMonitor", "NoiseMonitor"]


_RATIOS = {"update": "edge/ratio", "adam": "edge/ratio_precond"}
_AVERAGES = {"edge/ratio": "edge/ratio_ema", "edge/ratio_precond": "edge/ratio_precond_ema"}
_BEYOND = {
    "edge/ratio": "steps of this size raise the loss of their own batch",
    "edge/ratio_precond": "the sharpest direction is beyond what this rate of Adam is stable at",
}


class EdgeMonitor(Policy):
    """The averaged edge ratio, with an alarm above ``high``.

    Args:
        high: Ratio above which an alarm is raised; 1.0, where a step raises its own batch's loss.
        calm: Ratio below which the next alarm is possible again; 0.8.
        metric: ``update`` (the default: along the realised update, for any optimizer) or ``adam``: the sharpest
            direction in Adam's metric, over the threshold of Adam or AdamW.

    Raises:
        ValueError: ``calm`` is not below ``high``, the metric is another word, or Adam's without Adam.
    """

    name = "edge_monitor"
    card = PolicyCard(
        does="the edge ratio as one number, an alarm above 1",
        reads="critical step",
        cost="1 copy of the weights",
        when="always",
        reference="Kalra 2026, 2601.16979",
    )
    reads = frozenset({"edge/ratio"})
    kept = ("alarmed", "ratio")

    def __init__(
        self, *, high: float = 1.0, calm: float = 0.8, metric: Literal["update", "adam"] = "update"
    ) -> None:
        if not 0 < calm <= high:
            raise ValueError(
                f"calm {calm} must be above 0 and at most high {high}; use for example 0.8 and 1.0"
            )
        if metric not in _RATIOS:
            raise ValueError(f"metric {metric!r} is not known; use {' or '.join(map(repr, _RATIOS))}")
        self.high, self.calm = high, calm
        self.signal = _RATIOS[metric]
        self.reads = frozenset({self.signal})
        self.ratio = LogEMA(0.9)
        self.alarmed = False

    def begin(self, host: HostFacts) -> list[Proposal]:
        """Refuse Adam's metric where there is no Adam.

        Raises:
            ValueError: Adam's metric was asked for, and the optimizer is no Adam.
        """
        if self.signal == _RATIOS["adam"] and not host.adam:
            raise ValueError(
                "EdgeMonitor(metric='adam') reads the preconditioner of Adam or AdamW, and the optimizer is neither; "
                "use metric='update'"
            )
        return []

    def decide(self, history: Reader) -> list[Proposal]:
        """An alarm where the averaged ratio crosses ``high`` upwards.

        Args:
            history: The signal of the metric.

        Returns:
            One alarm, and none until the average has been below ``calm``.
        """
        found = history.new(self.signal)
        if found is None or not found.valid:
            return []
        self.ratio.update(found.value)
        average = self.ratio.value
        if average is None:
            return []
        if self.alarmed:
            self.alarmed = average > self.calm
            return []
        if average <= self.high:
            return []
        self.alarmed = True
        reason = f"the edge ratio averages {average:.2f}: {_BEYOND[self.signal]}"
        return [Proposal("alarm", average, reason, {self.signal: found.value})]

    def metrics(self) -> dict[str, float]:
        """``edge/ratio_ema``: the one number to read; in Adam's metric ``edge/ratio_precond_ema``."""
        average = self.ratio.value
        return {} if average is None else {_AVERAGES[self.signal]: average}


class NoiseMonitor(Policy):
    """Says once when the batch has become too small or too large for the noise.

    Args:
        factor: Ratio between noise scale and batch beyond which a word is due; 4.
        patience: Successive probes that must agree; 3.

    Raises:
        ValueError: ``factor`` is not above 1, or ``patience`` is below 1.
    """

    name = "noise_monitor"
    card = PolicyCard(
        does="says when the batch is too small or too large",
        reads="gradient noise scale",
        when="always",
        reference="McCandlish 2018, 1812.06162",
    )
    reads = frozenset({"noise/b_simple"})
    kept = ("votes", "said", "efficiency")

    def __init__(self, *, factor: float = 4.0, patience: int = 3) -> None:
        if not factor > 1:
            raise ValueError(f"factor: {factor} must be above 1; use for example 4")
        if patience < 1:
            raise ValueError(f"patience: {patience} must be at least 1")
        self.factor, self.patience = factor, patience
        self.votes = 0
        self.said = 0
        self.efficiency: float | None = None

    def decide(self, history: Reader) -> list[Proposal]:
        """One alarm per change of side: +1 the batch is too small, -1 too large.

        Args:
            history: The signal ``noise/b_simple`` and the setting ``batch_size``.
        """
        found, size = history.new("noise/b_simple"), history.setting("batch_size")
        if found is None or size is None or not (found.valid and found.value > 0):
            return []
        ratio = found.value / size
        self.efficiency = 1.0 / (1.0 + 1.0 / ratio)
        side = 1 if ratio > self.factor else -1 if ratio < 1 / self.factor else 0
        self.votes = self.votes + side if side * self.votes > 0 else side
        if side == 0:
            self.said = 0
            return []
        if abs(self.votes) < self.patience or self.said == side:
            return []
        self.said = side
        what = (
            "steps are noise-limited, a larger batch or a decay would pay"
            if side > 0
            else "most samples of a batch are wasted, a smaller one would do"
        )
        reason = f"the noise scale {found.value:.0f} is {ratio:.2g} x the batch of {size:.0f}: {what}"
        return [Proposal("alarm", found.value, reason, {"noise/b_simple": found.value})]

    def metrics(self) -> dict[str, float]:
        """``noise/efficiency``: what a further sample in the batch is worth."""
        return {} if self.efficiency is None else {"noise/efficiency": self.efficiency}


class CurvatureMonitor(Policy):
    """Lets the curvature probe run, for the log."""

    name = "curvature_monitor"
    card = PolicyCard(
        does="both ends of the Hessian's spectrum on a fixed set of samples",
        reads="curvature",
        when="runs long enough for products of the Hessian inside the budget",
        reference="Ghorbani 2019, 1901.10159",
    )
    reads = frozenset({"curv/lambda_max"})

    def decide(self, history: Reader) -> list[Proposal]:
        """Nothing."""
        return []
