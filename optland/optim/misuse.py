"""Errors for misuse of a two-pass step: wrong bases, badly timed loss scalers, closures without a gradient.

For a perturbation of fixed length the loss scale cancels, so pass one is never unscaled; only the gradient of
pass two is, once, by ``scaler.step``. Called with a closure, the scaler would not see the gradients at all.

A GradScaler asks an optimizer whether it scales by itself. Only after ``restore()`` is the answer no, and the scaler
unscales, checks and steps as with any optimizer. At any other moment it is yes: the scaler then announces itself by
setting ``found_inf`` on the optimizer, and the misuse (above all a positional closure, which the scaler itself lets
through) is refused instead of training with gradients that are too large by the loss scale.
"""

from __future__ import annotations

import sys
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn
from torch.optim import Optimizer

from optland.optim.alive import instances
from optland.optim.notices import Notices

__all__ = [
    "USAGES",
    "in_flight",
    "lost_in_hand",
    "needs_loss",
    "note_no_gradient",
    "plain_step",
    "refuse_base",
    "refuse_closure",
    "refuse_scaler",
    "unknown_scale",
    "unwanted_pass",
]

USAGES = (
    "Use optimizer.step(closure), where the closure zeroes the gradients, runs forward and backward and "
    "returns the loss; or backward, optimizer.perturb(), backward again, optimizer.step(); or, with a "
    "GradScaler, backward, perturb(), backward, restore(), scaler.step(optimizer). In Lightning, add "
    "optland.integrations.lightning.SAMModule to the bases of the module."
)

TRAINERS = (
    "Where a trainer steps for you, take SAMTrainer of optland.integrations.transformers in place of Trainer, or "
    "passes() of optland.integrations.accelerate."
)


def refuse_base(name: str, base: Any, model: Any) -> None:
    """Refuse a base that no two-pass optimizer of this name can wrap.

    Args:
        name: Of the method, for messages.
        base: An optimizer, or what was given in its place, which others refuse.
        model: The module, or None.

    Raises:
        ValueError: The base is differentiable.
        TypeError: ``model`` is no module.
    """
    if isinstance(base, Optimizer) and base.defaults.get("differentiable"):
        raise ValueError(
            f"{type(base).__name__} has differentiable=True, and no graph goes through the perturbation of "
            f"{name}: the derivative of its step would be wrong; use differentiable=False"
        )
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; pass the nn.Module that the loop calls")


def refuse_scaler(optimizer: Optimizer, what: str) -> None:
    """Raise when a GradScaler is the caller.

    Args:
        optimizer: A GradScaler leaves ``found_inf`` on it while it calls ``step``.
        what: The beginning of the message.

    Raises:
        RuntimeError: It is.
    """
    if "found_inf" in optimizer.__dict__:
        optimizer.__dict__.pop("grad_scale", None)  # the scaler does not clean up when the step raises
        del optimizer.__dict__["found_inf"]
        raise RuntimeError(f"{what} {USAGES}")


def refuse_closure(optimizer: Optimizer) -> None:
    """Raise where the caller of ``step(closure)`` makes something else of the closure than one update of its batch.

    Args:
        optimizer: What Accelerate has put around it is looked for among living objects, at its first two steps only.

    Raises:
        RuntimeError: The caller is a GradScaler, or Accelerate, which calls it for one micro-batch of several.
    """
    refuse_scaler(optimizer, "GradScaler.step(optimizer, closure) would apply loss-scaled gradients.")
    wrapper = _accelerated(optimizer)
    parts = 1 if wrapper is None else wrapper.gradient_state.num_steps
    if parts > 1:
        raise RuntimeError(
            f"step(closure) with Accelerator(gradient_accumulation_steps={parts}) would train on one of {parts} "
            "micro-batches, since Accelerate calls step() at the last of them alone. Use micro_batches() and passes() "
            "of optland.integrations.accelerate: for batches in micro_batches(loader, accelerator): for _ in "
            "passes(accelerator, optimizer): accelerator.backward() over the batches; then optimizer.step()"
        )


_SEARCHES = 2
"""As often an optimizer's wrapper is looked for, at its first steps: 0.1 s over a million objects."""

_searched: WeakKeyDictionary[Optimizer, list[Any]] = WeakKeyDictionary()


def _accelerated(optimizer: Optimizer) -> Any:
    """What Accelerate has put around an optimizer; None where it has not, or is not loaded."""
    module = sys.modules.get("accelerate.optimizer")
    if module is None:
        return None
    found = _searched.setdefault(optimizer, [])
    if not any(found) and len(found) < _SEARCHES:
        around = [w for w in instances(module.AcceleratedOptimizer) if w.optimizer is optimizer]
        found.append(ref(around[0]) if around else None)
    return found[-1]() if found[-1] is not None else None


def note_no_gradient(optimizer: Optimizer, params: list[Tensor], notices: Notices, *, meant: bool) -> None:
    """Say once that a closure has brought no gradient, unless that is meant: as in PyTorch, nothing is trained then.

    Args:
        optimizer: For the message.
        params: Whose ``.grad`` is looked at, after the closure.
        notices: Those given so far.
        meant: Whether there is a reason for it, such as a closure that had nothing to do.

    Raises:
        RuntimeError: The parameters are sharded, and FSDP2 has kept the gradient back.
    """
    if meant or (params and params[0].grad is not None) or any(p.grad is not None for p in params):
        return
    if any(hasattr(p, "to_local") for p in params):
        raise RuntimeError(
            "the closure brought no gradient to the sharded parameters. Under set_requires_gradient_sync(False) "
            "FSDP2 keeps gradients back and would mix those of both passes. For an eps of each micro-batch leave "
            "that out; for one of them all: for _ in optimizer.passes(): backward over all micro-batches, the last "
            "one synchronised; then step()"
        )
    notices.once(
        "backward",
        f"the closure brought no gradient to any parameter of {type(optimizer).__name__}, so nothing is trained; "
        "it has to call loss.backward(), on a loss of these parameters, after zero_grad()",
    )


def in_flight(action: str) -> str:
    """Words on an action in mid-step.

    Args:
        action: What was tried, the beginning of the sentence.
    """
    return (
        f"{action} while the weights are perturbed (between perturb() and restore() or step()). "
        "Finish the step first, or call restore(), also where a GradScaler may skip the step."
    )


def unwanted_pass(action: str) -> str:
    """Words on a backward pass that the gate has left out.

    Args:
        action: What was tried, the beginning of the sentence.
    """
    return (
        f"{action}: perturb() returned False, as the gate leaves out the second pass of this step, and a "
        "backward pass after it has added to the gradient. Write: if optimizer.perturb(): loss.backward()"
    )


def lost_in_hand() -> str:
    """Words on a closure that has touched the gradient of a step in phase form."""
    return (
        "step(closure) after restore(), or after a perturb() that returned False: all passes of this step are made, "
        "and the closure has zeroed the gradient or run another backward pass. Call step() without a closure"
    )


def needs_loss(optimizer: Optimizer, base: Optimizer) -> str:
    """Words on the phase form over a base that reads the loss.

    Args:
        optimizer: The two-pass optimizer.
        base: The one inside.
    """
    return (
        f"{type(base).__name__}.step() needs a closure, which tells it the loss, and the phase form has "
        f"none to give; use {type(optimizer).__name__}.step(closure), or accumulate(closure) and step()"
    )


def plain_step(optimizer: Optimizer, base: Optimizer) -> str:
    """Words on a step whose gradient never saw the second pass.

    Args:
        optimizer: The two-pass optimizer.
        base: The one inside.
    """
    return (
        f"{type(optimizer).__name__}.step() without a second pass would be a plain step of "
        f"{type(base).__name__}. {USAGES} {TRAINERS}"
    )


def unknown_scale(optimizer: Optimizer) -> str:
    """Words on a GradScaler whose scale a method has to know."""
    return (
        f"{type(optimizer).__name__} measures its perturbation by the length of the gradient and was not told the "
        "loss scale; call optimizer.perturb(loss_scale=scaler.get_scale())"
    )
