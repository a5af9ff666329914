r"""``spike_guard``: skips the update of a corrupt batch, cuts the rate after several, rewinds after lasting ones.

.. math:: z = \frac{\log x - \mathrm{med}(\log x_{-16..-1})}{1.4826\,\mathrm{med}\,|\Delta \log x| / \sqrt 2}

for x the gradient's norm and the loss. An update is *skipped*, its gradient never reaches the optimizer, when z > 4 for
the norm and it is also above three times its largest in the window. (A gradient that is not finite is dropped by the
pilot itself, in every mode that acts.) The loss of a batch is known after its update, so a loss that stands out, z > 4
and a fifth of what has been learnt given up, skips nothing.

A skip has dealt with its batch; a cut for it would only cost progress. But where the weights are damaged, the next
batches stand out too: three in a row, by norm or by loss, halve the rate for the next 100 updates, and ``persist`` in a
row go back to a snapshot, unless the critical sharpness falls, which is a catapult.

Cost: no gradient and no copy. When: data that may hold damaged samples, low precision, long runs. When not: losses that
jump by their nature (batches of 1 to 4), or gradients clipped before the step, whose norm hides what they were.

Defaults: window 64 and at least 16 values before the first judgement; the spread is at least 0.15 in log L and 0.25 in
the logarithm of the norm, so that a smooth run does not skip on ordinary variation; z = 4, a cut after 3 in a row, back
after 50. Near a loss of zero the logarithm varies by factors; the share of what has been learnt keeps those from being
spikes.

Reference: z-scores as in Kumar et al. 2025, arXiv:2504.02507; skip and restart as in Chowdhery et al. 2022,
arXiv:2204.02311.
"""

from __future__ import annotations

import math
import statistics

from optland.pilot.decision import Decision, Proposal
from optland.pilot.history import Reader
from optland.pilot.policies.base import Policy, PolicyCard
from optland.statistics import trend_z

__all__ = ["SpikeGuard"]

LEAST_SPREAD, LEAST_NORM_SPREAD = 0.15, 0.25
"""Least standard deviations of log L and of the logarithm of the gradient norm that a spike is measured in."""

FEWEST = 16
"""Values before anything is judged."""


class SpikeGuard(Policy):
    """Skips an update, cuts the rate, or rewinds, by spikes of loss and gradient norm.

    Args:
        z: Robust z-score that makes a spike; 4.
        window: Healthy updates that it is measured against; 64.
        lost: Share of what has been learnt, first loss over recent median, that a spike of the loss gives up; 0.2.
        num_spikes: Spikes in a row that cut the rate; 3.
        within: Updates for which a cut lasts; 100.
        cut: Factor on the rate after ``num_spikes`` spikes in a row; 0.5.
        persist: Spikes in a row that call for a rewind; 50.

    Attributes:
        first: The first loss; None before it.
        losses: log L of healthy updates, the last ``window``.
        norms: Logarithm of the gradient norm of healthy updates, the last ``window``.
        lambdas: The last two critical sharpnesses, where something measures them.

    Raises:
        ValueError: A value outside its range.
    """

    name = "spike_guard"
    card = PolicyCard(
        does="leaves out the update of a corrupt batch; after some in a row cuts the rate, after many goes back",
        reads="gradient norm and loss",
        turns="skip, rewind, lr factor as a cap",
        cost="no copy",
        when="damaged samples, low precision, long runs; not with batches of 1 to 4, or clipping before the step",
        measured=("spikes",),
        reference="Kumar 2025, 2504.02507",
    )
    reads = frozenset({"update/grad_norm", "train/loss"})
    may_read = frozenset({"edge/lambda_c"})
    turns = frozenset({"skip", "rewind"})
    caps = frozenset({"lr_factor"})
    kept = ("first", "losses", "norms", "run", "until", "lambdas")

    def __init__(
        self,
        *,
        z: float = 4.0,
        window: int = 64,
        lost: float = 0.2,
        num_spikes: int = 3,
        within: int = 100,
        cut: float = 0.5,
        persist: int = 50,
    ) -> None:
        if not z > 0 or not 0 < cut < 1 or not 0 <= lost < 1:
            raise ValueError(
                f"z {z} must be above 0, cut {cut} in (0, 1), lost {lost} in [0, 1); use 4, 0.5 and 0.2"
            )
        if window < FEWEST or num_spikes < 1 or within < 1 or persist < 2:
            raise ValueError(
                f"window {window} must be {FEWEST} or more, num_spikes {num_spikes} and within {within} 1 or more, "
                f"persist {persist} 2 or more; use 64, 3, 100 and 50"
            )
        self.z, self.window, self.lost = z, window, lost
        self.num_spikes, self.within, self.cut, self.persist = num_spikes, within, cut, persist
        self.first: float | None = None
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.run = 0
        """Spikes in a row."""
        self.until = 0
        """Update up to which the rate is cut; 0 while it is not."""
        self.lambdas: list[float] = []

    def decide(self, history: Reader) -> list[Proposal]:
        """Before an update, with its gradient's norm and the loss of the one before: nothing, or what is to be done.

        Args:
            history: Signals ``update/grad_norm`` of this update and ``train/loss`` of the one before; ``edge/lambda_c``
                where something measures it; the setting ``lr_factor``.

        Returns:
            A rewind; or a skip, a cap, or both; and the end of a cap, an infinite one.
        """
        sharpness = history.new("edge/lambda_c")
        if sharpness is not None and sharpness.valid:
            self.lambdas = [*self.lambdas, sharpness.value][-2:]
        norm, loss = history.new("update/grad_norm"), history.new("train/loss")
        norm = norm if norm is not None and norm.valid else None  # clipped by the user, it hides what it was
        by_norm = None if norm is None else self._norm_trouble(norm.value)
        by_loss = None if loss is None else self._loss_trouble(loss.value)
        if loss is not None and by_loss is None and math.isfinite(loss.value):
            self.first = loss.value if self.first is None else self.first
            self.losses = [*self.losses, _log(loss.value)][-self.window :]
        trouble = by_norm or by_loss
        if trouble is None:
            self.run = 0
            if norm is not None and norm.value > 0 and math.isfinite(norm.value):
                self.norms = [*self.norms, _log(norm.value)][-self.window :]
            return self._recovered(history.step)
        self.run += 1
        signals = {s.name: s.value for s in (loss, norm) if s is not None and math.isfinite(s.value)}
        if self.run >= self.persist and not self._catapult():
            return [
                Proposal(
                    "rewind", 1.0, f"{trouble}, {self.run} updates in a row: the weights are damaged", signals
                )
            ]
        asked = [Proposal("skip", 1.0, f"{by_norm}: the update is left out", signals)] if by_norm else []
        if self.run >= self.num_spikes and history.step > self.until:
            self.until = history.step + self.within
            reason = f"{self.run} spikes in a row: the rate is cut for {self.within} updates"
            asked.append(
                Proposal(
                    "lr_factor", self.cut * (history.setting("lr_factor") or 1.0), reason, signals, cap=True
                )
            )
        return asked

    def _recovered(self, step: int) -> list[Proposal]:
        if not self.until or step <= self.until:
            return []
        self.until = 0
        return [Proposal("lr_factor", math.inf, f"{self.within} updates since the cut: it ends", cap=True)]

    def _norm_trouble(self, norm: float) -> str | None:
        if len(self.norms) < FEWEST or not norm > 0:
            return None
        z = trend_z(_log(norm), self.norms, LEAST_NORM_SPREAD)
        if not (z > self.z and _log(norm) > max(self.norms) + math.log(3.0)):
            return None
        return (
            f"the gradient norm {norm:.3g} stands {z:.1f} robust deviations above the last {len(self.norms)}"
        )

    def _loss_trouble(self, loss: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if len(self.losses) < FEWEST:
            return None
        z = trend_z(_log(loss), self.losses, LEAST_SPREAD)
        if not (z > self.z and self._gives_up_progress(loss)):
            return None
        return f"the loss {loss:.3g} stands {z:.1f} robust deviations above the last {len(self.losses)}"

    def _gives_up_progress(self, loss: float) -> bool:
        """Whether the loss stands above the recent median by a share of the way from the first loss to it."""
        assert self.first is not None
        recent = math.exp(statistics.median(self.losses[-16:]))
        return loss - recent > self.lost * max(self.first - recent, 0.0)

    def _catapult(self) -> bool:
        """A loss that is high while sharpness falls is on its way to flatter ground."""
        return len(self.lambdas) == 2 and self.lambdas[1] < self.lambdas[0] and self.run < 2 * self.persist

    def told(self, decision: Decision) -> None:
        """After a rewind, whoever asked for it, the series begin again."""
        if decision.actuator == "rewind" and decision.taken:
            self.run, self.losses, self.norms = 0, [], []


def _log(x: float) -> float:
    return math.log(max(x, 1e-12))
