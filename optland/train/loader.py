"""A loader over tensors in memory whose batch size can change at any batch, and which resumes inside an epoch.

The order of epoch e is a function of the seed and e alone, so a position (epoch, samples served) is the loader's
whole state: no sample is lost or repeated when the batch size changes or a run resumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["BatchLoader"]


class BatchLoader:
    """Shuffled batches over all epochs of a run.

    Args:
        tensors: Tensors with the same leading dimension; a batch is the tuple of their slices.
        batch_size: Samples a batch; the last batch of an epoch may be smaller.
        epochs: Passes over the data.
        seed: Seed of the order.

    Raises:
        ValueError: Tensors of different lengths, no samples, or a size or count below 1.

    Example:
        >>> loader = BatchLoader([torch.arange(5)], batch_size=2, epochs=1, seed=0)
        >>> sizes = []
        >>> for (batch,) in loader:
        ...     sizes.append(len(batch))
        ...     loader.set_batch_size(4)
        >>> sizes
        [2, 3]
    """

    def __init__(self, tensors: Sequence[Tensor], batch_size: int, *, epochs: int, seed: int = 0) -> None:
        lengths = {len(t) for t in tensors}
        if len(lengths) != 1:
            raise ValueError(f"the tensors have lengths {sorted(lengths)}; they must agree")
        if epochs < 1:
            raise ValueError(f"epochs {epochs} must be at least 1")
        self.tensors = tuple(tensors)
        self.num_samples = lengths.pop()
        if self.num_samples == 0:
            raise ValueError("the data set is empty")
        self.epochs = epochs
        self.seed = seed
        self.epoch = 0
        """Epochs that have been served whole."""
        self.position = 0
        """Samples served of the present epoch."""
        self.set_batch_size(batch_size)

    def set_batch_size(self, batch_size: int) -> None:
        """Change the size of the batches from the next one on."""
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} must be at least 1")
        self.batch_size = int(batch_size)

    @property
    def total_samples(self) -> int:
        """Samples the whole run serves."""
        return self.epochs * self.num_samples

    @property
    def samples_served(self) -> int:
        """Samples served so far."""
        return self.epoch * self.num_samples + self.position

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last batch served was the last of its epoch."""
        return self.position == 0 and self.epoch > 0

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Serve the batches from the present position to the end of the last epoch."""
        order: Tensor | None = None
        ordered = -1
        while self.epoch < self.epochs:
            if order is None or ordered != self.epoch:
                order, ordered = self._order(self.epoch), self.epoch
            index = order[self.position : self.position + self.batch_size]
            # The position moves before the batch is served, so that a checkpoint taken after its step goes on
            # with the next one.
            self.position += len(index)
            if self.position >= self.num_samples:
                self.epoch, self.position = self.epoch + 1, 0
            yield tuple(t[index] for t in self.tensors)

    def _order(self, epoch: int) -> Tensor:
        # Two seeds for neighbouring epochs must not collide with another run's: the pair is mixed by a large odd step.
        generator = torch.Generator().manual_seed((self.seed * 0x9E3779B1 + epoch) % 2**63)
        return torch.randperm(self.num_samples, generator=generator).to(self.tensors[0].device)

    def state_dict(self) -> dict[str, Any]:
        """Position, batch size and seed."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "num_samples": self.num_samples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Raises:
            ValueError: The state is of a data set of another size.
        """
        if state["num_samples"] != self.num_samples:
            raise ValueError(
                f"the loader's state is of {state['num_samples']} samples, the data set has {self.num_samples}; "
                "resume with the data configuration that the run was started with"
            )
        self.epoch, self.position, self.seed = state["epoch"], state["position"], state["seed"]
        self.set_batch_size(state["batch_size"])
