"""The processes that share a model's gradients, and sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Ranks", "ranks_of"]


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

    def total(self, values: Sequence[float | Tensor], device: torch.device) -> list[float]:
        """The sum of each value over all processes, in float64."""
        at_hand = [v.detach() if isinstance(v, Tensor) else torch.tensor(v) for v in values]
        summed = torch.stack([v.to(device, torch.float64) for v in at_hand])
        for group in self.groups:
            torch.distributed.all_reduce(summed, group=group)
        return [float(v) for v in summed.tolist()]

    def unsynced(self) -> AbstractContextManager[None]:
        """Forward and backward passes whose gradients stay on this rank for now; shards are shared at once."""
        return nullcontext() if self.replicas is None else self.replicas.no_sync()

    def planned(self, here: float, parts: int) -> float:
        """A count to divide by before the whole is known: this rank's own, where its gradients stay here."""
        return here * self.size if self.replicas is not None else float(parts)

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether a flag is true in any of the processes."""
        return self.total([float(here)], device)[0] > 0


def ranks_of(model: nn.Module) -> Ranks | None:
    """The processes that the next backward pass averages over; None for one alone, or under ``no_sync()``."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    for module in model.modules():  # of a compiled module, the original is a child
        if isinstance(module, DistributedDataParallel):
            size = module.process_group.size()
            shared = size > 1 and module.require_backward_grad_sync
            return Ranks([module.process_group], size, module) if shared else None
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
