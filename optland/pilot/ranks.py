"""Agreement of several processes that train one model: they see the same numbers, so they decide the same.

Once per update, where the gradient is there, the scalars of all ranks meet in one all-reduce: the loss as a sum and a
count, whether a gradient is not finite anywhere (a NaN may live in one shard), and everything else as rank 0 has it.
Which probes are due is among that. A probe of the batch is measured by all ranks together, each with its replica on its
own batch, where the pilot is given DDP's wrapper: the numbers of one process with the whole batch, in the time of one
rank's part. Any other probe runs on rank 0 alone, which tells the others what came of it. A model that is sharded is
evaluated by all ranks together, whatever the probe. Snapshots are those of each rank, or of its shards. A fingerprint
of the decisions goes along, and ranks that differ are an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from optland.ranks import ranks_of

__all__ = ["Ranks"]


class Ranks:
    """The processes of a run.

    Args:
        model: What they train.
        wrapped: The same with what is around it; None for nothing.

    Attributes:
        size: How many they are.
        rank: Which of them this is.
        replicas: DDP's wrapper of the model, through which they can measure together; None where none is known.
        evaluate_together: Whether a forward pass of one waits for the others, so that all of them run every probe.
        synced_norms: Whether layers share statistics in train mode; then nobody probes.
    """

    def __init__(self, model: nn.Module, wrapped: nn.Module | None = None) -> None:
        distributed = torch.distributed
        several = distributed.is_available() and distributed.is_initialized()
        self.size = distributed.get_world_size() if several else 1
        self.rank = distributed.get_rank() if several else 0
        kinds = [type(m) for m in model.modules()] if self.several else []
        self.evaluate_together = bool(kinds) and _any_sharded(kinds)
        self.synced_norms = any(issubclass(kind, nn.SyncBatchNorm) for kind in kinds)
        found = ranks_of(wrapped or model) if self.several else None
        whole = found is not None and found.size == self.size
        self.replicas = found.replicas if found is not None and whole else None

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self.size > 1

    @property
    def leads(self) -> bool:
        """Whether this one logs, and what it measures counts."""
        return self.rank == 0

    def measures(self, *, joint: bool) -> bool:
        """Whether this one takes part in a probe.

        Args:
            joint: Whether replicas can measure it together.
        """
        return self.leads or self.evaluate_together or (joint and self.replicas is not None)

    def agree(self, numbers: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers as rank 0 has them, and the sums over all; one transfer between the processes.

        Args:
            numbers: In the same order on every rank.
            sums: Likewise.

        Returns:
            Two float64 vectors where there are several ranks; as they were given where there is one.
        """
        if not self.several:
            return numbers, sums
        mine = numbers if self.leads else torch.zeros_like(numbers)
        both = torch.cat([mine.double(), sums.double()])
        torch.distributed.all_reduce(both)
        return both[: len(numbers)], both[len(numbers) :]

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether it is so on any rank.

        Args:
            here: Whether it is so on this one.
            device: Where the processes meet.
        """
        if not self.several:
            return here
        flag = torch.tensor(float(here), device=device)
        torch.distributed.all_reduce(flag)
        return bool(flag > 0)

    def gathered(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order."""
        if not self.several:
            return [value]
        held: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(held, value)
        return held

    def from_first(self, what: Any) -> Any:
        """The value of rank 0, on every rank."""
        if not self.several:
            return what
        held = [what]
        torch.distributed.broadcast_object_list(held, src=0)
        return held[0]


def _any_sharded(kinds: list[type[nn.Module]]) -> bool:
    from torch.distributed.fsdp import FSDPModule  # long to load, and one process needs none

    return any(issubclass(kind, FSDPModule) for kind in kinds)
