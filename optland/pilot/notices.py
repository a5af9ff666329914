"""Warnings about trouble, one of each kind, for users without a log."""

from __future__ import annotations

import warnings

__all__ = ["say_clipped", "say_not_finite", "say_off"]


def say_off(what: str, step: int, why: str) -> None:
    """Something that is not training has failed and is off."""
    warnings.warn(
        f"{what} failed at update {step} and is switched off; training goes on ({why})",
        RuntimeWarning,
        stacklevel=5,
    )


def say_not_finite(step: int) -> None:
    """The first gradient that is not finite."""
    warnings.warn(
        f"the gradient of update {step} is not finite: the update is cancelled, here and whenever it happens again; "
        "pilot.lost counts them",
        RuntimeWarning,
        stacklevel=5,
    )


def say_clipped(limit: float, step: int) -> None:
    """Gradients that were clipped before the step."""
    warnings.warn(
        f"gradients come to the step clipped to a norm of {limit:.3g} (seen up to update {step}), which hides spikes: "
        "policies that read the gradient's norm go by the loss; let the pilot's `clip` cut them to have both",
        RuntimeWarning,
        stacklevel=5,
    )
