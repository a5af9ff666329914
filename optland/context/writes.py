"""Turn writes to frozen parameters to copies, made when they are first written, of what nobody writes none.

A frozen base may be a thousand times as large as what is trained on top of it, so that a copy of all of it, only to
compare afterwards, would be what a probe costs most. Here each in-place function of Python is seen before it runs: a
frozen parameter that it would write is copied then, and this and all that follows works on the copy. The parameter
keeps its bits and its version counter.

**Caveat.** Writes by code that no Python function stands for (compiled modules, kernels of one's own) are not seen, nor
those to parameters that share their memory with others.
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
    """Has writes to these parameters go to copies.

    Args:
        params: The parameters.
        copied: Called with a parameter and its copy, as it is made.

    Attributes:
        written: The parameters that were to be written.

    Example:
        >>> w = torch.ones(2)
        >>> with WriteWatch([w], lambda p, copy: None) as watch:
        ...     print(w.data.mul_(3.0).tolist(), (w + 1).tolist())
        [3.0, 3.0] [4.0, 4.0]
        >>> w.tolist(), len(watch.written)
        ([1.0, 1.0], 1)
    """

    def __init__(self, params: Iterable[Tensor], copied: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.written: list[Tensor] = []
        self._copied = copied
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}  # by the address of the parameter
        self._at = {_address(p): p for p in params if _owns_its_memory(p)}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        if _writes(func, kwargs):
            self._copy([*args, *kwargs.values()])
        if self._copies:
            args, kwargs = self._redirected(args), {k: self._redirected(x) for k, x in kwargs.items()}
        return func(*args, **kwargs)

    def _copy(self, given: Iterable[Any]) -> None:
        for t in given:
            if isinstance(t, list | tuple):
                self._copy(t)
            elif isinstance(t, Tensor) and (p := self._at.pop(_address(t), None)) is not None:
                copy = p.detach().clone()
                self._copies[_address(p)] = p, copy
                self.written.append(p)
                self._copied(p, copy)

    def _redirected(self, x: Any) -> Any:
        """The copy in place of a written parameter, the same part of it in place of a view."""
        if type(x) in (list, tuple):
            return type(x)(self._redirected(item) for item in x)
        if not isinstance(x, Tensor) or (found := self._copies.get(_address(x))) is None:
            return x
        p, copy = found
        if x is p or x.dtype != p.dtype:
            return copy if x is p else x
        return copy.as_strided(x.size(), x.stride(), x.storage_offset() - p.storage_offset())


def _writes(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in _SETTERS or kwargs.get("out") is not None


def _owns_its_memory(p: Tensor) -> bool:
    return _address(p) != 0 and p.untyped_storage().nbytes() == p.numel() * p.element_size()


def _address(t: Tensor) -> int:
    """Where the memory begins; 0 for tensors that have none of their own."""
    try:
        return t.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # inside a transform, or another kind of tensor
        return 0
