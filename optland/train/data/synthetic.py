"""Data made from a seed: a teacher network's labels, which can be learned, and noise, which cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from optland.train.data.raw import RawImages

if TYPE_CHECKING:
    from optland.train.data.config import DataConfig

__all__ = ["FAKE_SIZE", "NUM_CLASSES", "NUM_SAMPLES", "TEACHER_SIZE", "fake", "teacher"]

NUM_SAMPLES, NUM_CLASSES = 5_000, 10
TEACHER_SIZE, FAKE_SIZE = 8, 32

_HIDDEN = 32


def teacher(config: DataConfig) -> RawImages:
    """Gaussian images ``(n, 1, s, s)`` labelled by a random network with one hidden layer.

        y = argmax standardised(A tanh(B x)),    x ~ N(0, 1),  B ~ N(0, 1/s^2),  A ~ N(0, 1)

    Each output is standardised over the samples, so no class is rare. All is drawn from ``config.seed``.
    """
    side, classes, n = _sizes(config, TEACHER_SIZE)
    generator = torch.Generator().manual_seed(config.seed)
    first = torch.randn(side * side, _HIDDEN, generator=generator) / side
    second = torch.randn(_HIDDEN, classes, generator=generator)
    x = torch.randn(n, 1, side, side, generator=generator)
    outputs = torch.tanh(x.flatten(1) @ first) @ second
    labels = ((outputs - outputs.mean(dim=0)) / outputs.std(dim=0)).argmax(dim=1)
    return RawImages(x, labels, classes, num_test=n // 5)


def fake(config: DataConfig) -> RawImages:
    """Random colour images ``(n, 3, s, s)`` of bytes with random labels: there is nothing to learn but by heart."""
    side, classes, n = _sizes(config, FAKE_SIZE)
    generator = torch.Generator().manual_seed(config.seed)
    x = torch.randint(256, (n, 3, side, side), generator=generator, dtype=torch.uint8)
    return RawImages(x, torch.randint(classes, (n,), generator=generator), classes, num_test=n // 5)


def _sizes(config: DataConfig, side: int) -> tuple[int, int, int]:
    """Side of the images, classes and samples, with the defaults filled in."""
    return (
        config.image_size or side,
        config.num_classes or NUM_CLASSES,
        config.num_samples or NUM_SAMPLES,
    )
