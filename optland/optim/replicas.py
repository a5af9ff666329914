"""Average gradients over ranks that DistributedDataParallel's ``no_sync()`` has left unreduced.

A forward pass decides: after one under ``no_sync()`` the backward pass reduces nothing. What the base then receives
differs from rank to rank, and nothing would bring the replicas together again. So the engine takes the mean over the
ranks itself, once per update, of what is not shared by then: the same number as with a reduction in every backward
pass, for one of them.

Under DistributedDataParallel both forms give the numbers of the large batch in one process, and
under FSDP2 too. Under ``no_sync()``, around forward *and* backward, a gradient is this rank's own, and with it eps:
m-sharpness, and a synchronisation less. What is still this rank's own when the base is to have it is averaged over the
ranks first, once per update, so that all micro-batches of ``accumulate()`` may run without synchronisation, or pass one
alone in phase form. Replicas never drift apart; refused are pass one alone for methods that combine both gradients, and
any pass one of this rank's own for methods that remember something of it (F-SAM, VaSSO, LookSAM, sparse SAM) and for
gates that ask for its length. The wrapper is found in ``model=``, or among all live objects (but for those that
``gc.freeze`` has put away). Under FSDP2 ``set_requires_gradient_sync(False)`` is for micro-batches that share one eps.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from optland import vectors
from optland.optim.alive import instances

__all__ = ["Replicas"]

_SYNC = "require_backward_grad_sync"
"""DistributedDataParallel's attribute, which ``no_sync()`` of it, of Lightning Fabric and of Accelerate sets."""


class _LastForward:
    """Forward pre-hook that notes whether the gradients of the last forward pass will be reduced."""

    def __init__(self) -> None:
        self.synced = True

    def __call__(self, net: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            self.synced = bool(getattr(net, _SYNC))

    # A copy of the net has no step of this optimizer; its hook has nothing to tell.
    def __reduce__(self) -> tuple[type[_LastForward], tuple[()]]:
        return _LastForward, ()


class Replicas:
    """The wrappers that reduce the gradients of some parameters.

    They are those within ``model=``; in a process group without any there, all that are alive are looked through, when
    the optimizer is made and once more at its first step.
    """

    def __init__(self) -> None:
        self._nets: list[tuple[nn.Module, _LastForward]] = []
        self._searches = 2

    def find(self, params: Sequence[Tensor], model: nn.Module | None) -> None:
        """Look for the wrappers, unless they are known.

        Args:
            params: Of the optimizer.
            model: Looked through first; None looks through all wrappers that are alive, in a process group.
        """
        if self._nets or not self._searches:
            return
        self._searches -= 1
        found = [] if model is None else [net for net in model.modules() if _SYNC in net.__dict__]
        if not found and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            ours = {id(p) for p in params}
            nets = instances(DistributedDataParallel)
            found = [net for net in nets if any(id(p) in ours for p in net.parameters())]
        for net in found:
            note = _LastForward()
            handle = net.register_forward_pre_hook(note)
            weakref.finalize(self, handle.remove).atexit = False
            self._nets.append((net, note))

    @property
    def apart(self) -> bool:
        """Whether the last forward pass leads to gradients of this rank alone."""
        return bool(self._nets) and any(not note.synced for _, note in self._nets)

    @torch.no_grad()
    def mean(self, params: Sequence[Tensor], values: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The mean over the ranks of something that parameters have; None stays where no rank has it, else it is 0.

        Args:
            params: The parameters.
            values: One for each, in its shape; the same ones have to be asked for on every rank.
        """
        means = list(values)
        for net, _ in self._nets:
            own = {id(p) for p in net.parameters()}
            where = [i for i, p in enumerate(params) if id(p) in own]
            group = getattr(net, "process_group", None)
            for i, mean in _means([params[i] for i in where], [values[i] for i in where], group).items():
                means[where[i]] = mean
        return means

    def __getstate__(self) -> dict[str, Any]:
        return {"_nets": [], "_searches": 2}  # a copy looks for itself


def _means(params: list[Tensor], values: list[Tensor | None], group: Any) -> dict[int, Tensor]:
    if not params:
        return {}
    counts = torch.tensor([x is not None for x in values], dtype=torch.int32, device=params[0].device)
    dist.all_reduce(counts, group=group)
    used = [i for i, count in enumerate(counts.tolist()) if count]
    # Copies: .grad may be a view into a bucket of DistributedDataParallel, and a reduction needs contiguous memory.
    sums = [
        (torch.zeros_like(params[i]) if (x := values[i]) is None else x).clone(
            memory_format=torch.contiguous_format
        )
        for i in used
    ]
    for work in [dist.all_reduce(x, group=group, async_op=True) for x in sums]:
        work.wait()
    return dict(zip(used, vectors.scaled(1.0 / dist.get_world_size(group), sums), strict=True))
