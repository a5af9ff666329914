"""The host of a pilot in a trainer, which owns the loader, and which hands over micro-batches one by one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from optland.pilot.host import Host

__all__ = ["TrainerHost", "together"]


class TrainerHost(Host):
    """A run of a trainer: the size of its batches is not to be turned, and it can always be stopped."""

    fixed = frozenset({"batch_size"})

    def can_turn(self, name: str) -> bool:
        """As a plain loop, but for the batch size and the end.

        Args:
            name: A name of :class:`~optland.pilot.host.Host`'s, such as ``step_length``.
        """
        return name == "stop" or (name not in self.fixed and super().can_turn(name))

    def lacking(self, name: str) -> str:
        """As in a plain loop, but for the batch size.

        Args:
            name: What cannot be turned.

        Returns:
            Why, and what to do, for the message of an error.
        """
        if name not in self.fixed:
            return super().lacking(name)
        return (
            "in a trainer it belongs to the loader and to accumulation, fixed before the first update; write a plain "
            "loop with pilot.batches()"
        )

    def pieces(self, batch: Any) -> list[Any]:
        """The micro-batches of an update, single tensors among them; see :func:`together`.

        Args:
            batch: From :func:`together`, or a batch of the user's.
        """
        return list(batch) if isinstance(batch, _Several) else super().pieces(batch)


class _Several(list[Any]):
    """Micro-batches that would be taken for one batch."""


def together(micro_batches: list[Any]) -> Any:
    """The batch of an update, of the micro-batches that a trainer has made of it.

    A list of tensors is one batch elsewhere, so that micro-batches that are tensors are marked as several.

    Args:
        micro_batches: At least one, as the trainer's loader gave them.

    Returns:
        The one micro-batch itself, or a list that the pilot takes for several.
    """
    if len(micro_batches) == 1:
        return micro_batches[0]
    return _Several(micro_batches) if isinstance(micro_batches[0], Tensor) else list(micro_batches)
