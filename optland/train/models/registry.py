"""The architectures by name, and the settings that each has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from optland.train.models import densenet, resnet, vit
from optland.train.models.layers import ImageShape, Norm, Plan
from optland.train.models.simple import cnn, mlp

__all__ = ["MODELS", "Architecture"]


@dataclass(frozen=True)
class Architecture:
    """A family of nets.

    Attributes:
        make: Constructor ``(image shape, classes, plan) -> module``.
        depth: Depth where none is given, counted as the family's module says.
        min_depth: Least depth; None where the depth is fixed.
        depth_step: Depths are ``min_depth`` plus a multiple of this.
        width: Width where none is given.
        width_step: Widths are multiples of this.
        norm: Normalisation where none is given; None where there is no choice.
        skips: Whether there are skips where nothing is said; None where there is no choice.
    """

    make: Callable[[ImageShape, int, Plan], nn.Module]
    depth: int
    min_depth: int | None = None
    depth_step: int = 1
    width: int = 16
    width_step: int = 1
    norm: Norm | None = None
    skips: bool | None = None


MODELS: dict[str, Architecture] = {
    "mlp": Architecture(mlp, depth=3, min_depth=1),
    "cnn": Architecture(cnn, depth=4),
    "resnet8": Architecture(resnet.ResNet, depth=8, norm="batch", skips=True),
    "resnet": Architecture(
        resnet.ResNet, depth=20, min_depth=2 * resnet.STAGES + 2, depth_step=2, norm="batch", skips=True
    ),
    "densenet": Architecture(
        densenet.DenseNet, depth=22, min_depth=densenet.BLOCKS + 4, width=8, norm="batch",
    ),
    "vit": Architecture(vit.VisionTransformer, depth=4, min_depth=1, width=4 * vit.HEAD, width_step=vit.HEAD),
}  # fmt: skip
"""Architectures by name; ``torchvision:NAME`` takes any of torchvision's classifiers as well."""
