"""Keeping steps out of the compiler.

A two-pass step moves weights, changes gradients and reads scalars between two passes. ``torch.compile`` of a function
that holds one would trace into it, and what the engine knows about a step in flight does not survive a graph break
inside it. So the compiler stops at each entry point, runs it as it is written, and goes on after it: what is compiled
of a training loop is the model and the loss, which is where the time goes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import ParamSpec, TypeVar

import torch

__all__ = ["uncompiled", "uncompiled_block"]

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def uncompiled(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """``torch.compiler.disable``, with the compiler loaded at the first call and not at the import of the package.

    By then it is there: torch's own optimizers load it when they are made.
    """
    disabled: list[Callable[_Given, _Result]] = []

    @functools.wraps(function)
    def outside(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return outside


def uncompiled_block(
    manager: Callable[_Given, AbstractContextManager[None]],
) -> Callable[_Given, AbstractContextManager[None]]:
    """The same for a function that returns a context manager: the block may be compiled, its two ends are not."""

    @functools.wraps(manager)
    def block(*args: _Given.args, **kwargs: _Given.kwargs) -> AbstractContextManager[None]:
        return _Block(manager(*args, **kwargs))

    return uncompiled(block)


class _Block(AbstractContextManager[None]):
    def __init__(self, manager: AbstractContextManager[None]) -> None:
        self._manager = manager

    @uncompiled
    def __enter__(self) -> None:
        self._manager.__enter__()

    @uncompiled
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._manager.__exit__(kind, error, trace)
