r"""``noise_batch``: the batch grows when the gradient noise scale says that it is too small.

.. math:: B_\mathrm{simple} = \mathrm{tr}(\Sigma) / \lvert G\rvert^2

Sigma is the covariance of per-sample gradients, G the true gradient. While B is far below B_simple a step is mostly
noise and a larger batch gives proportionally more progress per step. The batch doubles when the averaged noise scale
has been above ``margin`` times the batch, by more than its standard error, in ``patience`` successive probes; it never
shrinks.

Cost: none beyond the noise probe. What it buys: fewer steps for the same samples, and less noise at the end, like a
decay of the learning rate. On two data sets co-scaling ended nearer to the small batch's loss than a rate left as it
was (benchmarks/batch.py). When: larger batches are (nearly) free. When not: on one device, where it does not save
gradient evaluations.

Defaults: margin 2, patience 3, at most one doubling in ``interval`` updates, batch at most an eighth of the training
set (beyond that, small sets give too few steps). With the error subtracted, margin 2 stays well below the noise scale
and ends within 2 and 7 % of the small batch's loss; margin 1 follows a known scale within a factor of 2, and ends 6 and
24 % above that loss. The simple scale, since the curvature-weighted one could not be told from its error at a budget of
10 %: there the batch never grew (benchmarks/batch.py).

Reference: McCandlish et al. 2018, arXiv:1812.06162; Smith et al. 2018, arXiv:1711.00489.
"""

from __future__ import annotations

import math
from typing import Literal

from optland.pilot.decision import Decision, Proposal
from optland.pilot.history import Reader
from optland.pilot.policies.base import Policy, PolicyCard
from optland.pilot.policies.facts import HostFacts
from optland.pilot.scaling import adam_betas, batch_gain

__all__ = ["SCALES", "NoiseBatch"]

SCALES = {"simple": "noise/b_simple", "curvature": "noise/b_curvature"}
"""Signals by the name of the noise scale."""


class NoiseBatch(Policy):
    """Doubles the batch when the noise scale stays well above it.

    Args:
        margin: The noise scale, less its standard error, must exceed this multiple of the batch; 2.
        patience: Successive probes that must say so; 3.
        interval: Fewest updates between two doublings; 50.
        max_batch: Largest batch; None takes an eighth of the training set.
        scale_lr: Whether the learning rate follows the batch (:func:`optland.pilot.scaling.batch_gain`). None, the
            default, does so unless a policy sets the length of the updates, which then follow by themselves. False lets
            the batch grow in place of a decay.
        scale: Which noise scale: ``simple`` (B_simple = tr(Sigma) / |G|^2) or ``curvature`` (tr(H Sigma) / G'HG, which
            costs products with the Hessian).

    Attributes:
        votes: Probes in a row that say so.
        last_change: Update of the last doubling.
        follows: Whether the learning rate follows the batch in this run.

    Raises:
        ValueError: A value outside its range.
    """

    name = "noise_batch"
    card = PolicyCard(
        does="doubles the batch while steps are noise-limited",
        reads="gradient noise scale",
        turns="batch size; unless `auto_lr` is there also lr factor and Adam's betas",
        when="fewer steps for the same samples are worth something; a loader that can grow",
        measured=("batch",),
        reference="McCandlish 2018, 1812.06162",
    )
    kept = ("votes", "last_change")

    def __init__(
        self,
        *,
        margin: float = 2.0,
        patience: int = 3,
        interval: int = 50,
        max_batch: int | None = None,
        scale_lr: bool | None = None,
        scale: Literal["simple", "curvature"] = "simple",
    ) -> None:
        if not margin >= 1:
            raise ValueError(
                f"margin: {margin} is below 1, which would grow the batch past the noise scale; use 2"
            )
        if patience < 1 or interval < 1:
            raise ValueError(f"patience {patience} and interval {interval} must be at least 1")
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch: {max_batch} must be at least 1")
        if scale not in SCALES:
            raise ValueError(f"scale: {scale!r} is not known; choose from {sorted(SCALES)}")
        self.margin, self.patience, self.interval = margin, patience, interval
        self.max_batch, self.scale_lr = max_batch, scale_lr
        self.signal = SCALES[scale]
        self.reads = frozenset({self.signal})
        self.turns = frozenset({"batch_size"})
        self.follows = scale_lr is not False
        self.adam = False
        self.samples: int | None = None
        self.votes = 0
        self.last_change = 0

    def begin(self, host: HostFacts) -> list[Proposal]:
        """Take in the size of the data, and who else follows the batch.

        Args:
            host: Its ``samples``, ``adam`` and ``lengths_set``.
        """
        self.samples, self.adam = host.samples, host.adam
        self.follows = not host.lengths_set if self.scale_lr is None else self.scale_lr
        rate = {"lr_factor"} | ({"beta1", "beta2"} if self.adam else set()) if self.follows else set()
        self.turns = frozenset({"batch_size"} | rate)
        return []

    def decide(self, history: Reader) -> list[Proposal]:
        """After a probe of the noise: a doubling, where it is due.

        Args:
            history: The signal of the scale; settings ``batch_size``, ``lr_factor``, and of Adam ``beta1`` and
                ``beta2``.

        Returns:
            A doubling, with the rate that follows and Adam's betas; nothing where it would pass the limit.
        """
        found, size = history.new(self.signal), history.setting("batch_size")
        if found is None or size is None or not found.valid:
            return []
        least = found.value - (found.error if math.isfinite(found.error) else 0.0)
        if least <= self.margin * size:
            self.votes = 0
            return []
        self.votes += 1
        limit = self.max_batch or (max(self.samples // 8, 1) if self.samples else 2 * size)
        new = 2 * size
        if self.votes < self.patience or history.step - self.last_change < self.interval or new > limit:
            return []
        reason = (
            f"the noise scale {found.value:.0f} was above {self.margin:g} x batch {size:.0f} by more than its error "
            f"in {self.patience} successive probes; steps are noise-limited"
        )
        asked = [Proposal("batch_size", new, reason, {self.signal: found.value})]
        return asked + (self._co_scaled(history, new / size, size, found.value) if self.follows else [])

    def _co_scaled(self, history: Reader, k: float, size: float, scale: float) -> list[Proposal]:
        """The learning rate follows the batch, and Adam's averages keep covering the same samples."""
        factor = history.setting("lr_factor") or 1.0
        new = factor * batch_gain(k, size, scale, adam=self.adam)
        if not self.adam:
            return [
                Proposal(
                    "lr_factor", new, f"the batch grew {k:g}-fold: the rate follows by the gain of its noise"
                )
            ]
        why = f"the batch grew {k:g}-fold: the rate follows by the square root, the averages cover the same samples"
        betas = (history.setting("beta1") or 0.0, history.setting("beta2") or 0.0)
        first, second = adam_betas(betas, k)
        return [
            Proposal("lr_factor", new, why),
            Proposal("beta1", first, why),
            Proposal("beta2", second, why),
        ]

    def told(self, decision: Decision) -> None:
        """A batch that grew starts the count again."""
        if decision.actuator == "batch_size" and decision.policy == self.name:
            self.votes, self.last_change = 0, decision.step
