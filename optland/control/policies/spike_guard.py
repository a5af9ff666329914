r"""``spike_guard``: the step of a corrupt batch is taken back; several cut the rate; lasting ones roll back.

.. math:: z = \frac{\log L - \mathrm{med}(\log L_{-16..-1})}{1.4826\,\mathrm{med}\,|\Delta \log L| / \sqrt 2}

and the same for the gradient norm. A step is *skipped* (weights, buffers and optimizer state as before it) when the
loss or the gradient is not finite, when z > 4 for the loss and it also gives up a fifth of what has been learnt since
the first step, or when z > 4 for the gradient norm and it is also above three times its largest in the window.

A skip has dealt with its batch; a cut for it would only cost progress. But where the loss is high because the last
step damaged the weights, the next batches are spikes too: three in a row halve the rate for the next 100 steps, and
``persist`` in a row roll the run back, unless the critical sharpness falls, which is a catapult.

Cost: no gradient; one copy of weights, buffers and optimizer state a step. When: data that may hold damaged samples,
low precision, long runs. When not: memory is short, or losses that jump by their nature (batches of 1 to 4).

Defaults: window 64 and at least 16 losses before the first judgement; the spread is at least 0.15 in log L, so that a
smooth run does not skip on ordinary variation; z = 4, a cut after 3 in a row, rollback after 50. Near a loss of zero
the logarithm varies by factors; the share of what has been learnt keeps those from being spikes.

Reference: z-scores as in Kumar et al. 2025, arXiv:2504.02507; skip and restart as in Chowdhery et al. 2022,
arXiv:2204.02311.
"""

from __future__ import annotations

import math
import statistics

from optland.control.statistics import trend_z
from optland.control.view import Proposal, StepPolicy, StepView

__all__ = ["SpikeGuard"]

LEAST_SPREAD, LEAST_NORM_SPREAD = 0.15, 0.25
"""Least standard deviations of log L and of the logarithm of the gradient norm that a spike is measured in."""


class SpikeGuard(StepPolicy):
    """Skip, cut, roll back.

    Args:
        z: Robust z-score that makes a spike; 4.
        window: Healthy steps that it is measured against; 64.
        lost: Share of what has been learnt, first loss over recent median, that a spike of the loss gives up; 0.2.
        many: Spikes in a row that cut the rate; 3.
        within: Steps for which a cut lasts; 100.
        cut: Factor on the rate after ``many`` spikes in a row; 0.5.
        persist: Spikes in a row that call for a rollback; 50.

    Example:
        >>> guard = SpikeGuard()
        >>> calm = [guard.propose(StepView(k, 1.0, grad_norm=1.0)) for k in range(1, 31)]
        >>> guard.propose(StepView(31, 9.0, grad_norm=1.0))[0].actuator
        'skip'
    """

    name = "spike_guard"
    needs = frozenset({"skip", "rollback", "lr_factor"})
    reads = frozenset({"grad_norm"})
    _kept = ("first", "losses", "norms", "run", "until", "lambdas")

    def __init__(
        self,
        *,
        z: float = 4.0,
        window: int = 64,
        lost: float = 0.2,
        many: int = 3,
        within: int = 100,
        cut: float = 0.5,
        persist: int = 50,
    ) -> None:
        if not z > 0 or not 0 < cut < 1 or not 0 <= lost < 1:
            raise ValueError(
                f"z {z} must be above 0, cut {cut} in (0, 1), lost {lost} in [0, 1); use 4, 0.5 and 0.2"
            )
        if window < 16 or many < 1 or within < 1 or persist < 2:
            raise ValueError(
                f"window {window} must be 16 or more, many {many} and within {within} 1 or more, "
                f"persist {persist} 2 or more; use 64, 3, 100 and 50"
            )
        self.z, self.window, self.lost, self.many, self.within = z, window, lost, many, within
        self.cut, self.persist = cut, persist
        self.first: float | None = None
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.run = 0
        self.until = 0
        self.lambdas: list[float] = []

    def propose(self, view: StepView) -> list[Proposal]:
        """After a step: nothing, or what is to be done about it."""
        if view.lambda_c is not None:
            self.lambdas = [*self.lambdas, view.lambda_c][-2:]
        trouble = self._trouble(view)
        if trouble is None:
            self.run = 0
            self.first = view.loss if self.first is None else self.first
            self.losses = [*self.losses, _log(view.loss)][-self.window :]
            if view.grad_norm > 0:
                self.norms = [*self.norms, _log(view.grad_norm)][-self.window :]
            return self._recovered(view)
        self.run += 1
        signals = {"train/loss": view.loss, "update/grad_norm": view.grad_norm}
        if self.run >= self.persist and not self._catapult():
            reason = f"{trouble}, {self.run} steps in a row: not the batches but the weights are damaged"
            self.run, self.losses, self.norms = 0, [], []
            return [Proposal("rollback", 0.0, 1.0, reason, signals)]
        asked = [Proposal("skip", 0.0, 1.0, f"{trouble}: the step is taken back", signals)]
        if self.run >= self.many and view.step > self.until:
            self.until = view.step + self.within
            reason = f"{self.run} spikes in a row: the rate is cut for {self.within} steps"
            asked.append(Proposal("lr_factor", view.factor, view.factor * self.cut, reason, signals))
        return asked

    def _recovered(self, view: StepView) -> list[Proposal]:
        if not self.until or view.step <= self.until:
            return []
        self.until = 0
        reason = f"{self.within} steps since the cut: the rate is as before"
        return [Proposal("lr_factor", view.factor, view.factor / self.cut, reason)]

    def _trouble(self, view: StepView) -> str | None:
        if not math.isfinite(view.loss):
            return f"the loss is {view.loss}"
        if math.isinf(view.grad_norm):
            return "the gradient is not finite"
        if len(self.losses) < 16:
            return None
        z = trend_z(_log(view.loss), self.losses, LEAST_SPREAD)
        if z > self.z and self._gives_up_progress(view.loss):
            return (
                f"the loss {view.loss:.3g} stands {z:.1f} robust deviations above the last {len(self.losses)}"
            )
        if len(self.norms) < 16 or not view.grad_norm > 0:
            return None
        z = trend_z(_log(view.grad_norm), self.norms, LEAST_NORM_SPREAD)
        if z > self.z and _log(view.grad_norm) > max(self.norms) + math.log(3.0):
            return f"the gradient norm {view.grad_norm:.3g} stands {z:.1f} robust deviations above the last"
        return None

    def _gives_up_progress(self, loss: float) -> bool:
        """Whether the loss stands above the recent median by a share of the way from the first loss to it."""
        assert self.first is not None
        recent = math.exp(statistics.median(self.losses[-16:]))
        return loss - recent > self.lost * max(self.first - recent, 0.0)

    def _catapult(self) -> bool:
        """A loss that is high while sharpness falls is on its way to flatter ground."""
        return len(self.lambdas) == 2 and self.lambdas[1] < self.lambdas[0] and self.run < 2 * self.persist


def _log(x: float) -> float:
    return math.log(max(x, 1e-12))
