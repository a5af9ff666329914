"""A step taken back: the weights, the buffers and the optimizer state as they were before it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Undo"]


class Undo:
    """Keeps what one step changes, in memory that is reused from step to step.

    Args:
        optimizer: Its state entries are copied, not its groups: learning rates belong to the schedule.
        model: Its parameters and buffers are copied.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        self.optimizer = optimizer
        self.model = model
        self._weights: list[Tensor] | None = None
        self._state: dict[Tensor, dict[str, Any]] = {}

    def _tensors(self) -> list[Tensor]:
        held = {id(t): t for t in [*self.model.parameters(), *self.model.buffers()]}
        held |= {id(p): p for group in self.optimizer.param_groups for p in group["params"]}
        return list(held.values())

    @torch.no_grad()
    def take(self) -> None:
        """Remember the present state."""
        tensors = self._tensors()
        if self._weights is None or len(self._weights) != len(tensors):
            self._weights = [t.detach().clone() for t in tensors]
        else:
            for kept, t in zip(self._weights, tensors, strict=True):
                kept.copy_(t)
        self._state = {
            p: {key: _copied(value, self._state.get(p, {}).get(key)) for key, value in entry.items()}
            for p, entry in self.optimizer.state.items()
        }

    @torch.no_grad()
    def back(self) -> None:
        """Put back what :meth:`take` remembered, bit for bit.

        Raises:
            RuntimeError: Nothing was remembered.
        """
        if self._weights is None:
            raise RuntimeError("no step has been remembered; call take() before the step")
        for t, kept in zip(self._tensors(), self._weights, strict=True):
            t.copy_(kept)
        state = self.optimizer.state
        for p in list(state):
            if p not in self._state:
                del state[p]
                continue
            state[p] = {key: _copied(value, state[p].get(key)) for key, value in self._state[p].items()}


def _copied(value: Any, memory: Any) -> Any:
    """A copy of ``value``, in the tensor ``memory`` where that fits."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if isinstance(memory, Tensor) and memory.shape == value.shape and memory.dtype == value.dtype:
        return memory.copy_(value)
    return value.detach().clone()
