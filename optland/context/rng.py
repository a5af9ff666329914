"""Random state of PyTorch (CPU and every initialised accelerator), Python and NumPy as one thing.

Two forms of it: :func:`rng_state` for files, and :class:`RandomSnapshot` for going back within a process, twenty times
faster, since a step of a small net takes no longer than NumPy takes to give out its state and take it back.
"""

from __future__ import annotations

import _random
import ctypes
import platform
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator
from torch import Tensor

__all__ = ["RandomSnapshot", "load_rng_state", "preserve_rng", "rng_state"]


def rng_state() -> dict[str, Any]:
    """The state of all generators as tensors, lists and numbers only (loadable with ``weights_only``)."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(words), gauss],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            position,
            has_gauss,
            cached,
        ],
    }
    if (cuda := _cuda_state()) is not None:
        state["cuda"] = cuda
    return state


def _cuda_state() -> list[Tensor] | None:
    # Asking an uninitialised CUDA for its state would initialise it, which a CPU run must not pay for.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.get_rng_state_all()
    return None


def load_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` returned."""
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    _NumPyState.forget()
    _PythonState.forget()
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


class RandomSnapshot:
    """The state of all generators at this moment.

    Example:
        >>> start = RandomSnapshot()
        >>> drawn = random.random()
        >>> start.restore()
        >>> random.random() == drawn
        True
    """

    __slots__ = ("_cuda", "_numpy", "_python", "_torch")

    def __init__(self) -> None:
        self._torch = torch.default_generator.get_state()
        self._python = _PythonState.now()
        self._numpy = _NumPyState.now()
        self._cuda = _cuda_state()

    def restore(self) -> None:
        """Put all generators back to that moment, as often as wanted."""
        torch.default_generator.set_state(self._torch)
        self._python.restore()
        self._numpy.restore()
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)


class _Watched:
    """The state of a Mersenne twister, copied in full only when it is another than the last one seen.

    Python and NumPy give out their 624 words one by one, which takes 10 and 100 us. Where the words lie in memory,
    whether they have changed is seen in one, and mostly they have not. They are not quite all: of a pair of normal
    numbers the second is kept aside, and using it up leaves the words as they are. A state with one kept aside is
    therefore always copied.
    """

    __slots__ = ("aside", "full", "words")

    _last: ClassVar[_Watched | None] = None

    def __init__(self, words: bytes | None) -> None:
        self.words = words
        self.full, self.aside = self._copy()

    @classmethod
    def now(cls) -> Self:
        """The present state."""
        words, last = cls._look(), cls._last
        if not isinstance(last, cls) or not last._is_told_by(words):
            cls._last = last = cls(words)
        return last

    @classmethod
    def forget(cls) -> None:
        """A state was loaded: with the same words it may have another number kept aside."""
        cls._last = None

    def restore(self) -> None:
        """Make it the present state."""
        if not self._is_told_by(self._look()):
            self._put_back()

    def _is_told_by(self, words: bytes | None) -> bool:
        return words is not None and words == self.words and not self.aside

    @staticmethod
    def _look() -> bytes | None:
        """The words with the position in them; None where they cannot be read."""
        raise NotImplementedError

    @staticmethod
    def _copy() -> tuple[Any, bool]:
        """The full state, and whether a number is kept aside."""
        raise NotImplementedError

    def _put_back(self) -> None:
        raise NotImplementedError


_SIZE = 4 * (624 + 1)
"""Bytes of the words and the position."""


class _NumPyState(_Watched):
    """NumPy's global generator; where its words lie is public (``BitGenerator.ctypes``)."""

    __slots__ = ()

    @staticmethod
    def _look() -> bytes | None:
        generator = get_bit_generator()
        if not isinstance(generator, np.random.MT19937):  # the user has put another one there
            return None
        return ctypes.string_at(generator.ctypes.state_address, _SIZE)

    @staticmethod
    def _copy() -> tuple[Any, bool]:
        full: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002
        return full, bool(full["has_gauss"])

    def _put_back(self) -> None:
        np.random.set_state(self.full)  # noqa: NPY002


class _PythonState(_Watched):
    """Python's global generator; that its words lie behind the object's head is checked once, at import."""

    __slots__ = ()

    @staticmethod
    def _look() -> bytes | None:
        return ctypes.string_at(_PYTHON_WORDS, _SIZE) if _PYTHON_WORDS else None

    @staticmethod
    def _copy() -> tuple[Any, bool]:
        full = random.getstate()
        return full, full[2] is not None

    def _put_back(self) -> None:
        random.setstate(self.full)


_PYTHON = getattr(random.getstate, "__self__", None)


def _python_words(generator: Any) -> int | None:
    """Where the position and the words of a generator of Python's lie, or None where that is not known."""
    if not isinstance(generator, random.Random) or platform.python_implementation() != "CPython":
        return None
    address = id(generator) + object.__basicsize__
    if _random.Random.__basicsize__ < object.__basicsize__ + _SIZE:
        return None
    position, *words = struct.unpack("625I", ctypes.string_at(address, _SIZE))
    return address if (*words, position) == generator.getstate()[1] else None


_PYTHON_WORDS = _python_words(_PYTHON)


@contextmanager
def preserve_rng(seed: int | None = None) -> Iterator[None]:
    """Run a block with every generator seeded by ``seed`` (or as it is), and restore them afterwards."""
    saved = RandomSnapshot()
    try:
        if seed is not None:
            _seed_all(seed)
        yield
    finally:
        saved.restore()


def _seed_all(seed: int) -> None:
    # torch.manual_seed would also queue the seed for a CUDA that is not initialised yet, and so reach past
    # the block.
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
