r"""``edge_monitor`` and ``noise_monitor``: one number each, with a word when it leaves its range. Neither acts.

.. math:: r = \eta / \eta_c, \qquad e = 1 / (1 + B / B_\mathrm{simple})

**Edge ratio** r: the learning rate over the critical one along the optimizer's own update. Below 0.2 the rate is
wasteful, 0.3 to 0.8 is healthy, above 1 the next step raises the loss of its own batch. **Efficiency** e of a sample:
near 1 while the batch is far below the noise scale, 1/2 at B = B_simple, near 0 where most samples are wasted.

Cost: none beyond the probes that run anyway. When: always. When not: there is nothing to lose.

Defaults: r is averaged over about ten probes (logarithms, beta 0.9), since one probe is uncertain by a factor of 1.5;
an alarm when the average crosses 1 upwards, taken back below 0.8. The batch is called too small or too large beyond a
factor of 4 in three successive probes, since B_simple is a proxy that is right within such a factor.

Reference: critical learning rate of Kalra et al. 2026, arXiv:2601.16979; noise scale of McCandlish et al. 2018,
arXiv:1812.06162.
"""

from __future__ import annotations

from typing import Any

from optland.control.filters import LogEMA
from optland.control.view import Proposal, StepPolicy, StepView

__all__ = ["EdgeMonitor", "NoiseMonitor"]


class EdgeMonitor(StepPolicy):
    """The averaged edge ratio, with an alarm above ``high``.

    Args:
        high: Ratio above which an alarm is raised; 1.0, where a step raises its own batch's loss.
        calm: Ratio below which the next alarm is possible again; 0.8.

    Example:
        >>> monitor = EdgeMonitor()
        >>> [p.actuator for p in monitor.propose(StepView(1, 2.3, edge_ratio=1.5))]
        ['alarm']
    """

    name = "edge_monitor"
    probes = frozenset({"edge"})

    def __init__(self, *, high: float = 1.0, calm: float = 0.8) -> None:
        if not 0 < calm <= high:
            raise ValueError(
                f"calm {calm} must be above 0 and at most high {high}; use for example 0.8 and 1.0"
            )
        self.high, self.calm = high, calm
        self.ratio = LogEMA(0.9)
        self.alarmed = False

    def propose(self, view: StepView) -> list[Proposal]:
        """An alarm where the averaged ratio crosses ``high`` upwards."""
        if view.edge_ratio is None:
            return []
        self.ratio.update(view.edge_ratio)
        average = self.ratio.value
        if average is None:
            return []
        if self.alarmed:
            self.alarmed = average > self.calm
            return []
        if average <= self.high:
            return []
        self.alarmed = True
        reason = (
            f"the edge ratio averages {average:.2f}: steps of this size raise the loss of their own batch"
        )
        return [Proposal("alarm", self.high, average, reason, {"edge/ratio": view.edge_ratio})]

    def metrics(self) -> dict[str, float]:
        """``edge/ratio_ema``: the one number to read."""
        average = self.ratio.value
        return {} if average is None else {"edge/ratio_ema": average}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint."""
        return {"alarmed": self.alarmed, "ratio": self.ratio.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.alarmed = state["alarmed"]
        self.ratio.load_state_dict(state["ratio"])


class NoiseMonitor(StepPolicy):
    """Says once when the batch has become too small or too large for the noise.

    Args:
        factor: Ratio between noise scale and batch beyond which a word is due; 4.
        patience: Successive probes that must agree; 3.

    Example:
        >>> monitor = NoiseMonitor(patience=1)
        >>> monitor.propose(StepView(1, 2.3, batch=32, noise_scale=640.0))[0].reason
        'the noise scale 640 is 20 x the batch of 32: steps are noise-limited, a larger batch or a decay would pay'
    """

    name = "noise_monitor"
    probes = frozenset({"noise"})
    _kept = ("votes", "said", "_efficiency")

    def __init__(self, *, factor: float = 4.0, patience: int = 3) -> None:
        if not factor > 1:
            raise ValueError(f"factor: {factor} must be above 1; use for example 4")
        if patience < 1:
            raise ValueError(f"patience: {patience} must be at least 1")
        self.factor, self.patience = factor, patience
        self.votes = 0
        self.said = 0
        self._efficiency: float | None = None

    def propose(self, view: StepView) -> list[Proposal]:
        """One alarm a change of side: +1 the batch is too small, -1 too large."""
        if view.noise_scale is None or not view.noise_scale > 0:
            return []
        ratio = view.noise_scale / view.batch
        self._efficiency = 1.0 / (1.0 + 1.0 / ratio)
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
        reason = f"the noise scale {view.noise_scale:.0f} is {ratio:.2g} x the batch of {view.batch}: {what}"
        return [Proposal("alarm", view.batch, view.noise_scale, reason, {"noise/b_simple": view.noise_scale})]

    def metrics(self) -> dict[str, float]:
        """``noise/efficiency``: what a further sample in the batch is worth."""
        return {} if self._efficiency is None else {"noise/efficiency": self._efficiency}
