"""The learning-rate side of the pilot: hold the rate for a step, measure the step, make it right, rewind it.

Around each optimizer step::

    before():  copy the weights if the step is to be measured; set the learning rate of this step
    [the optimizer's own step, both passes of it under SAM]
    after():   put the user's rate back; measure w_after - w_before; under auto_lr rescale the step to length
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optland.control import AutoLR, Decision, RewindGuard, SafeLR, clamp_factor
from optland.train.actuators import (
    GradientCoherence,
    HeldLearningRates,
    SnapshotRing,
    StepRecord,
    relative_speed,
)
from optland.train.collapse import SilentLayers

__all__ = ["BINDING", "Steering"]

LATE = 20
"""Steps after which trouble shows in an average over ten losses: a rate may have done damage that long ago."""

BINDING = {"user": 0.0, "edge": 1.0, "ratio": 2.0, "guard": 3.0}
"""Codes of ``lr/binding``: what the learning rate of a step was set by."""


class Steering:
    """Carries out (``act=True``) or only works out (``act=False``) what a learning-rate policy wants.

    Args:
        optimizer: The optimizer whose steps are steered.
        model: Its module; snapshots hold its whole ``state_dict``.
        policy: ``AutoLR``, ``SafeLR``, or None to only measure.
        act: Whether learning rates are set and rewinds made.
    """

    def __init__(
        self, optimizer: Optimizer, model: nn.Module, policy: AutoLR | SafeLR | None, *, act: bool
    ) -> None:
        self.policy = policy
        self.act = act
        self.rates = HeldLearningRates(optimizer)
        params = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
        self.record = StepRecord(params)
        self.gradients = GradientCoherence(params, optimizer)
        self.layers = SilentLayers(params)
        self.snapshots = SnapshotRing(model, optimizer)
        self.guard = _guard(policy)
        self.applied = math.nan
        """Learning rate of the last step."""
        self.wanted = math.nan
        """What the policy wanted it to be; the counterfactual in shadow mode."""
        self.binding = "user"
        self.relative = math.nan
        """|w_after - w_before| / |w_before| of the last measured step."""
        self.update: list[Tensor] | None = None
        """The realised update of the last step, where it was measured."""
        self._height = 1e-3  # rate of the next trial step under auto_lr, which then gets the right length
        self._alarmed = False
        self._rates_of_late: deque[float] = deque(maxlen=LATE)
        self.tail = 1.0
        """Shape of the end of a run of unknown length, 1 until it has begun."""
        self.factor = 1.0
        """Factor on the rate that a step policy or a guard has set; 1 where nobody has."""

    def before(self, *, measure: bool) -> None:
        """Pre-hook: ``measure`` asks for a copy of the weights; auto_lr needs one at every step."""
        self.rates.release()  # a closure that raised has left the rates of its step in place
        if self.act and self.snapshots.first is None:
            self.snapshots.take(0, self.guard.mark())
        if measure or isinstance(self.policy, AutoLR):
            self.record.start()
        if self.act and isinstance(self.policy, AutoLR):
            self.rates.apply(self._height)
        elif self.act and isinstance(self.policy, SafeLR):
            self.rates.apply(self.policy.cap(self.rates.user * self.factor, self.rates.shape())[0])
        elif self.act and self.factor != 1.0:
            self.rates.apply(self.rates.user * self.factor)

    def after(self, step: int, progress: float | None) -> None:
        """Post-hook: the user's rate is put back, and the step measured and, under auto_lr, rescaled."""
        self.rates.release()
        user = self.rates.user
        user = user * self.factor if self.act else user
        self.applied, self.wanted, self.binding = user, math.nan, "user" if self.factor == 1.0 else "guard"
        if isinstance(self.policy, SafeLR):
            self.wanted, self.binding = self.policy.cap(user, self.rates.shape())
            self.applied = self.wanted if self.act else user
            self._rates_of_late.append(self.applied)
        if self.record.before is None:
            return
        update = self.record.update()
        trial = self._height if self.act and isinstance(self.policy, AutoLR) else self.applied
        speed, self.relative = relative_speed(update, self.record.before)
        if isinstance(self.policy, AutoLR):
            if self.policy.adaptive:
                self.policy.observe_coherence(self.gradients.measure())
            self.layers.observe()
            self._steer(self.policy, update, speed, trial, step, progress)
        else:
            self.update = update

    def _steer(
        self,
        policy: AutoLR,
        update: list[Tensor],
        speed: float,
        trial: float,
        step: int,
        progress: float | None,
    ) -> None:
        """Work out auto_lr's rate and, when acting, give the step that length."""
        speed = speed / trial if trial > 0 else math.nan
        given = self.tail if self.is_open_ended(progress) else self.rates.shape()
        shape = policy.shape(progress, given, step) * (self.factor if self.act else 1.0)
        self.wanted, self.binding = policy.step_size(speed, shape)
        self.update = update
        if not self.act:
            return
        if self.wanted > 0:
            # The next trial runs at the unscheduled height: near the end of the schedule the step itself is so
            # small that w_after - w_before would lose its digits.
            self._height = policy.pace / speed
        factor = self.wanted / trial
        self.record.rescale(update, factor)
        self.applied, self.relative = self.wanted, self.relative * factor
        self.update = self.record.update()

    def is_open_ended(self, progress: float | None) -> bool:
        """Whether nothing but a call says when the rate of ``auto_lr`` goes to zero."""
        return isinstance(self.policy, AutoLR) and progress is None and self.rates.shape() is None

    def forget(self) -> None:
        """Let go of the last step's record."""
        self.record.drop()
        self.update = None

    def rewound(self, loss: float, step: int, interval: int, dead: str | None = None) -> Decision | None:
        """Watch the loss; on trouble rewind and halve the policy's pace or cap (or say that one would have).

        Args:
            loss: Loss of the step.
            step: Number of the step.
            interval: Steps between two snapshots.
            dead: What the collapse guard says of the step.
        """
        if self.policy is None and not self.act:
            return None
        trouble = self.guard.observe(loss) or self.layers.trouble or dead
        if trouble is None:
            if self.act and step % interval == 0:
                self.snapshots.take(step, self.guard.mark())
            return None
        self.gradients.forget()
        if self.act:
            self.snapshots.drop_since(step - self.layers.steps)
            snapshot = self.snapshots.rewind()
            self.guard.rewind(snapshot["mark"])
            if self.policy is None:
                old, self.factor = self.factor, clamp_factor(self.factor, self.factor / 2)
                new = self.factor
            else:
                old, new = self.policy.on_rewind(max(self._rates_of_late, default=0.0))
            reason = f"{trouble}; weights and optimizer go back to step {snapshot['step']}, the data go on"
        else:
            self.guard = _guard(self.policy)
            assert self.policy is not None
            old = self.policy.pace
            new = old / 2
            reason = f"{trouble}; control mode would have gone back and halved it"
        self.layers.forget()
        return Decision(step, "rewind_guard", "rewind", old, new, reason, self.act, {"train/loss": loss})

    def observe_edge(self, eta_c: float, step: int, *, resolved: bool = True) -> Decision | None:
        """Hand a critical learning rate, or a bound from below, to the policy; returns what it did about it."""
        policy = self.policy
        if policy is None:
            return None
        before = policy.limit if isinstance(policy, SafeLR) else math.nan
        policy.observe_critical_step(eta_c, self.applied, resolved=resolved)
        average = policy.critical.value
        signals = {"edge/eta_c": eta_c}
        if isinstance(policy, SafeLR):
            if policy.cap(self.rates.user, self.rates.shape())[1] == "user":
                return None
            reason = f"the critical rate averages {average:.3g}; the user's {self.rates.user:.3g} is capped"
            return Decision(step, policy.name, "lr", before, policy.limit, reason, self.act, signals)
        if average is None:
            return None
        ratio = self.applied / average
        climbed = ratio > policy.alarm and not self._alarmed
        # Hysteresis: one alarm for each time the ratio climbs over the threshold.
        self._alarmed = ratio > policy.alarm or (self._alarmed and ratio > 0.8 * policy.alarm)
        if not climbed:
            return None
        reason = (
            f"the rate is {ratio:.2f} of the critical one; beyond 1 a step raises the loss of its own batch"
        )
        return Decision(step, policy.name, "alarm", ratio, policy.alarm, reason, False, signals)

    def metrics(self) -> dict[str, float]:
        """Rates and update size of the last step under the names of the metric vocabulary."""
        row = {"lr/user": self.rates.user, "lr/applied": self.applied, "lr/binding": BINDING[self.binding]}
        if math.isnan(self.applied):
            row["lr/applied"] = self.rates.user
        if not self.act and math.isfinite(self.wanted):
            row["ctl/lr_would_be"] = self.wanted
        if math.isfinite(self.relative):
            row["update/rel"] = self.relative
        if isinstance(self.policy, AutoLR) and self.policy.coherence.value is not None:
            row["noise/coherence"] = self.policy.coherence.value
            row["ctl/pace"] = self.policy.pace
        if math.isfinite(self.guard.average):
            row["train/loss_ema"] = self.guard.average
        if isinstance(self.policy, SafeLR):
            row["lr/ceiling"] = self.policy.limit
        elif self.policy is not None and self.policy.critical.value is not None:
            row["lr/ceiling"] = (self.policy.ceiling or 1.0) * self.policy.critical.value
        return row

    def state_dict(self) -> dict[str, Any]:
        """Everything but the record of a step in progress."""
        return {
            "height": self._height,
            "alarmed": self._alarmed,
            "rates": list(self._rates_of_late),
            "guard": self.guard.state_dict(),
            "snapshots": self.snapshots.state_dict(),
            "gradients": self.gradients.last,
            "layers": self.layers.state_dict(),
            "policy": None if self.policy is None else self.policy.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._height, self._alarmed = state["height"], state["alarmed"]
        self._rates_of_late.clear()
        self._rates_of_late.extend(state["rates"])
        self.guard.load_state_dict(state["guard"])
        self.snapshots.load_state_dict(state["snapshots"])
        self.gradients.last = state["gradients"]
        self.layers.load_state_dict(state["layers"])
        if self.policy is not None and state["policy"] is not None:
            self.policy.load_state_dict(state["policy"])


def _guard(policy: AutoLR | SafeLR | None) -> RewindGuard:
    """A user's own rate is touched for a wreck alone: three quarters of all progress lost, or ten times the first loss.

    Batches of eight samples lose a quarter of the progress by chance, and halving a rate that was chosen is no repair.
    """
    return RewindGuard() if policy is not None else RewindGuard(lost=0.75, slack=0.5, ceiling=10.0)


def refuse_several_ranks() -> None:
    """Several processes would measure on different batches and decide differently."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise RuntimeError(
            "the pilot measures and decides in one process; several ranks would decide differently. "
            "Use mode='off' there"
        )
