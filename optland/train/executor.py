"""Carries out what the step policies ask for: factor, batch, rho, SAM duty, clip, skip, rollback, escape, v_0, stop.

=============  =======================================================================================
actuator       what is done
=============  =======================================================================================
``lr_factor``  a factor on the rate, in the pre-hook and taken back in the post-hook; bounded, clamped
``batch_size`` the loader's batch, from the next batch on
``rho``        the radius in every parameter group
``sam_duty``   0: the second pass is left out and costs nothing; 1: the optimizer's own gate decides
``clip``       the gradient's norm, before the base optimizer sees it; 0 ends it
``skip``       the step just made is taken back, optimizer state and buffers with it
``rollback``   the last good snapshot; the data go on
``escape``     along the direction of most negative curvature, with a length tried by forward passes
``adam_v0``    the first step again with v_0 = g_0^2
``stop``       no further batch
=============  =======================================================================================

In shadow mode the same decisions are made against a factor that is only counted, and nothing is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, NAdam, Optimizer, RAdam

from optland import vectors
from optland.control import CollapseGuard, CoolDown, Decision, Proposal, StepPolicy, StepView, clamp_factor
from optland.control.view import HOST_ACTUATORS
from optland.curvature.operators.preconditioner import innermost
from optland.optim.keys import key
from optland.optim.two_pass import TwoPass
from optland.train.undo import Undo

__all__ = ["Executor", "Outcome", "actuators_of", "is_adam"]


ADAMS = (Adam, AdamW)
"""Optimizers that keep Adam's state; AdamW became a subclass of Adam in PyTorch 2.7."""


@dataclass(frozen=True)
class Outcome:
    """What came of an action that has more to say than whether it was done."""

    taken: bool
    why: str
    signals: dict[str, float] = field(default_factory=dict)


Action = Callable[[float], bool | Outcome]
"""Something the pilot does for the executor: takes the new value, says whether it was done."""


def is_adam(optimizer: Optimizer) -> bool:
    """Whether the step, below any wrappers, is divided by the root of a second moment as Adam's is."""
    return isinstance(innermost(optimizer), (*ADAMS, NAdam, RAdam))


def actuators_of(optimizer: Optimizer) -> frozenset[str]:
    """What this optimizer offers; the loop's own (batch size, stop) are taken for granted here."""
    has = set(HOST_ACTUATORS)
    if not any(key("rho") in group for group in optimizer.param_groups):
        has -= {"rho"}
    if not isinstance(optimizer, TwoPass):
        has -= {"sam_duty"}
    if not isinstance(optimizer, ADAMS):
        has -= {"adam_v0"}
    return frozenset(has)


class Executor:
    """The step policies of one run, with the guards that hold their hands.

    Args:
        optimizer: The optimizer that is steered.
        model: Its module.
        policies: The policies, asked in order.
        act: Whether decisions are carried out.
    """

    def __init__(
        self, optimizer: Optimizer, model: nn.Module, policies: Sequence[StepPolicy], *, act: bool
    ) -> None:
        self.optimizer, self.model, self.policies, self.act = optimizer, model, list(policies), act
        self.params = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
        has = actuators_of(optimizer)
        if act:
            for policy in self.policies:
                policy.check_host(has)
        needs = frozenset().union(*(p.needs for p in self.policies))
        reads = frozenset().union(*(p.reads for p in self.policies))
        self.undo = Undo(optimizer, model) if act and "skip" in needs else None
        self.reads_norm = act or "grad_norm" in reads
        self.reads_sasa = "sasa" in reads
        self.collapse = CollapseGuard()
        self.cool = CoolDown()
        self.factor = 1.0
        self.clip: float | None = None
        self.duty = 1.0
        self.stopped = False
        self.grad_norm = math.nan
        self.dots = (math.nan, math.nan)
        self.signals: dict[str, float] = {}
        """Values of the last probes, for the policies of the next step."""
        self.actions: dict[str, Action] = {
            "lr_factor": self._set_factor,
            "rho": self._set_rho,
            "sam_duty": self._set_duty,
            "clip": self._set_clip,
            "skip": self._skip,
            "adam_v0": lambda new: True,
            "alarm": lambda new: False,
            "stop": self._stop,
        }
        self._own_gate = optimizer.gate if isinstance(optimizer, TwoPass) else None
        if act and any(policy.holds_sam for policy in self.policies):
            self._set_duty(0.0)

    # ------------------------------------------------------------------ around the step

    def before(self, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Pre-hook: remember what a skip would need; clip, within the closure where there is one."""
        if self.undo is not None:
            self.undo.take()
        if not self.act or self.clip is None:
            return None
        at = next((i for i, x in enumerate(args) if callable(x) and not isinstance(x, Optimizer)), None)
        closure = kwargs.get("closure") if at is None else args[at]
        if closure is None:
            self._clip_now()
            return None

        def clipped(*given: Any) -> Any:
            loss = closure(*given)
            self._clip_now()
            return loss

        if at is None:
            return args, kwargs | {"closure": clipped}
        return (*args[:at], clipped, *args[at + 1 :]), kwargs

    def _clip_now(self) -> None:
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.params, self.clip)

    def after(self, before: list[Tensor] | None, rate: float) -> None:
        """Post-hook: what has to be measured while weights and gradients of the step are there."""
        self.grad_norm, self.dots = math.nan, (math.nan, math.nan)
        if self.reads_norm:
            grads = vectors.dense([p.grad.detach() for p in self.params if p.grad is not None])
            self.grad_norm = float(vectors.norm(grads)) if grads else math.nan
            if grads and not math.isfinite(self.grad_norm):
                self.grad_norm = math.inf
        if self.reads_sasa and before is not None and rate > 0:
            moved = vectors.subtract(before, [p.detach() for p in self.params])
            both = torch.stack([vectors.dot(before, moved), vectors.dot(moved, moved)]).tolist()
            self.dots = both[0] / rate, both[1] / rate**2

    def wants_v0(self, step: int) -> bool:
        """Whether this is the first step of a policy that asks for v_0 = g_0^2."""
        return self.act and step == 1 and any("adam_v0" in p.needs for p in self.policies)

    @torch.no_grad()
    def repeat_with_v0(self, before: list[Tensor]) -> None:
        """Make Adam's first step again with v_0 = g_0^2, exactly: its own step from its own state.

        After the plain first step v_1 = (1 - beta_2) g_0^2, whatever the weight decay has added to g_0.
        """
        vectors.copy_(self.params, before)
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                entry = self.optimizer.state.get(p)
                if not entry:
                    continue
                entry["exp_avg_sq"].div_(1 - group["betas"][1])
                entry["exp_avg"].zero_()
                if "max_exp_avg_sq" in entry:
                    entry["max_exp_avg_sq"].zero_()
                entry["step"] = (
                    entry["step"] - 1 if isinstance(entry["step"], Tensor) else entry["step"] - 1.0
                )
        self.optimizer.step()

    # ------------------------------------------------------------------ deciding and doing

    def decide(self, view: StepView) -> list[Decision]:
        """Ask every policy, hold the guards in front, carry out, and say what was done."""
        decisions: list[Decision] = []
        for policy in self.policies:
            asked = policy.propose(view)
            decisions.extend(self._carry_out(policy, proposal, view.step) for proposal in asked)
        return decisions

    def _carry_out(self, policy: StepPolicy, proposal: Proposal, step: int) -> Decision:
        new, reason, signals = proposal.new, proposal.reason, proposal.signals
        if proposal.actuator == "lr_factor":
            new = clamp_factor(proposal.old, new)
        grows = proposal.actuator in ("lr_factor", "batch_size", "rho")
        if grows and not self.cool.allows(step, proposal.old, new):
            reason, taken = f"{reason}; held back: a rewind was less than {self.cool.steps} steps ago", False
        elif self.act:
            action = self.actions.get(proposal.actuator)
            done = action is not None and action(new)
            taken = done.taken if isinstance(done, Outcome) else done
            if isinstance(done, Outcome):
                reason, signals = f"{reason}; {done.why}", signals | done.signals
        else:
            taken = False
            if proposal.actuator == "lr_factor":
                self.factor = new  # the counterfactual; never applied
        if self.act and not taken:
            policy.refused(proposal)
        return Decision(step, policy.name, proposal.actuator, proposal.old, new, reason, taken, signals)

    def rewound(self, step: int) -> None:
        """A rewind was made: nothing grows for a while."""
        self.cool.start(step)

    def _set_factor(self, new: float) -> bool:
        self.factor = new
        return True

    def _set_rho(self, new: float) -> bool:
        for group in self.optimizer.param_groups:
            if key("rho") in group:
                group[key("rho")] = new
        return True

    def _set_duty(self, new: float) -> bool:
        self.duty = new
        self.optimizer.gate = self._own_gate if new > 0 else _closed  # type: ignore[attr-defined]
        return True

    def _set_clip(self, new: float) -> bool:
        self.clip = new if new > 0 else None
        return True

    def _skip(self, new: float) -> bool:
        if self.undo is None:
            return False
        self.undo.back()
        return True

    def _stop(self, new: float) -> bool:
        self.stopped = True
        return True

    # ------------------------------------------------------------------ the record

    def metrics(self) -> dict[str, float]:
        """Numbers for the log."""
        row: dict[str, float] = {}
        if self.factor != 1.0:
            row["ctl/lr_factor" if self.act else "ctl/lr_factor_would_be"] = self.factor
        if math.isfinite(self.grad_norm):
            row["update/grad_norm"] = self.grad_norm
        for policy in self.policies:
            row |= policy.metrics()
        return row

    def state_dict(self) -> dict[str, Any]:
        """Everything for an exact resume; radii and moments travel in the optimizer's own state."""
        return {
            "factor": self.factor,
            "duty": self.duty,
            "clip": self.clip,
            "stopped": self.stopped,
            "cool": self.cool.until,
            "collapse": self.collapse.state_dict(),
            "signals": dict(self.signals),
            "policies": [p.state_dict() for p in self.policies],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, with the same policies."""
        self.factor, self.clip, self.stopped = state["factor"], state["clip"], state["stopped"]
        self.cool.until = state["cool"]
        self.collapse.load_state_dict(state["collapse"])
        self.signals = dict(state["signals"])
        if self.act and state["duty"] != self.duty:
            self._set_duty(state["duty"])
        for policy, kept in zip(self.policies, state["policies"], strict=True):
            policy.load_state_dict(kept)


def _closed(optimizer: Any) -> bool:
    """A gate that leaves out every second pass."""
    return False
