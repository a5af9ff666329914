"""Wrap the closure of a step, to act once its first evaluation has made the gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

__all__ = ["with_each_call"]


def with_each_call(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    first: Callable[[bool], None],
    failed: Callable[[], object],
) -> Any:
    """The arguments of a step with its closure wrapped; ``first`` is called at once where it has none.

    Args:
        args: Positional arguments of the step, the optimizer itself among them.
        kwargs: Its keyword arguments.
        first: Called once the gradient is there and nothing has used it; with whether a closure has made it just now.
        failed: Called where the closure raises, an interrupt too: many loops then save a checkpoint.

    Returns:
        New arguments for the step; None where it has no closure.
    """
    at = next((i for i, x in enumerate(args) if callable(x) and not isinstance(x, Optimizer)), None)
    closure = kwargs.get("closure") if at is None else args[at]
    if closure is None:
        first(False)
        return None
    called = False

    @functools.wraps(closure)  # with its signature, which says whether it takes the share of a pass
    def evaluated(*given: Any) -> Any:
        nonlocal called
        try:
            loss = closure(*given)
        except BaseException:
            failed()
            raise
        if not called:
            called = True
            first(True)
        return loss

    if at is None:
        return args, kwargs | {"closure": evaluated}
    return (*args[:at], evaluated, *args[at + 1 :]), kwargs
