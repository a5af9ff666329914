"""The loader for data that do not fit in memory: any map-style dataset, read by worker processes, resumed exactly.

Order, position, batch size and augmentation are as in :mod:`optland.train.loops.loader`; reading, collating and pinning
are PyTorch's ``DataLoader``.

**Randomness.** Before a sample is read, the generators of PyTorch, NumPy and Python are seeded by (seed, epoch, index):
a dataset that augments while it reads gives the same sample whatever the number of workers, the batch size or the
point of a resume. Without workers, the run's own generators are put back after each batch. Of several processes of a
run each reads its own part of a batch, and what ``transform`` draws is seeded by where that part begins.

**Batch size.** Workers are always some batches ahead (two each). Those batches keep the size they were asked for with,
so a new size is seen ``2 * workers`` batches later, at once without workers. The sizes on their way are part of the
state: a resumed run serves them as the unbroken run would have. What was read ahead and not served is read again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from optland.context.rng import preserve_rng, seed_host
from optland.train.loops.loader import ResumableLoader, Transform, part_of, seed_of
from optland.train.runs.interrupt import leave_signals_to_main

__all__ = ["DatasetLoader"]


class DatasetLoader(ResumableLoader):
    """Shuffled batches of a map-style dataset, over all epochs of a run.

    Args:
        dataset: Anything with ``len`` and ``dataset[index]``, such as a torchvision dataset.
        batch_size: Samples per batch and update; the last batch of an epoch may be smaller.
        epochs: Passes over the data.
        seed: Seed of the order and of all randomness in samples and augmentation.
        num_workers: Processes that read; 0 reads in this one.
        pin_memory: Page-locked batches, which copy faster and asynchronously to a GPU; ignored without CUDA.
        collate_fn: Makes a batch out of a list of samples; PyTorch's default otherwise, its lists made tuples.
        transform: ``transform(batch, generator)``, called on every batch in this process, with a CPU generator seeded
            by (seed, epoch, position in the epoch).

    Raises:
        TypeError: The dataset has no length or cannot be indexed.
        ValueError: No samples, a size or count below 1, or a negative number of workers.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> loader = DatasetLoader(TensorDataset(torch.arange(5)), batch_size=2, epochs=1)
        >>> [len(x) for (x,) in loader], loader.samples_served
        ([2, 2, 1], 5)
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        epochs: int,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = True,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        transform: Transform | None = None,
    ) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise TypeError(
                f"a {type(dataset).__name__} is a stream: exact resume needs a dataset with len() and [index]; "
                "give it those, or save its samples to files and index them"
            )
        if num_workers < 0:
            raise ValueError(f"num_workers {num_workers} is negative; use 0 to read in the training process")
        super().__init__(len(dataset), batch_size, epochs=epochs, seed=seed, transform=transform)
        self.dataset = dataset
        self.workers = num_workers
        self.pin_memory = pin_memory
        self.collate_fn = collate_fn
        self._on_their_way: deque[int] = deque()  # sizes asked of the workers and not served yet

    def __iter__(self) -> Iterator[Any]:
        """Serve the batches from the present position to the end of the last epoch."""
        again = list(self._on_their_way)
        self._on_their_way.clear()
        batches = DataLoader(
            _Seeded(self.dataset, self.seed, alone=self.workers == 0),
            batch_sampler=self._requests(again),
            num_workers=self.workers,
            collate_fn=self.collate_fn,
            pin_memory=self.pin_memory and torch.cuda.is_available(),
            worker_init_fn=leave_signals_to_main,
            generator=torch.Generator(),  # it would draw the workers' seeds from the run's generator otherwise
        )
        for batch in batches:
            epoch, position = self.epoch, self.position
            size = self._on_their_way.popleft()
            count = min(size, self.num_samples - position)
            self._advance(count)
            start, _ = self._part(count)
            yield self._transformed(tuple(batch) if type(batch) is list else batch, epoch, position + start)

    def _requests(self, again: list[int]) -> Iterator[list[tuple[int, int]]]:
        """What to read for each batch: pairs (epoch, index). Runs ahead of what is served."""
        sizes = deque(again)
        epoch, position = self.epoch, self.position
        while epoch < self.epochs:
            order = self._order(epoch)
            while position < self.num_samples:
                size = sizes.popleft() if sizes else self.batch_size
                self._on_their_way.append(size)
                asked = order[position : position + size].tolist()
                start, stop = part_of(len(asked))
                yield [(epoch, index) for index in asked[start:stop]]
                position += size
            epoch, position = epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Position, sizes, those on their way included, and seed."""
        return {**super().state_dict(), "on_their_way": list(self._on_their_way)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; call it before iterating.

        Args:
            state: With the sizes of the batches that were on their way to the loop, which are served with them again.

        Raises:
            ValueError: The state is of a data set of another size.
        """
        super().load_state_dict(state)
        self._on_their_way = deque(state["on_their_way"])


class _Seeded(Dataset[Any]):
    """A dataset whose randomness in each sample is a function of (seed, epoch, index)."""

    def __init__(self, dataset: Any, seed: int, *, alone: bool) -> None:
        self.dataset = dataset
        self.seed = seed
        self.alone = alone  # in the training process, whose generators are the run's

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Any]:
        """The samples of one batch."""
        if not self.alone:
            return [self._sample(*key) for key in keys]
        with preserve_rng():
            return [self._sample(*key) for key in keys]

    def _sample(self, epoch: int, index: int) -> Any:
        seed_host(seed_of("sample", self.seed, epoch, index))
        return self.dataset[index]
