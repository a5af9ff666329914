"""Refuse what would take a pass over a part of the batch for one over the whole."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from optland.optim.base_step import BaseStep

__all__ = ["check_share", "refuse_part", "require_share", "takes_share"]


def check_share(share: float, name: str, *, gate: Any, of_class: bool, base: Optimizer) -> None:
    """Refuse a share that is none, and what does not go with one below 1.

    Args:
        share: ``ascent_share`` as it was given.
        name: Of the optimizer.
        gate: Its gate.
        of_class: Whether it is made in the class form.
        base: Its base.

    Raises:
        ValueError: As above.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"ascent_share={share} is not a share of the batch; use 0.25, or 1 for all of it")
    if share == 1.0:
        return
    if gate is not None:
        raise ValueError(
            f"ascent_share={share} with a gate: a step without a second pass would have the gradient of a part of the "
            "batch alone; leave one of them out"
        )
    if of_class:
        raise ValueError(
            f"ascent_share={share} in the class form: first_step() and second_step() know nothing of the batch; wrap "
            f"an instance, {name}(torch.optim.SGD(...), ascent_share={share})"
        )
    if BaseStep(base).needs_closure:
        raise ValueError(
            f"{type(base).__name__} reads the loss, and with ascent_share={share} that of w is known on a part of the "
            "batch alone; use ascent_share=1"
        )


def takes_share(closure: Callable[..., Any]) -> bool:
    """Whether a closure takes the share of the batch that it is called for, and not a thing that a loop hands it.

    Example:
        >>> takes_share(lambda share=1.0: None), takes_share(lambda: None), takes_share(lambda batch=(): None)
        (True, False, False)
    """
    signature = inspect.signature(closure)
    try:
        first = next(iter(signature.bind(1.0).arguments))
    except TypeError:
        return False
    default = signature.parameters[first].default
    return default is inspect.Parameter.empty or isinstance(default, int | float)


def require_share(closure: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The closure, if it takes the share of the batch that it is called for.

    Args:
        closure: ``closure(share=1.0)``; its signature is looked at, it is not called.
        name: Of the method, for the message.

    Raises:
        TypeError: It does not, and would run over all of the batch.
    """
    if not takes_share(closure):
        raise TypeError(
            f"{name}(ascent_share=...) calls the closure with the share of the batch that a pass is over, and this one "
            "takes none; write def closure(share=1.0), and run the forward pass over portion(batch, share), from "
            "optland.batches"
        )
    return closure


def refuse_part(optimizer: Any, whose: str) -> None:
    """Refuse a part of the batch where the first pass is somebody else's, over all of it.

    Args:
        optimizer: A two-pass optimizer.
        whose: Who makes it.

    Raises:
        ValueError: As above.
    """
    share = optimizer.method.ascent_share
    if share < 1.0:
        raise ValueError(
            f"ascent_share={share}: {whose} makes pass one over all of the batch, so nothing would be saved and the "
            "cost that is told would be wrong; leave ascent_share out, or write the loop with optimizer.passes()"
        )
