"""What a policy or guard decided, why, and whether it was carried out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Actuator", "Decision"]

Actuator = Literal[
    "lr",
    "batch_size",
    "rewind",
    "alarm",
    "lr_factor",
    "rho",
    "sam_duty",
    "clip",
    "skip",
    "rollback",
    "escape",
    "adam_v0",
    "stop",
]


@dataclass(frozen=True, slots=True)
class Decision:
    """One line of the audit trail.

    Attributes:
        step: Training step after which it was decided.
        policy: Who decided: ``auto_lr``, ``safe_lr``, ``noise_batch``, ``rewind_guard``.
        actuator: What it is about: the learning rate, the batch size, a rewind, or nothing but an alarm.
        old: Value before.
        new: Value asked for.
        reason: One sentence with the numbers that led to it.
        taken: False in shadow mode, and where the host could not carry it out.
        signals: The signal values it was based on.
    """

    step: int
    policy: str
    actuator: Actuator
    old: float
    new: float
    reason: str
    taken: bool
    signals: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary of all fields."""
        return asdict(self)
