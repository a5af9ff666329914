"""Notice writes to frozen parameters before they happen, and undo them, without copies of what nobody writes.

A frozen base may be a thousand times as large as what is trained on top of it, so that a copy of all of it, only to
compare afterwards, would be what a probe costs most. Here each in-place function of Python is seen before it runs; a
frozen parameter that it would write is copied then, and put back at the end.

**Caveats.** What is put back has its bits again, and not its version counter. Writes by code that no Python function
stands for (compiled modules, kernels of one's own) are not seen before they happen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["WriteWatch"]

_SETTERS = {
    "__setitem__",
    "__set__",
    "__iadd__",
    "__isub__",
    "__imul__",
    "__itruediv__",
    "__ior__",
    "__iand__",
}


class WriteWatch(TorchFunctionMode):
    """Keeps a copy of each of these parameters from the moment before it is written first.

    Args:
        params: The parameters.

    Attributes:
        kept: Copies of those that were written.

    Example:
        >>> w = torch.ones(2)
        >>> with WriteWatch([w]) as watch:
        ...     _ = w.data.mul_(3.0)
        >>> watch.put_back()
        >>> w.tolist(), len(watch.kept)
        ([1.0, 1.0], 1)
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__()
        self._at: dict[int, list[Tensor]] = {}
        for p in params:
            self._at.setdefault(_address(p), []).append(p)
        self.kept: dict[Tensor, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.compiler.is_compiling() and _writes(func, kwargs):
            self._keep([*args, *kwargs.values()])
        return func(*args, **kwargs)

    def _keep(self, given: Iterable[Any]) -> None:
        for t in given:
            if isinstance(t, list | tuple):
                self._keep(t)
            elif isinstance(t, Tensor):
                for p in self._at.get(_address(t), []):
                    if p not in self.kept:
                        self.kept[p] = p.detach().clone()

    def put_back(self) -> None:
        """Restore what was written, bit for bit."""
        for p, kept in self.kept.items():
            p.data.copy_(kept)


def _writes(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in _SETTERS or kwargs.get("out") is not None


def _address(t: Tensor) -> int:
    """Where the memory begins; 0 for tensors that have none of their own."""
    try:
        return t.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # inside a transform, or another kind of tensor
        return 0
