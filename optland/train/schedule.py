"""Schedules over samples instead of steps: they end where the data end, whatever the batch size does."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from optland.train.loader import BatchLoader

__all__ = ["cosine_schedule", "cosine_shape"]


def cosine_shape(progress: float, warmup: float = 0.05) -> float:
    """Linear from 0 to 1 over the first ``warmup`` of the run, then half a cosine to 0 at its end.

    Example:
        >>> [round(cosine_shape(p), 3) for p in (0.025, 0.05, 0.525, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return max(progress, 0.0) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min((progress - warmup) / (1.0 - warmup), 1.0)))


def cosine_schedule(optimizer: Optimizer, loader: BatchLoader, warmup: float = 0.05) -> LambdaLR:
    """Cosine decay with warm-up, read at the middle of the batch to come."""

    def factor(_: int) -> float:
        return cosine_shape((loader.samples_served + 0.5 * loader.batch_size) / loader.total_samples, warmup)

    return LambdaLR(optimizer, factor)
