r"""How far a step of Adam is from the adaptive edge of stability, by its own preconditioner and one eigenvalue.

.. math:: r = \frac{\eta\,(1 - \beta_1)}{(2 - \eta w)(1 + \beta_1)}\; \lambda_{\max}\big(P^{-1/2} H P^{-1/2}\big),
          \qquad P = (1 - \beta_1^t)\big(\sqrt{v / (1 - \beta_2^t)} + \epsilon\big)

with the rate eta that was applied, v of the optimizer's state, and AdamW's decay w (0 for Adam). r = 1 is 38 / eta for
beta1 = 0.9: full-batch Adam settles there.

**Cost.** Up to eight Hessian products of 32 samples, twice that where an audit is due. The eigenvector is carried from
look to look, in the coordinates of P^{1/2} as it was. Products per look to a residual of 1 %, a digits net under AdamW,
three seeds, without audits (benchmarks/results/adam_edge.json):

================================  =======  ==========  ====
rate, updates between two looks   carried  in weights  cold
================================  =======  ==========  ====
1e-3, 1                           3.4      3.5         10.7
1e-3, 10                          3.4      3.4         9.1
5e-3, 1                           3.8      4.0         9.8
5e-3, 10                          4.8      4.8         7.7
================================  =======  ==========  ====

*In weights*: carried as a direction of weight space, which is left out. One value in 720 was 9 % below a cold run's,
all others within 1 %: another pair had overtaken, which the next audit sees.

**When.** Under Adam and AdamW, beside or in place of the edge along the update, which is one number of a noisy
direction. Not for other optimizers.

**Caveats.** On a fixed set of samples; under minibatch noise training stays below 1. With SAM around Adam it is the
edge of Adam alone. P is frozen for the look, though it follows the gradients.

**References.** Cohen et al. 2022, arXiv:2207.14484 (adaptive edge); Ramasinghe et al. 2026, arXiv:2606.16768 (the
preconditioned eigenvalue by warm starts in every update).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch.optim import Adam, AdamW, Optimizer

from optland.curvature import SpectrumTracker, hessian
from optland.curvature.operators.transforms import in_metric
from optland.curvature.stability.ratio import thresholds_of
from optland.failpoints import reach
from optland.objective import Objective
from optland.pilot.host import Host
from optland.pilot.linear import innermost_of
from optland.pilot.probes.curvature import AUDIT_EVERY, TOL, CurvatureProbe
from optland.pilot.signal import Signal

__all__ = ["AdamEdgeProbe"]

PRODUCTS = 8
"""Of one run: warm ones take half of them."""


class AdamEdgeProbe(CurvatureProbe):
    """``edge/ratio_precond``, and ``curv/lambda_max_precond`` where all groups have one threshold.

    Args:
        seed: Seed of the Lanczos start vectors.
    """

    name = "adam_edge"
    yields = frozenset({"edge/ratio_precond", "curv/lambda_max_precond"})
    reads_rate = True

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._followed: list[str] = []  # names of what Adam had made steps with at the last look

    def _tracker(self) -> SpectrumTracker:
        return SpectrumTracker(
            ends="top", rtol=TOL, max_matvecs=PRODUCTS, audit_every=AUDIT_EVERY, audit_jumps="next", seed=self.seed,
            store="cpu",
        )  # fmt: skip

    def _on_the_set(self, host: Host) -> Objective | None:
        """The loss on the probe set as a function of what an Adam has made steps with."""
        whole, adam = super()._on_the_set(host), _adam_of(host)
        if whole is None or adam is None:
            return None
        moved = [i for i, p in enumerate(whole.params) if "exp_avg_sq" in adam.state.get(p, {})]
        names = [whole.names[i] for i in moved]
        if self._followed not in ([], names):  # another spectrum
            self.tracker = self._tracker()
        self._followed = names
        return whole.select(moved) if moved else None

    def state_dict(self) -> dict[str, Any]:
        """As of the curvature probe, and the parameters that were followed."""
        return {**super().state_dict(), "followed": list(self._followed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        super().load_state_dict(state)
        self._followed = list(state["followed"])

    def measure(self, host: Host) -> list[Signal]:
        """The ratio at the rate that was applied, with its residual and whether it converged.

        Args:
            host: Gives Adam's state, and the rate that was applied.

        Returns:
            Nothing before Adam has made a step, or where the rate is 0.
        """
        objective, adam = self._on_the_set(host), _adam_of(host)
        if objective is None or adam is None or not host.applied > 0:
            return []
        outer = next(o for o in host.inner if innermost_of(o) is adam)
        host.hold_rate(outer, host.applied, host.rate)
        try:
            scale, thresholds = thresholds_of(objective, adam)
        finally:
            host.release_rate(outer)
        with hessian(objective) as H:
            reach("probe.curvature")
            found = self.tracker.probe(in_metric(H, scale))
        self.spent, top = found.cost_ge, found.spectrum.top
        why = "" if top.converged else "unresolved"
        signals = [
            Signal("edge/ratio_precond", top.value, host.step, top.error, top.converged, why),
            Signal("curv/lambda_max_precond_converged", float(top.converged), host.step),
        ]
        edges = {t.sharpness for t in thresholds}
        if len(edges) == 1 and math.isfinite(edge := edges.pop()):
            top = replace(top, value=top.value * edge, error=top.error * edge)
            name = "curv/lambda_max_precond"
            signals.append(Signal(name, top.value, host.step, top.error, top.converged, why))
        return signals


def _adam_of(host: Host) -> Optimizer | None:
    """The first Adam among the optimizers, below any wrappers."""
    return next((o for o in map(innermost_of, host.inner) if isinstance(o, Adam | AdamW)), None)
