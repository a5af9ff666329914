"""What a test makes happen in a run, because no run takes it of itself on every processor: rounding decides there."""

from __future__ import annotations

from typing import Any

from optland.control import NoiseBatch

__all__ = ["WRECK", "GrowsOnce"]

WRECK = 1e6
"""A loss that the rewind guard takes for trouble at once, whatever came before."""


class GrowsOnce(NoiseBatch):
    """Doubles the batch at the first noise probe from a step on, whatever that has measured.

    Args:
        step: The step; a probe may come some steps later.
        **options: Of :class:`optland.control.NoiseBatch`.
    """

    def __init__(self, step: int, **options: Any) -> None:
        super().__init__(**options)
        self.step = step

    def propose(
        self, scale: float | None, step: int, batch_size: int, dataset_size: int | None
    ) -> tuple[int, str] | None:
        if step < self.step or self.last_change:
            return None
        self.last_change = step
        return 2 * batch_size, "scripted"
