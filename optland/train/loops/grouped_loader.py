"""Join several batches of a loader with a fixed batch size into one larger batch.

``GroupedLoader(loader)`` takes any loader of batches (a ``DataLoader``, a list) and serves groups of them, joined to
one batch, so that policies that change the batch (``noise_batch``) work with it. The inputs of a group lie
in memory together; its activations need not: ``micro_batch`` of
:class:`~optland.train.loops.precision.PrecisionConfig` takes it in parts.

**Resume.** The loader is read under generators that are seeded by (seed, epoch, number of the batch), and a generator
or sampler of its own is set to the epoch. A resumed run reads the present epoch from its beginning and drops what was
served: exact, at the price of reading. Where that is too much, :class:`optland.train.DatasetLoader` resumes by index.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from optland import processes
from optland.batches import join, num_samples, rows
from optland.context.rng import preserve_rng, seed_host
from optland.train.loops.loader import ResumableLoader, Transform, seed_of

__all__ = ["GroupedLoader"]


class GroupedLoader(ResumableLoader):
    """Groups of the batches of a loader, over all epochs of a run.

    Args:
        loader: An iterable of batches that can be read again for each epoch.
        epochs: Passes over it.
        batch_size: Samples of one batch of the loader; None asks its ``batch_size``, or the first batch.
        num_samples: Samples it serves in an epoch; None asks its data set, or counts a list.
        seed: Seed of its order and of all randomness in reading.
        transform: ``transform(batch, generator)``, called on every group.

    Raises:
        TypeError: A stream, which cannot be read again, or a loader whose samples cannot be counted.
        ValueError: A size or count below 1; in the loop, an epoch of another number of samples.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> loader = GroupedLoader(DataLoader(torch.arange(10.0), batch_size=2), epochs=1)
        >>> sizes = []
        >>> for batch in loader:
        ...     sizes.append(len(batch))
        ...     loader.set_batch_size(4)
        >>> sizes
        [2, 4, 4]
    """

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        epochs: int,
        batch_size: int | None = None,
        num_samples: int | None = None,
        seed: int = 0,
        transform: Transform | None = None,
    ) -> None:
        if isinstance(loader, Iterator):
            raise TypeError(
                f"a {type(loader).__name__} is a stream and can be read once; give the loader or the list itself"
            )
        self.loader = loader
        self.unit = _size_of(loader) if batch_size is None else batch_size
        """Samples of one batch of the loader."""
        if self.unit < 1:
            raise ValueError(f"batch size {self.unit} must be at least 1")
        self._read = 0  # batches of the loader that were served of the present epoch
        samples = _samples_of(loader) if num_samples is None else num_samples
        super().__init__(samples, self.unit, epochs=epochs, seed=seed, transform=transform)

    def set_batch_size(self, batch_size: int) -> None:
        """Change the size of the groups from the next one on.

        Args:
            batch_size: Samples per update, a multiple of the loader's own batch.

        Raises:
            ValueError: Not a multiple.
        """
        if batch_size < 1 or batch_size % self.unit:
            raise ValueError(
                f"batch size {batch_size} is not a multiple of the loader's own {self.unit}; "
                f"use for example {self.unit * max(1, round(batch_size / self.unit))}"
            )
        super().set_batch_size(batch_size)

    def __iter__(self) -> Iterator[Any]:
        """Serve the groups from the present position to the end of the last epoch."""
        while self.epoch < self.epochs:
            yield from self._rest_of_epoch()

    def _rest_of_epoch(self) -> Iterator[Any]:
        epoch, batches = self.epoch, self._batches()
        for _ in range(self._read):
            next(batches, None)
        while self.epoch == epoch:
            group: list[Any] = []
            position = self.position
            while len(group) * self.unit < self.batch_size and (batch := next(batches, None)) is not None:
                group.append(batch)
            served = sum(map(num_samples, group))
            if not group or position + served > self.num_samples:
                raise ValueError(
                    f"the loader served {position + served} samples in an epoch, not {self.num_samples}; "
                    "say num_samples="
                )
            self._read += len(group)
            self._advance(served)
            if self.epoch != epoch:
                self._read = 0
            whole = self._transformed(join(group) if len(group) > 1 else group[0], epoch, position)
            start, stop = self._part(served)
            yield whole if processes.size() == 1 else rows(whole, start, stop)

    def _batches(self) -> Iterator[Any]:
        """The loader's batches of this epoch, each read under its own seed; the run's generators stay as they are."""
        epoch = self.epoch
        with preserve_rng():
            seed_host(seed_of("epoch", self.seed, epoch))
            self._set_epoch(epoch)
            batches = iter(self.loader)
        for number in itertools.count():
            with preserve_rng():
                seed_host(seed_of("batch", self.seed, epoch, number))
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _set_epoch(self, epoch: int) -> None:
        """A loader with an order of its own has to give this epoch's, also in a resumed run."""
        samplers = [
            self.loader,
            getattr(self.loader, "sampler", None),
            getattr(self.loader, "batch_sampler", None),
        ]
        for holder in samplers:
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed_of("order", self.seed, epoch))
            if callable(set_epoch := getattr(holder, "set_epoch", None)):
                set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Position, in samples and in batches of the loader, sizes and seed."""
        return {**super().state_dict(), "read": self._read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; call it before iterating.

        Args:
            state: Of a loader with the same batches: those of the present epoch that were served are read again and
                dropped.

        Raises:
            ValueError: The state is of a data set of another size.
        """
        super().load_state_dict(state)
        self._read = state["read"]


def _size_of(loader: Any) -> int:
    """Samples of a batch: what the loader says, or what its first batch holds."""
    size = getattr(loader, "batch_size", None)
    if isinstance(size, int):
        return size
    with preserve_rng():
        first = next(iter(loader), None)
    if first is None:
        raise ValueError("the loader has no batch")
    return num_samples(first)


def _samples_of(loader: Any) -> int:
    """Samples of an epoch, by the loader's sampler or data set, or counted where the batches lie in memory."""
    if isinstance(loader, list | tuple):
        return sum(map(num_samples, loader))
    for name in ("sampler", "dataset"):
        part: Any = getattr(loader, name, None)
        if hasattr(part, "__len__"):
            whole = len(part)
            return whole - whole % loader.batch_size if getattr(loader, "drop_last", False) else whole
    raise TypeError(
        f"the samples of a {type(loader).__name__} cannot be counted; say num_samples=, those of one epoch"
    )
