"""Save and restore the random state of PyTorch (CPU and all initialised accelerators), Python and NumPy together.

Two forms of it: :func:`rng_state` for files, and :class:`RandomSnapshot` for going back within a process.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optland.context.numpy_state import NumpyState

__all__ = ["RandomSnapshot", "load_rng_state", "preserve_rng", "rng_state", "seed_host"]


def rng_state() -> dict[str, Any]:
    """The state of all generators as tensors, lists and numbers only (loadable with ``weights_only``).

    Returns:
        ``torch``, ``python`` and ``numpy``, and ``cuda`` with one state for each device where CUDA is in use.

    Example:
        >>> state = rng_state()
        >>> drawn = torch.rand(())
        >>> load_rng_state(state)
        >>> bool(torch.rand(()) == drawn)
        True
    """
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
    if torch.cuda.is_initialized():
        return torch.cuda.get_rng_state_all()
    return None


def load_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` returned.

    Args:
        state: Without ``cuda`` the generators of CUDA stay as they are.
    """
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    NumpyState.last = None
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


class RandomSnapshot:
    """The state of all generators at this moment.

    Taking one costs about 20 us on a 3 GHz core, nearly all of it for the 624 words that Python gives out one by
    one, and putting it back about 7 us. Where somebody has drawn from NumPy's global generator since the last one,
    each costs another 90 us.

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
        self._numpy = NumpyState.now()
        self._cuda = _cuda_state()

    def restore(self) -> None:
        """Put all generators back to that moment, as often as wanted."""
        torch.default_generator.set_state(self._torch)
        random.setstate(self._python)
        self._numpy.restore()
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)

    def drawn_from(self) -> bool:
        """Whether one of PyTorch's generators has been drawn from since."""
        if not torch.equal(torch.default_generator.get_state(), self._torch):
            return True
        now = _cuda_state()
        if now is None or self._cuda is None:
            return False
        return not all(torch.equal(a, b) for a, b in zip(now, self._cuda, strict=True))


@contextmanager
def preserve_rng(seed: int | None = None) -> Iterator[None]:
    """Run a block with every generator seeded by ``seed`` (or as it is), and restore them afterwards.

    Args:
        seed: Of all generators inside; None leaves them where they are.

    Example:
        >>> with preserve_rng(0):
        ...     first = torch.rand(())
        >>> with preserve_rng(0):
        ...     print(bool(torch.rand(()) == first))
        True
    """
    saved = RandomSnapshot()
    try:
        if seed is not None:
            seed_host(seed)
            # torch.manual_seed would also queue the seed for a CUDA that is not initialised yet, and so reach past
            # the block.
            if torch.cuda.is_initialized():
                torch.cuda.manual_seed_all(seed)
        yield
    finally:
        saved.restore()


def seed_host(seed: int) -> None:
    """Seed the generators that code on the CPU draws from, and none of CUDA's, which that could start.

    Args:
        seed: The seed of PyTorch's, Python's and NumPy's global generator; NumPy takes its last 32 bits.
    """
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the user's code may draw from the global generator
