"""The loss of one process in the ``Trainer`` of transformers, whatever the trainer divides by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from optland.context.modules import preserve_buffers
from optland.context.rng import preserve_rng
from optland.pilot.host import unwrapped

__all__ = ["TrainerLoss"]


class TrainerLoss:
    """The training loss of micro-batches as probes need it: by itself, without the other processes.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._counts: bool | None = None

    def __call__(self, model: nn.Module, inputs: Any) -> Any:
        """The training loss of a micro-batch: its mean, or sum and count where the model counts items (tokens)."""
        with _alone(self.trainer.args):
            items = self._items(inputs)
            mean = self.trainer.compute_loss(model, copy(inputs), num_items_in_batch=items)
        return (mean * items, items) if items is not None and self._counts else mean

    def _items(self, inputs: Any) -> Any:
        return self.trainer.get_batch_samples(iter([inputs]), 1, self.trainer.args.device)[1]

    def own(self, parts: list[Any]) -> Tensor:
        r"""The mean over this process's part of the update, whatever the trainer divides by.

        .. math:: \frac{N \sum_i \ell_i}{P \sum_i n_i}

        for losses :math:`\ell_i` that the model has divided by the N items of the whole update, and :math:`n_i` items
        in this process's micro-batches. P is the number of processes where the trainer counts items over all of them,
        else 1. Of losses that are means it is their mean; where the trainer counts no items, their sum.

        Args:
            parts: This process's micro-batches of the update.

        Returns:
            A scalar.
        """
        args, items = self.trainer.args, self.trainer.last_update[0][1]
        total: Tensor = torch.stack([loss for _, _, loss in self.trainer.last_update]).sum()
        if items is None:
            return total
        with _alone(args):
            own = [self._items(inputs) for inputs in parts]
            if self._counts is None:
                self._counts = self._divides(parts[0], own[0])
        together = self.trainer.accelerator.num_processes if args.average_tokens_across_devices else 1
        if not self._counts:  # the trainer adds up means
            return total / (len(parts) * together)
        mean: Tensor = total * items / (sum(own) * together)
        return mean

    def _divides(self, inputs: Any, items: Any) -> bool:
        """Whether the loss is divided by the number of items: many models take it and make nothing of it."""
        model = unwrapped(self.trainer.model)
        with torch.no_grad(), preserve_buffers(model):
            found = []
            for count in (items, 2 * items):
                with preserve_rng():
                    found.append(self.trainer.compute_loss(model, copy(inputs), num_items_in_batch=count))
        return not torch.equal(*found)


@contextmanager
def _alone(args: Any) -> Iterator[None]:
    """Count the items of this process alone: one process measures, and the others do not wait for it."""
    together, args.average_tokens_across_devices = args.average_tokens_across_devices, False
    try:
        yield
    finally:
        args.average_tokens_across_devices = together
