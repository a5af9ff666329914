"""Shared parts of the nets: size plan, normalisation by name, kernels that fit the image, attention, a trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.context.modules import preserve_modes, set_modes

__all__ = [
    "GROUPS", "MAX_DEPTH", "MAX_PARAMETERS", "ImageShape", "Norm", "Plan", "along", "attended", "check_dropout",
    "convolution", "normalisation", "outputs_of", "spread",
]  # fmt: skip

ImageShape = tuple[int, int, int]
"""Channels, height and width of an image."""

Norm = Literal["batch", "group", "none"]

GROUPS = 8
"""Groups of ``norm: group``; every family's channel counts are multiples of its width, so the width must be one."""

MAX_DEPTH, MAX_PARAMETERS = 1_000, 1_000_000_000
"""Beyond these no net can be built in reasonable memory and time; a slip of the keyboard is told at once.

The weights alone are 4 GB then, and the gradient as much again.
"""


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
    kernel = along(shape, 3)
    border = kernel[0] // 2, kernel[1] // 2
    return nn.Conv2d(inputs, outputs, kernel, along(shape, stride), border, bias=norm == "none")


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


def attended(projected: Tensor, heads: int, *, dropout: float = 0.0, is_causal: bool = False) -> Tensor:
    """Softmax attention of every token to every token, or to those up to itself, by PyTorch's own kernel.

    Args:
        projected: Queries, keys and values side by side, ``(n, length, 3 width)``.
        heads: Heads, which divide the width.
        dropout: Probability of dropout on the attention weights.
        is_causal: Whether a token sees none that come after it.

    Returns:
        The mixed values, ``(n, length, width)``.
    """
    n, length, width = projected.shape
    q, k, v = projected.view(n, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=is_causal)
    return mixed.transpose(1, 2).reshape(n, length, width // 3)


def outputs_of(model: nn.Module, shape: ImageShape) -> Any:
    """What a net gives for one empty image, in evaluation: no running statistic and no random number is touched.

    Args:
        model: The net.
        shape: Channels, height and width of the image.
    """
    with torch.no_grad(), preserve_modes(model):
        set_modes(model, training=False)
        return model(torch.zeros(1, *shape))


def check_dropout(dropout: float) -> None:
    """Refuse what is no probability below 1.

    Args:
        dropout: The value of the key ``dropout``.

    Raises:
        ValueError: With the fix.
    """
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout: {dropout} is not a probability below 1; use a number from 0 to 0.9")


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
