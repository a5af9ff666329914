"""The processes that share a model's gradients, and sums over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """Processes whose gradients are averaged in a backward pass.

    Attributes:
        groups: The process groups, one for each dimension of the mesh.
        size: How many processes they are.
        replicas: The module that averages whole gradients; None where they are sharded.
    """

    groups: Sequence[Any]
    size: int
    replicas: DistributedDataParallel | None

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of the weights only, so that all of them evaluate together."""
        return self.replicas is None

    @property
    def synced(self) -> bool:
        """Whether the next backward pass averages; not under ``no_sync()``."""
        return self.replicas is None or bool(self.replicas.require_backward_grad_sync)

    def total(self, values: Sequence[float | Tensor], device: torch.device) -> list[float]:
        """The sum of each value over all processes, in float64.

        Args:
            values: As many on every process. Tensors are scalars; numbers and tensors may be mixed.
            device: Where the processes meet, one that their backend can use.

        Returns:
            One number for each value, the same on every process; one transfer and one host synchronisation for all.
        """
        wide = torch.float64
        at_hand = [v.detach() if isinstance(v, Tensor) else torch.tensor(v, dtype=wide) for v in values]
        summed = self.added(torch.stack([v.to(device, wide) for v in at_hand]))
        return [float(v) for v in summed.tolist()]

    def added(self, values: Tensor) -> Tensor:
        """The tensor, overwritten with its sum over all processes.

        Args:
            values: Of the same shape and type on every process. The result is bit-identical on all of them.
        """
        for group in self.groups:
            torch.distributed.all_reduce(values, group=group)
        return values

    def unsynced(self) -> AbstractContextManager[None]:
        """Forward and backward passes whose gradients stay on this rank for now; shards are shared at once."""
        return nullcontext() if self.replicas is None else self.replicas.no_sync()

    def planned(self, here: float, parts: int) -> float:
        """A count to divide by before the whole is known: this rank's own, where its gradients stay here.

        Args:
            here: Samples that this process has counted.
            parts: Pieces that the pass is cut into.

        Returns:
            ``here`` times the number of processes, where gradients stay on this rank until they are summed. Where
            shards are shared in every backward pass it has to be the same number on all of them, which the number of
            parts is.
        """
        return here * self.size if self.replicas is not None else float(parts)

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether a flag is true in any of the processes.

        Args:
            here: The flag of this process.
            device: Where the processes meet.
        """
        return self.total([float(here)], device)[0] > 0

    def union(self, names: Iterable[str]) -> set[str]:
        """The names that any of the processes has.

        Args:
            names: Of this process; they may differ from those of the others.
        """
        return {name for held in self.gathered(sorted(names)) for name in held}

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks.

        Args:
            value: Pickled, so small and of types that every process can import.

        Returns:
            A list of ``size`` values, the same on every process.
        """
        held = [value]
        for group in self.groups:
            lists: list[Any] = [None] * torch.distributed.get_world_size(group)
            torch.distributed.all_gather_object(lists, held, group=group)
            held = [item for part in lists for item in part]
        return held

    def sums(
        self, work: Callable[[], tuple[list[Tensor], list[float]]], like: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[float]]:
        """The sums over all processes of tensors and numbers that each of them works out.

        One that fails makes all fail, with its words: the others would wait for it for ever.

        Args:
            work: What each process does on its own; no communication in it where weights are not sharded.
            like: Tensors of which the first says on which device the processes meet.

        Returns:
            The tensors in their shapes and the numbers in float64, the same on every process; neither is divided by a
            count.

        Raises:
            RuntimeError: It failed on one of them.
        """
        device = like[0].device
        try:
            (tensors, numbers), failure = work(), None
        except Exception as error:  # told to the other processes, then raised again
            tensors, numbers, failure = [], [], error
        if self.any(failure is not None, device):
            self._fail(failure)
        if tensors:
            flat = self.added(torch.cat([t.reshape(-1) for t in tensors]))
            cut = flat.split([t.numel() for t in tensors])
            tensors = [piece.view(t.shape) for piece, t in zip(cut, tensors, strict=True)]
        return tensors, self.total(numbers, device) if numbers else []

    def rows(
        self, work: Callable[[], tuple[Tensor, list[Any]]], like: Sequence[Tensor]
    ) -> tuple[Tensor, list[Any]]:
        """The rows (k, ...) that each process works out, and a number of each, one process after the other.

        Args:
            work: What each process does on its own, as for :meth:`sums`.
            like: Likewise.

        Returns:
            A tensor of all rows, (k_0 + k_1 + ..., ...), and the list of their numbers; k may differ between processes.

        Raises:
            RuntimeError: It failed on one of them.
        """
        found: list[tuple[Tensor, list[Any]]] = []

        def kept() -> tuple[list[Tensor], list[float]]:
            found.append(work())
            return [], []

        self.sums(kept, like)
        mine, numbers = found[0]
        (group,), here = self.groups, self.gathered((tuple(mine.shape), numbers))
        parts = []
        for rank, (shape, _) in enumerate(here):
            part = mine.contiguous() if rank == torch.distributed.get_rank(group) else mine.new_empty(shape)
            torch.distributed.broadcast(part, torch.distributed.get_global_rank(group, rank), group=group)
            parts.append(part)
        return torch.cat(parts), [number for _, held in here for number in held]

    def _fail(self, failure: Exception | None) -> None:
        said = self.gathered("" if failure is None else f"{type(failure).__name__}: {failure}")
        rank, words = next((rank, words) for rank, words in enumerate(said) if words)
        raise RuntimeError(f"{words} (on rank {rank} of {len(said)})") from failure


def ranks_of(model: nn.Module) -> Ranks | None:
    """The processes that train a model together; None for one alone.

    Args:
        model: Wrapped by DDP or by FSDP2's ``fully_shard`` itself, or with a module inside that is.

    Returns:
        None too where the group is of one process, or where no wrapper averages gradients: processes that only happen
        to share a launcher do not train one model.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    from torch.distributed.fsdp import (
        FSDPModule,
    )  # as long to load as a third of torch, and one process needs none

    for module in model.modules():  # of a compiled module, the original is a child
        if isinstance(module, DistributedDataParallel):
            size = module.process_group.size()
            return Ranks([module.process_group], size, module) if size > 1 else None
        if isinstance(module, FSDPModule):
            return _sharded(module)
    return None


def _sharded(module: nn.Module) -> Ranks | None:
    for p in module.parameters():
        mesh: Any = getattr(p, "device_mesh", None)
        if mesh is not None:
            groups = [mesh.get_group(dimension) for dimension in range(mesh.ndim)]
            return Ranks(groups, mesh.size(), None) if mesh.size() > 1 else None
    return None
