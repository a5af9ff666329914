"""What a test makes happen in a run, because no run takes it of itself on every processor: rounding decides there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optland.pilot import NoiseBatch, Policy, Proposal
from optland.pilot.history import Reader

__all__ = ["WRECK", "Asks", "GrowsOnce"]

WRECK = 1e6
"""A loss that the rewind guard takes for trouble at once, whatever came before."""


class Asks(Policy):
    """A policy with a script.

    Args:
        script: What to ask for, by the number of the update: pairs of what is turned and its new value, or proposals.
        **sets: ``reads``, ``turns`` or ``caps``; ``turns`` is else what the script sets.
    """

    name = "asks"

    def __init__(
        self, script: Mapping[int, Sequence[tuple[str, float] | Proposal]], **sets: frozenset[str]
    ) -> None:
        self.script = {
            step: [p if isinstance(p, Proposal) else Proposal(*p, "as scripted") for p in asked]
            for step, asked in script.items()
        }
        asked = [p for proposals in self.script.values() for p in proposals]
        self.turns = sets.get("turns", frozenset(p.actuator for p in asked if not p.cap))
        self.caps = sets.get("caps", frozenset(p.actuator for p in asked if p.cap))
        self.reads = sets.get("reads", frozenset())

    def decide(self, history: Reader) -> list[Proposal]:
        """What the script has for the update just made, or, for a skip or a rewind, for the one at hand."""
        before = bool(self.turns & {"skip", "rewind"})
        return self.script.get(history.step + before, [])


class GrowsOnce(NoiseBatch):
    """Doubles the batch after one update, whatever the noise.

    Args:
        step: Number of the update.
        **options: Of :class:`optland.pilot.NoiseBatch`.
    """

    def __init__(self, step: int, **options: Any) -> None:
        super().__init__(**options)
        self.step = step

    def decide(self, history: Reader) -> list[Proposal]:
        """A doubling, with a noise scale of one batch where the rate follows it."""
        size = history.setting("batch_size")
        if history.step < self.step or self.last_change or size is None:
            return []
        asked = [Proposal("batch_size", 2 * size, "as scripted")]
        return asked + (self._co_scaled(history, 2.0, size, size) if self.follows else [])
