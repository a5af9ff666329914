"""Warnings about trouble, one of each kind, for users without a log."""

from __future__ import annotations

import warnings

__all__ = [
    "apart",
    "no_after_step",
    "no_update",
    "say_clipped",
    "say_idle",
    "say_loss",
    "say_not_finite",
    "say_off",
]


def apart(step: int, rank: int) -> str:
    """Ranks that have decided differently.

    Args:
        step: The update up to which they were compared.
        rank: The first that differs.
    """
    return (
        f"the ranks have decided differently up to update {step}: rank {rank} is apart from rank 0; give every rank "
        "the same policies, budget, lengths and seed"
    )


def no_after_step(optimizer: str) -> str:
    """The mistake of a step without ``after_step`` since the one before.

    Args:
        optimizer: Name of its class.
    """
    return (
        "after_step(batch, loss) was not called since the last update; call it once after every "
        f"{optimizer}.step()"
    )


def no_update(made: int, count: int) -> str:
    """The mistake of an ``after_step`` without an update, when ``made`` of ``count`` optimizers have stepped.

    Args:
        made: Optimizers that have stepped since the last call.
        count: Optimizers of the pilot.
    """
    if made:
        return f"after_step() after {made} of {count} optimizers; all of them have to step"
    return (
        "after_step() was called and no optimizer of this pilot has stepped since the last call. With accumulation "
        "call it once per update, with the list of micro-batches; with a GradScaler, which leaves steps out, before "
        "zero_grad(). If a step was made, its hooks did not run: the pilot cannot see it in a compiled step, a CUDA "
        "graph or DeepSpeed; step outside of it, or use mode='off'"
    )


def say_off(what: str, step: int, why: str) -> None:
    """Something that is not training has failed and is off.

    Args:
        what: Which part, such as "the edge probe".
        step: The update.
        why: The exception in words.
    """
    warnings.warn(
        f"{what} failed at update {step} and is switched off; training goes on ({why})",
        RuntimeWarning,
        stacklevel=5,
    )


def say_idle(never: str) -> None:
    """Probes of the user's own that had no turn in the whole run.

    Args:
        never: Which, why, and what gives them room.
    """
    warnings.warn(never, RuntimeWarning, stacklevel=4)


def say_not_finite(step: int) -> None:
    """The first gradient that is not finite.

    Args:
        step: The update.
    """
    warnings.warn(
        f"the gradient of update {step} is not finite: the update is cancelled, here and whenever it happens again; "
        "pilot.lost counts them",
        RuntimeWarning,
        stacklevel=5,
    )


def say_loss(loss: float, step: int) -> None:
    """The first loss that is not finite though its gradient is."""
    warnings.warn(
        f"the loss of update {step} is {loss}, and its gradient is finite: the run goes on, unless that lasts; such is "
        "the mean over an empty batch, or over one whose labels are all masked",
        RuntimeWarning,
        stacklevel=5,
    )


def say_clipped(limit: float, step: int) -> None:
    """Gradients that were clipped before the step.

    Args:
        limit: The norm that they all have.
        step: The update.
    """
    warnings.warn(
        f"gradients come to the step clipped to a norm of {limit:.3g} (seen up to update {step}), which hides spikes: "
        "policies that read the gradient's norm go by the loss; let the pilot's `clip` cut them to have both",
        RuntimeWarning,
        stacklevel=5,
    )
