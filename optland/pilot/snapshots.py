"""Snapshots of a run for a rewind: two states, in the memory of the host.

One is *recent*, taken every ``max(5, T / 20)`` updates; the other is *old*: the recent one replaces it once it lies
further back than half of the run so far, and until then it is the start. Trouble shows late in an average over losses,
so a recent one that is younger than that may hold the damage already, as may one that a rewind has gone back to before:
then the old one is taken. The learning rates and other options of the groups stay as they are: they belong to the
schedule, and the schedule does not go back.

A snapshot holds the trained parameters, the floating-point buffers, and the optimizer's state of those parameters.
Tensors are written back in place: a captured graph, or a view, keeps its memory.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["DOUBT", "Snapshots"]

DOUBT = 20
"""Updates after which damage shows in an average over ten losses."""


class Snapshots:
    """The two states of a run that a rewind may go back to.

    Attributes:
        recent: The newest, None until the first is taken.
        old: The one further back; the start at first, None before it.
    """

    def __init__(self) -> None:
        self.recent: dict[str, Any] | None = None
        self.old: dict[str, Any] | None = None
        self._spent = False  # whether a rewind has gone back to the recent one

    def take(
        self,
        step: int,
        mark: dict[str, float],
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        optimizers: Sequence[Optimizer],
    ) -> None:
        """Store the present state.

        Args:
            step: Updates made.
            mark: The guard's record of losses that belongs to it.
            params: Trained parameters by name.
            buffers: Floating-point buffers by name.
            optimizers: Whose state of these parameters is kept.
        """
        memory: dict[str, Any] = {}
        if self.recent is not None:
            if self.old is None or 2 * self.old["step"] < step:
                self.old, memory = self.recent, self.old or {}
            else:
                memory = self.recent
        state = {name: state_of(p, optimizers) for name, p in params.items()}
        taken = {
            "step": step,
            "mark": dict(mark),
            "params": _to_host(params, memory.get("params", {})),
            "buffers": _to_host(buffers, memory.get("buffers", {})),
            "state": {name: _to_host(s, memory.get("state", {}).get(name, {})) for name, s in state.items()},
        }
        if self.old is None:
            self.old = taken
        else:
            self.recent, self._spent = taken, False

    def choose(self, step: int, dead_for: int = 0) -> dict[str, Any]:
        """The state to go back to from ``step``, where the net has been dead for so many updates.

        Args:
            step: Updates made.
            dead_for: Updates that the net has been dead for, 0 where it is not.

        Returns:
            The recent one where it is older than 20 updates and than ``dead_for``, and no rewind has used it; else the
            old one.

        Raises:
            RuntimeError: Nothing has been stored.
        """
        if self.old is None:
            raise RuntimeError("there is no snapshot to go back to")
        recent = self.recent
        if recent is None or self._spent or recent["step"] > step - max(DOUBT, dead_for):
            self.recent = None
            return self.old
        self._spent = True
        return recent

    @torch.no_grad()
    def restore(
        self,
        snapshot: Mapping[str, Any],
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        optimizers: Sequence[Optimizer],
    ) -> None:
        """Write a snapshot back into the tensors of the run, in place; what it does not hold stays.

        Args:
            snapshot: One of :attr:`recent` and :attr:`old`.
            params: Trained parameters by name, as they are now.
            buffers: Floating-point buffers by name.
            optimizers: Whose state of these parameters is written, or removed where there was none yet.
        """
        for kind, present in (("params", params), ("buffers", buffers)):
            for name, kept in snapshot[kind].items():
                if name in present and _local(present[name]).shape == kept.shape:
                    _local(present[name]).copy_(kept)
        for name, p in params.items():
            if name in snapshot["state"]:
                owner = next(
                    (o for o in optimizers if any(q is p for g in o.param_groups for q in g["params"])), None
                )
                if owner is not None:
                    _put_back(owner, p, snapshot["state"][name])

    def state_dict(self) -> dict[str, Any]:
        """The snapshots themselves: after a resume a rewind must find the same ones."""
        return {"recent": self.recent, "old": self.old, "spent": self._spent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.recent, self.old, self._spent = state["recent"], state["old"], state["spent"]


def state_of(p: Tensor, optimizers: Sequence[Optimizer]) -> Mapping[str, Any]:
    """The optimizers' state of a parameter.

    Args:
        p: The parameter.
        optimizers: The first that has a state of it counts.

    Returns:
        The entry itself, not a copy; empty before the first step.
    """
    return next((o.state[p] for o in optimizers if p in o.state), {})


def _local(tensor: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _to_host(values: Mapping[str, Any], memory: Mapping[str, Any]) -> dict[str, Any]:
    """Copies in the host's memory, in the tensors of ``memory`` where they fit."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(value, Tensor):
            found[name] = copy.deepcopy(value)
            continue
        local = _local(value.detach())
        kept = memory.get(name)
        if isinstance(kept, Tensor) and kept.shape == local.shape and kept.dtype == local.dtype:
            found[name] = kept.copy_(local)
        else:
            found[name] = local.to("cpu", copy=True)
    return found


def _put_back(optimizer: Optimizer, p: Tensor, kept: Mapping[str, Any]) -> None:
    """Write a parameter's state back: into the tensors that are there, removing what did not exist yet."""
    if not kept:
        optimizer.state.pop(p, None)
        return
    entry = optimizer.state[p]
    for key in [key for key in entry if key not in kept]:
        del entry[key]
    for key, value in kept.items():
        there = entry.get(key)
        both = isinstance(value, Tensor) and isinstance(there, Tensor)
        if both and _local(there).shape == value.shape:
            _local(there).copy_(value)
        elif isinstance(value, Tensor):
            # Step counters of Adam live on the host, moments beside their parameter.
            entry[key] = value.clone() if value.ndim == 0 else value.to(p.device, copy=True)
        else:
            entry[key] = copy.deepcopy(value)
