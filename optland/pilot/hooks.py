"""The pilot's hooks around each optimizer step, which refuse a second pilot on the same optimizer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

__all__ = ["Hooks"]

_TAKEN: weakref.WeakSet[Optimizer] = weakref.WeakSet()


class Hooks:
    """Calls around every step of these optimizers.

    Args:
        optimizers: Each takes one pilot.
        before: Called with the optimizer and the arguments of its step, which it may replace.
        after: Called once the step is made, before any hook of the user's: those see the final weights.

    Raises:
        RuntimeError: An optimizer has a pilot already.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        before: Callable[[Optimizer, Any, Any], Any],
        after: Callable[[Optimizer, Any, Any], None],
    ) -> None:
        for optimizer in optimizers:
            if optimizer in _TAKEN:
                raise RuntimeError(
                    f"this {type(optimizer).__name__} has a pilot already, and two would steer against each other; "
                    "call close() on the first one, or make a new optimizer"
                )
        self._optimizers = list(optimizers)
        self._handles: list[Any] = []
        for optimizer in optimizers:
            _TAKEN.add(optimizer)
            self._handles.append(optimizer.register_step_pre_hook(before))
            handle = optimizer.register_step_post_hook(after)
            hooks: Any = optimizer._optimizer_step_post_hooks  # torch has no public way to put one first
            hooks.move_to_end(handle.id, last=False)
            self._handles.append(handle)

    def close(self) -> bool:
        """Take the hooks off; returns whether they were on.

        Returns:
            False where it was called before.
        """
        on = bool(self._handles)
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for optimizer in self._optimizers:
            _TAKEN.discard(optimizer)
        return on
