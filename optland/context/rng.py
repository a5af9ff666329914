"""Random state of PyTorch (CPU and every initialised accelerator), Python and NumPy as one thing.

Two forms of it: :func:`rng_state` for files, and :class:`RandomSnapshot` for going back within a process, twenty times
faster, since a step of a small net takes no longer than NumPy takes to give out its state and take it back.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
        self._python = random.getstate()
        self._numpy = _NumPyState.now()
        self._cuda = _cuda_state()

    def restore(self) -> None:
        """Put all generators back to that moment, as often as wanted."""
        torch.default_generator.set_state(self._torch)
        random.setstate(self._python)
        self._numpy.restore()
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)


class _NumPyState:
    """The state of NumPy's global generator, copied through NumPy only when it is another than the last one seen.

    NumPy copies its 624 words one by one, which takes 0.1 ms. Where they lie in memory is public
    (``BitGenerator.ctypes``), so whether they have changed can be seen in a microsecond, and mostly they have not. They
    are not quite all: of a pair of normal numbers the second is kept aside, and using it up leaves the words as they
    are. A state with one kept aside is therefore always copied.
    """

    __slots__ = ("full", "words")

    _last: _NumPyState | None = None

    def __init__(self, words: bytes | None) -> None:
        self.words = words
        self.full: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002

    @classmethod
    def now(cls) -> _NumPyState:
        """The present state."""
        words, last = _numpy_words(), cls._last
        if last is None or not last._is_told_by(words):
            cls._last = last = cls(words)
        return last

    @classmethod
    def forget(cls) -> None:
        """A state was loaded: with the same words it may have another number kept aside."""
        cls._last = None

    def restore(self) -> None:
        """Make it the present state."""
        if not self._is_told_by(_numpy_words()):
            np.random.set_state(self.full)  # noqa: NPY002

    def _is_told_by(self, words: bytes | None) -> bool:
        return words is not None and words == self.words and not self.full["has_gauss"]


def _numpy_words() -> bytes | None:
    """Key and position of NumPy's global Mersenne twister; None where the user has put another generator there."""
    generator = get_bit_generator()
    if not isinstance(generator, np.random.MT19937):
        return None
    return ctypes.string_at(generator.ctypes.state_address, 4 * (624 + 1))


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
