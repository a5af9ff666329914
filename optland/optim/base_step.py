"""Step the base optimizer, and hand it the loss of pass one where it needs one.

Some optimizers choose their step by the loss that ``step(closure)`` evaluates (Polyak's step, MoMo, ALI-G). They are
given a closure that returns what the user's returned in pass one and evaluates nothing: the gradient is in ``.grad``
already. That serves a base that evaluates where the weights are, as nearly all do. One that moves the weights first (a
line search, the closure variants of schedule-free) would take an old loss and an old gradient for those of another
point, and is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from optland import vectors

__all__ = ["UNTOLD", "BaseStep", "total"]

UNTOLD = object()
"""In the place of a loss: nobody has told it, as in phase form."""

_WATCHED = 3
"""First steps in which weights are compared bit for bit, as writes through ``.data`` leave no other trace. In the first
two steps of schedule-free optimizers both of their points are still the same."""


def total(losses: list[Any]) -> Any:
    """The loss of an update, given those of its micro-batches, each with its share in it; UNTOLD where one is.

    Args:
        losses: Numbers or tensors, None where a closure returned none.

    Returns:
        The sum, None where one is None; a single one as it is.

    Example:
        >>> total([1.0, 0.5]), total([1.0, None])
        (1.5, None)
    """
    if len(losses) == 1:
        return losses[0]
    if not losses or any(loss is UNTOLD for loss in losses):
        return UNTOLD
    return None if any(loss is None for loss in losses) else sum(losses)


class BaseStep:
    """Makes the base's step.

    Args:
        base: Any optimizer that takes one gradient per step.
    """

    def __init__(self, base: Optimizer) -> None:
        self._base = base
        self._takes, self.needs_closure = _use_of_closure(base)
        # PyTorch's own optimizers evaluate first, all but LBFGS, which is no base.
        self._trusted = type(base).step.__module__.startswith("torch.optim.")
        self._watched = _WATCHED

    def __call__(self, loss: Any, params: list[Tensor]) -> None:
        """Step.

        Args:
            loss: What the user's closure returned, or UNTOLD.
            params: The parameters, at w.

        Raises:
            RuntimeError: The base evaluated somewhere else; in its first steps the weights are put back.
        """
        if loss is UNTOLD or self._takes == "none":
            self._base.step()
            return
        told: Callable[[], Any] = lambda: loss  # noqa: E731
        if not self._trusted:
            told = _Told(loss, params, type(self._base).__name__, watched=self._watched > 0)
            self._watched = max(0, self._watched - 1)
        if self._takes == "keyword":
            self._base.step(closure=told)
        else:
            self._base.step(told)


class _Told:
    """The closure that a base is given."""

    def __init__(self, loss: Any, params: list[Tensor], base: str, *, watched: bool) -> None:
        self._loss, self._params, self._name = loss, params, base
        self._versions = [p._version for p in params]
        self._weights = vectors.clone(params) if watched else None

    def __call__(self) -> Any:
        if self._moved():
            if self._weights is not None:
                vectors.copy_(self._params, self._weights)
            raise RuntimeError(
                f"{self._name}.step(closure) evaluates the closure at other weights than it was given (a line search, "
                "or a closure variant of a schedule-free optimizer), so it cannot be the base of a two-pass method; "
                "use one that takes the gradient where the weights are"
            )
        return self._loss

    def _moved(self) -> bool:
        if [p._version for p in self._params] != self._versions:
            return True
        return self._weights is not None and not all(
            bool((p.eq(x) | p.isnan()).all()) for p, x in zip(self._params, self._weights, strict=True)
        )


def _use_of_closure(base: Optimizer) -> tuple[Literal["none", "positional", "keyword"], bool]:
    """How ``base.step`` takes a closure, and whether it has to have one."""
    found = list(inspect.signature(base.step).parameters.values())
    for place, parameter in enumerate(found):
        if parameter.name == "closure":
            keyword = place > 0 or parameter.kind is inspect.Parameter.KEYWORD_ONLY
            return "keyword" if keyword else "positional", parameter.default is inspect.Parameter.empty
    handed_on = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in found)
    return "positional" if handed_on else "none", False
