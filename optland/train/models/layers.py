"""Shared parts of the convolutional nets: size plan, normalisation by name, kernels that fit the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

__all__ = ["GROUPS", "ImageShape", "Norm", "Plan", "along", "convolution", "normalisation", "spread"]

ImageShape = tuple[int, int, int]
"""Channels, height and width of an image."""

Norm = Literal["batch", "group", "none"]

GROUPS = 8
"""Groups of ``norm: group``; every family's channel counts are multiples of its width, so the width must be one."""


@dataclass(frozen=True)
class Plan:
    """A net's size with every default filled in.

    Attributes:
        width: Units or channels of the first layer.
        depth: Depth in the family's own count.
        norm: Normalisation after each convolution.
        skips: Whether layers are bridged.
        dropout: Dropout probability before the last layer.
    """

    width: int
    depth: int
    norm: Norm
    skips: bool
    dropout: float


def along(shape: ImageShape, size: int) -> tuple[int, int]:
    """``size`` along height and width, but 1 along an axis of a single pixel.

    A signal is an image of height 1. A kernel of height 3 would see zeros above and below it, and two thirds of its
    weights would be flat directions of the loss.

    Args:
        shape: Channels, height and width of the images.
        size: Pixels of a kernel, a stride or a pool.

    Returns:
        Pixels along height and along width.

    Example:
        >>> along((1, 28, 28), 3), along((1, 1, 40), 3)
        ((3, 3), (1, 3))
    """
    _, h, w = shape
    return (size if h > 1 else 1), (size if w > 1 else 1)


def convolution(shape: ImageShape, inputs: int, outputs: int, norm: Norm, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size (or divides it by ``stride``); a norm brings its own bias.

    Args:
        shape: Channels, height and width of the net's images, which say along which axes the kernel reaches.
        inputs: Channels that come in.
        outputs: Channels that go out.
        norm: The normalisation that follows; under any the bias would be taken out again, so there is none.
        stride: Pixels from one place of the kernel to the next.

    Example:
        >>> convolution((1, 1, 40), 1, 8, "batch")
        Conv2d(1, 8, kernel_size=(1, 3), stride=(1, 1), padding=(0, 1), bias=False)
    """
    return nn.Conv2d(
        inputs,
        outputs,
        along(shape, 3),
        stride=along(shape, stride),
        padding=_border(shape),
        bias=norm == "none",
    )


def _border(shape: ImageShape) -> tuple[int, int]:
    height, width = along(shape, 3)
    return height // 2, width // 2


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """BatchNorm, GroupNorm with :data:`GROUPS` groups (Wu and He 2018, arXiv:1803.08494), or nothing.

    Args:
        norm: ``batch``, ``group`` or ``none``.
        channels: Channels of the maps; under ``group`` a multiple of :data:`GROUPS`.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(GROUPS, channels)
    return nn.Identity()


def spread(total: int, parts: int) -> list[int]:
    """``total`` layers over ``parts`` stages as evenly as they go, earlier stages first.

    Args:
        total: Layers.
        parts: Stages.

    Example:
        >>> spread(7, 3)
        [3, 2, 2]
    """
    return [total // parts + (part < total % parts) for part in range(parts)]
