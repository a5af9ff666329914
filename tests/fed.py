"""A policy that is fed by hand: signals and settings in, proposals out."""

from __future__ import annotations

import math
from typing import Any

from optland.pilot import History, Policy, Proposal, Signal

__all__ = ["Fed", "asked", "invalid"]


class Fed:
    """A policy with a history of its own.

    Args:
        policy: The policy.
        **settings: What ``history.setting`` says, by name; may be changed in ``settings`` as the test goes on.
    """

    def __init__(self, policy: Policy, **settings: float | None) -> None:
        self.policy: Any = policy  # each kind has attributes of its own
        self.settings = settings
        self.history = History(lambda name: self.settings.get(name))
        self.reader = self.history.reader()

    def __call__(self, step: int, progress: float | None = None, **signals: Any) -> list[Proposal]:
        """What the policy asks for after update ``step``.

        Args:
            step: Number of the update.
            progress: Share of the run that is done.
            **signals: Values by name, ``train__loss`` for ``train/loss``; a signal for one with an error or without
                validity.
        """
        self.history.step, self.history.progress = step, progress
        for name, value in signals.items():
            known = name.replace("__", "/")
            self.history.put([value if isinstance(value, Signal) else Signal(known, value, step)])
        return self.policy.decide(self.reader)


def asked(found: dict[int, list[Proposal]]) -> list[tuple[int, str, float]]:
    """Proposals by update as (update, what, value)."""
    return [(step, p.actuator, p.new) for step, proposals in found.items() for p in proposals]


def invalid(name: str, step: int, why: str = "unresolved") -> Signal:
    """A measurement that could not be made."""
    return Signal(name, math.nan, step, valid=False, why=why)
