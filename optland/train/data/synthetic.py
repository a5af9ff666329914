"""Data made from a seed: a teacher network's labels, which can be learned, and noise, which cannot."""

from __future__ import annotations

import torch

from optland.train.data.raw_images import RawImages

__all__ = ["FAKE_SIZE", "NUM_CLASSES", "NUM_SAMPLES", "TEACHER_SIZE", "fake", "teacher"]

NUM_SAMPLES, NUM_CLASSES = 5_000, 10
TEACHER_SIZE, FAKE_SIZE = 8, 32

_HIDDEN = 32


def teacher(image_size: int | None, num_samples: int | None, num_classes: int | None, seed: int) -> RawImages:
    """Gaussian images ``(n, 1, s, s)`` labelled by a random network with one hidden layer.

        y = argmax standardised(A tanh(B x)),    x ~ N(0, 1),  B ~ N(0, 1/s^2),  A ~ N(0, 1)

    Each output is standardised over the samples, so no class is rare. All is drawn from ``seed``.

    Args:
        image_size: Pixels per side; None takes 8.
        num_samples: Samples; None takes 5000.
        num_classes: Classes; None takes 10.
        seed: Seed.

    Returns:
        Images, float32, and labels; a fifth, drawn with the classes in proportion, is the test.
    """
    side, classes, n = image_size or TEACHER_SIZE, num_classes or NUM_CLASSES, num_samples or NUM_SAMPLES
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(side * side, _HIDDEN, generator=generator) / side
    second = torch.randn(_HIDDEN, classes, generator=generator)
    x = torch.randn(n, 1, side, side, generator=generator)
    outputs = torch.tanh(x.flatten(1) @ first) @ second
    labels = ((outputs - outputs.mean(dim=0)) / outputs.std(dim=0)).argmax(dim=1)
    return RawImages(x, labels, classes, num_test=n // 5)


def fake(image_size: int | None, num_samples: int | None, num_classes: int | None, seed: int) -> RawImages:
    """Random colour images ``(n, 3, s, s)`` of bytes with random labels: there is nothing to learn but by heart.

    Args:
        image_size: Pixels per side; None takes 32.
        num_samples: Samples; None takes 5000.
        num_classes: Classes; None takes 10.
        seed: Seed.

    Returns:
        Images, uint8, and labels, independent of them: no net can be better than 1 / C on the test.
    """
    side, classes, n = image_size or FAKE_SIZE, num_classes or NUM_CLASSES, num_samples or NUM_SAMPLES
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (n, 3, side, side), generator=generator, dtype=torch.uint8)
    return RawImages(x, torch.randint(classes, (n,), generator=generator), classes, num_test=n // 5)
