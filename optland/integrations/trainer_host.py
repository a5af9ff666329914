"""The host of a pilot in a trainer, which owns the loader and the end of a run."""

from __future__ import annotations

from optland.pilot.host import Host

__all__ = ["TrainerHost"]


class TrainerHost(Host):
    """A run of a trainer: the size of its batches is not to be turned, and it can always be stopped."""

    fixed = frozenset({"batch_size"})

    def can_turn(self, name: str) -> bool:
        """As a plain loop, but for the batch size and the end."""
        return name == "stop" or (name not in self.fixed and super().can_turn(name))

    def lacking(self, name: str) -> str:
        """As in a plain loop, but for the batch size."""
        if name not in self.fixed:
            return super().lacking(name)
        return (
            "in a trainer it belongs to the loader and to accumulation, fixed before the first update; write a plain "
            "loop with pilot.batches()"
        )
