"""Loaders whose batch size can change at any batch, and which resume inside an epoch.

The order of epoch e is a function of the seed and e alone, so a position (epoch, samples served) is all that has to be
kept: no sample is lost or repeated when the batch size changes or a run resumes. Augmentation draws from generators
seeded by that position, so it resumes exactly too.

Where a launcher has started several processes for one run (:mod:`optland.processes`), each is served its part of every
batch, in order: sizes and positions are those of all, so that the run is the same with any number of processes.

=============  =======================================================================================================
loader         for
=============  =======================================================================================================
BatchLoader    tensors in memory, on any device
DatasetLoader  a map-style dataset, read sample by sample, in worker processes if asked (``dataset_loader.py``)
GroupedLoader  a loader with a batch of its own, several of which make an update (``grouped_loader.py``)
=============  =======================================================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from optland import batches, processes

__all__ = ["BatchLoader", "ResumableLoader", "Transform", "seed_of"]

Transform = Callable[[Any, torch.Generator], Any]
"""``transform(batch, generator)``: a batch of the same form; all that is random in it draws from the generator."""


def seed_of(*key: int | str) -> int:
    """A seed that is a pure function of ``key``; neighbouring keys give unrelated seeds.

    Args:
        key: Numbers and texts; a first text that says what the seed is for keeps two uses with equal numbers apart.

    Returns:
        A whole number from 0 to 2^63 - 1, which every generator takes.

    Example:
        >>> seed_of("transform", 0, 1, 64) == seed_of("transform", 0, 1, 64) != seed_of("transform", 0, 1, 65)
        True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


class ResumableLoader:
    """Position, order and sizes: the base class of the loaders.

    Args:
        num_samples: Samples of the data set.
        batch_size: Samples per batch and update; the last batch of an epoch may be smaller.
        epochs: Passes over the data.
        seed: Seed of the order and of the augmentation.
        transform: Called on every batch with a generator seeded by (seed, epoch, position in the epoch).

    Attributes:
        batch_size: Samples per batch from the next one on.
        epoch: Epochs that have been served whole.
        position: Samples served of the present epoch.
        served: Samples of the last batch, of all processes together.
        own: Of them, those of this process.

    Raises:
        ValueError: No samples, or a size or count below 1.
    """

    def __init__(
        self, num_samples: int, batch_size: int, *, epochs: int, seed: int, transform: Transform | None
    ) -> None:
        if epochs < 1:
            raise ValueError(f"epochs {epochs} must be at least 1")
        if num_samples == 0:
            raise ValueError("the data set is empty")
        self.num_samples = num_samples
        self.epochs = epochs
        self.seed = seed
        self.transform = transform
        self.epoch = 0
        """Epochs that have been served whole."""
        self.position = 0
        """Samples served of the present epoch."""
        self.served = self.own = 0
        """Samples of the last batch: of all processes together, and of this one."""
        self.set_batch_size(batch_size)

    def set_batch_size(self, batch_size: int) -> None:
        """Change the size of the batches from the next one on.

        Args:
            batch_size: Samples per update, however many micro-batches it is taken in and processes share it.

        Raises:
            ValueError: Fewer samples than one for each process of the run.
        """
        if batch_size < processes.size():
            over = f": one for each of {processes.size()} processes" if processes.size() > 1 else ""
            raise ValueError(f"batch size {batch_size} must be at least {processes.size()}{over}")
        self.batch_size = int(batch_size)

    @property
    def weight(self) -> float:
        r"""What the mean loss of the last batch counts in the mean over processes: 1 where they have as many samples.

        .. math:: \frac{n_r R}{n}

        for :math:`n_r` of the batch's n samples on this one of R processes: what makes the plain mean over processes,
        which is how gradients are averaged, the mean over samples.
        """
        return self.own * processes.size() / self.served if self.served else 1.0

    @property
    def total_samples(self) -> int:
        """Samples the whole run serves."""
        return self.epochs * self.num_samples

    @property
    def total_steps(self) -> int:
        """Batches the whole run serves at the present size, ragged ones at the ends of epochs included."""
        return self.epochs * -(-self.num_samples // self.batch_size)

    @property
    def samples_served(self) -> int:
        """Samples served so far."""
        return self.epoch * self.num_samples + self.position

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last batch served was the last of its epoch."""
        return self.position == 0 and self.epoch > 0

    def _order(self, epoch: int) -> Tensor:
        # Two seeds for neighbouring epochs must not collide with another run's: the pair is mixed by a large odd step.
        generator = torch.Generator().manual_seed((self.seed * 0x9E3779B1 + epoch) % 2**63)
        return torch.randperm(self.num_samples, generator=generator)

    def _advance(self, count: int) -> None:
        """Count samples as served.

        Called before the batch is handed out, so that a checkpoint taken after its step goes on with the next one.
        """
        self.position += count
        if self.position >= self.num_samples:
            self.epoch, self.position = self.epoch + 1, 0

    def _part(self, count: int) -> tuple[int, int]:
        """Note how many samples a batch has, and say where this process's part of it begins and ends."""
        start, stop = _edges(count)
        self.served, self.own = count, stop - start
        return part_of(count)

    def _transformed(self, batch: Any, epoch: int, position: int, device: torch.device | str = "cpu") -> Any:
        """The batch that starts at ``position`` of ``epoch``, augmented where a transform is given."""
        if self.transform is None:
            return batch
        generator = torch.Generator(device).manual_seed(seed_of("transform", self.seed, epoch, position))
        return self.transform(batch, generator)

    def state_dict(self) -> dict[str, Any]:
        """Position, sizes and seed.

        Taken between two batches: what was handed out counts as served.
        """
        return {
            "epoch": self.epoch,
            "position": self.position,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "num_samples": self.num_samples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; call it before iterating.

        Args:
            state: Its seed takes the place of this loader's, so that the order goes on.

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


def part_of(count: int) -> tuple[int, int]:
    """This process's part of so many samples, cut as :func:`optland.batches.split` cuts a batch.

    At the end of an epoch there may be none left for it: it gets the first sample, which then weighs nothing.

    Args:
        count: Samples of the whole batch.

    Returns:
        Where the part begins, and where the next one would.
    """
    start, stop = _edges(count)
    return (start, stop) if stop > start else (0, 1)


def _edges(count: int) -> tuple[int, int]:
    """Where this process's part of ``count`` samples begins and ends; parts differ by one sample at most."""
    here, of = processes.rank(), processes.size()
    return -(-count * here // of), -(-count * (here + 1) // of)


class BatchLoader(ResumableLoader):
    """Shuffled batches of tensors in memory, over all epochs of a run.

    Args:
        tensors: Tensors with the same leading dimension; a batch is the tuple of their slices.
        batch_size: Samples per batch and update; the last batch of an epoch may be smaller.
        epochs: Passes over the data.
        seed: Seed of the order and of the augmentation.
        transform: ``transform(batch, generator)``, called on every batch. The generator lives on the tensors' device
            and is seeded by (seed, epoch, position in the epoch): a resumed run draws the same numbers.

    Attributes:
        tensors: The data; they are not copied.

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

    def __init__(
        self,
        tensors: Sequence[Tensor],
        batch_size: int,
        *,
        epochs: int,
        seed: int = 0,
        transform: Transform | None = None,
    ) -> None:
        lengths = {len(t) for t in tensors}
        if len(lengths) != 1:
            raise ValueError(f"the tensors have lengths {sorted(lengths)}; they must agree")
        self.tensors = tuple(tensors)
        super().__init__(lengths.pop(), batch_size, epochs=epochs, seed=seed, transform=transform)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Serve the batches from the present position to the end of the last epoch."""
        device = self.tensors[0].device
        order: Tensor | None = None
        ordered = -1
        while self.epoch < self.epochs:
            if order is None or ordered != self.epoch:
                order, ordered = self._order(self.epoch).to(device), self.epoch
            epoch, position = self.epoch, self.position
            index = order[position : position + self.batch_size]
            self._advance(len(index))
            start, stop = self._part(len(index))
            if self.transform is None:
                yield tuple(t[index[start:stop]] for t in self.tensors)
                continue
            # What it draws belongs to the whole batch, whoever has which part of it.
            whole = self._transformed(tuple(t[index] for t in self.tensors), epoch, position, device)
            yield whole if processes.size() == 1 else batches.rows(whole, start, stop)
