"""One seed for every generator."""

from __future__ import annotations

import random

import numpy as np
import torch

__all__ = ["seed_everything", "seed_host"]


def seed_everything(seed: int) -> None:
    """Seed PyTorch (all devices), NumPy's global generator and Python's.

    Args:
        seed: The seed of all three.

    Example:
        >>> seed_everything(0)
        >>> first = torch.rand(2).tolist(), random.random()
        >>> seed_everything(0)
        >>> first == (torch.rand(2).tolist(), random.random())
        True
    """
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - user code may draw from the global generator
    random.seed(seed)


def seed_host(seed: int) -> None:
    """Seed the generators that code on the CPU draws from: reading data must not start CUDA, as torch's own would.

    Args:
        seed: The seed of all three; NumPy takes its last 32 bits.
    """
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - datasets draw from the global generator
