"""Random state of PyTorch (CPU and every initialised accelerator), Python and NumPy as one thing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["load_rng_state", "preserve_rng", "rng_state"]


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
    # Asking an uninitialised CUDA for its state would initialise it, which a CPU run must not pay for.
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def load_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` returned."""
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def preserve_rng(seed: int | None = None) -> Iterator[None]:
    """Run a block with every generator seeded by ``seed`` (or as it is), and restore them afterwards."""
    saved = rng_state()
    try:
        if seed is not None:
            _seed_all(seed)
        yield
    finally:
        load_rng_state(saved)


def _seed_all(seed: int) -> None:
    # torch.manual_seed would also queue the seed for a CUDA that is not initialised yet, and so reach past
    # the block.
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
