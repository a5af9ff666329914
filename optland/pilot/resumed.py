"""Check a saved state against the pilot that is to go on with it; save and load what optimizers have measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch.optim import Optimizer

from optland.optim.two_pass import TwoPass

__all__ = ["check_kind", "kind_of", "load_telemetry", "telemetry_of"]


def kind_of(pilot: Any) -> dict[str, Any]:
    """What has to be the same where a saved state is loaded.

    Args:
        pilot: The one whose state is saved or loaded.
    """
    return {
        "mode": pilot.mode,
        "policies": [p.name for p in pilot.controls.policies],
        "optimizers": len(pilot.host.inner),
    }


def check_kind(pilot: Any, state: Mapping[str, Any]) -> None:
    """Refuse a state that another kind of pilot has saved.

    Raises:
        ValueError: It is no state of a pilot, or of one with other policies or another number of optimizers.
    """
    if "kind" not in state:
        raise ValueError(
            f"this is no state of a pilot (its keys are {sorted(map(str, state))[:4]}...); give what "
            "pilot.state_dict() returned"
        )
    mine, theirs = kind_of(pilot), state["kind"]
    for what in ("policies", "optimizers"):
        if mine[what] != theirs[what]:
            raise ValueError(
                f"the state is of a pilot in mode {theirs['mode']!r} with {what} {theirs[what]}, and this one is in "
                f"mode {mine['mode']!r} with {mine[what]}; make it as that one was, or begin without the state"
            )


def telemetry_of(optimizers: Iterable[Optimizer]) -> list[dict[str, Any] | None]:
    """What each optimizer has measured of its last step; None for one that measures nothing."""
    return [o.telemetry.state_dict() if isinstance(o, TwoPass) else None for o in optimizers]


def load_telemetry(optimizers: Iterable[Optimizer], kept: Iterable[dict[str, Any] | None]) -> None:
    """Give it back.

    Args:
        optimizers: Those that it was taken of.
        kept: What :func:`telemetry_of` returned.
    """
    for optimizer, state in zip(optimizers, kept, strict=True):
        if isinstance(optimizer, TwoPass) and state is not None:
            optimizer.telemetry.load_state_dict(state)
