"""DenseNet for small images (Huang et al. 2017, arXiv:1608.06993): each layer reads all earlier layers of its block.

    x_(l+1) = [x_l, conv(relu(norm(x_l)))]        [,] joins channels

A stem convolution of 2 width channels, three dense blocks whose layers add ``width`` channels each (the growth rate),
between them a 1 x 1 convolution and a mean pooling, at last the mean over the image and a linear layer:
depth = layers + 4. ``skips: false`` hands each layer only the one before it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.train.models.layers import ImageShape, Plan, along, convolution, normalisation, spread

__all__ = ["BLOCKS", "DenseNet"]

BLOCKS = 3


class DenseLayer(nn.Module):
    """Normalisation, ReLU and a 3 x 3 convolution, joined to what came in."""

    def __init__(self, shape: ImageShape, channels: int, plan: Plan) -> None:
        super().__init__()
        self.norm = normalisation(plan.norm, channels)
        self.conv = convolution(shape, channels, plan.width, plan.norm)
        self.skips = plan.skips

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, channels, h, w)`` to ``(n, channels + width, h, w)``, or to ``(n, width, h, w)`` without skips."""
        new: Tensor = self.conv(F.relu(self.norm(x)))
        return torch.cat([x, new], dim=1) if self.skips else new


class DenseNet(nn.Module):
    """A stem, three dense blocks with transitions between them, and a linear layer."""

    def __init__(self, shape: ImageShape, classes: int, plan: Plan) -> None:
        super().__init__()
        channels = 2 * plan.width
        layers: list[nn.Module] = [convolution(shape, shape[0], channels, plan.norm)]
        for block, count in enumerate(spread(plan.depth - 4, BLOCKS)):
            if block > 0:
                layers += _transition(shape, channels, plan)
            for _ in range(count):
                layers.append(DenseLayer(shape, channels, plan))
                channels = channels + plan.width if plan.skips else plan.width
        self.features = nn.Sequential(*layers, normalisation(plan.norm, channels), nn.ReLU())
        self.dropout = nn.Dropout(plan.dropout)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(n, c, h, w)`` to logits ``(n, classes)``."""
        logits: Tensor = self.head(self.dropout(self.features(x).mean(dim=(2, 3))))
        return logits


def _transition(shape: ImageShape, channels: int, plan: Plan) -> list[nn.Module]:
    """Halve the image; all channels are kept, so that their number stays a multiple of the width."""
    mix = nn.Conv2d(channels, channels, 1, bias=plan.norm == "none")
    return [normalisation(plan.norm, channels), nn.ReLU(), mix, nn.AvgPool2d(along(shape, 2))]
