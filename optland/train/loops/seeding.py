"""One seed for every generator."""

from __future__ import annotations

import torch

from optland.context.rng import seed_host

__all__ = ["seed_everything"]


def seed_everything(seed: int) -> None:
    """Seed PyTorch (all devices), NumPy's global generator and Python's.

    Args:
        seed: The seed of all three.

    Example:
        >>> import random
        >>> seed_everything(0)
        >>> first = torch.rand(2).tolist(), random.random()
        >>> seed_everything(0)
        >>> first == (torch.rand(2).tolist(), random.random())
        True
    """
    torch.manual_seed(seed)
    seed_host(seed)
