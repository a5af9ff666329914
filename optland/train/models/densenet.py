"""DenseNet for small images (Huang et al. 2017, arXiv:1608.06993): each layer sees the maps of all before it.

    x_l = conv(relu(norm([x_0, x_1, ..., x_{l-1}])))

A stem convolution, three blocks of such layers, each adding ``width`` channels, between them a 1 x 1 convolution that
halves the channels (down to a multiple of the width) and a mean over 2 x 2 pixels, then the mean over the image and a
linear layer. depth counts the weight layers: 1 stem, the layers of the blocks, 2 transitions, 1 linear layer. It has no
bottleneck layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.train.models.layers import ImageShape, Norm, Plan, along, convolution, normalisation, spread

__all__ = ["BLOCKS", "DenseLayer", "DenseNet", "Transition"]

BLOCKS = 3


class DenseLayer(nn.Module):
    """One 3 x 3 convolution of all maps so far, put beside them.

    Args:
        shape: Channels, height and width of the net's images, which say along which axes the kernel reaches.
        channels: Maps so far.
        growth: Maps that it adds.
        norm: Normalisation before the convolution.
    """

    def __init__(self, shape: ImageShape, channels: int, growth: int, norm: Norm) -> None:
        super().__init__()
        self.norm = normalisation(norm, channels)
        self.conv = convolution(shape, channels, growth, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, channels, h, w)`` to ``(n, channels + growth, h, w)``."""
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], dim=1)


class Transition(nn.Module):
    """Fewer channels, and half the pixels of each side.

    Args:
        shape: Channels, height and width of the net's images; an axis of one pixel is not pooled.
        channels: Maps that come in.
        kept: Maps that go on.
        norm: Normalisation before the convolution.
    """

    def __init__(self, shape: ImageShape, channels: int, kept: int, norm: Norm) -> None:
        super().__init__()
        self.norm = normalisation(norm, channels)
        self.conv = nn.Conv2d(channels, kept, 1, bias=norm == "none")
        self.pool = along(shape, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, channels, h, w)`` to ``(n, kept, h / 2, w / 2)``, rounded up."""
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), self.pool, ceil_mode=True)


class DenseNet(nn.Module):
    """A stem, three dense blocks with transitions between them, the mean over the image, and a linear layer.

    Args:
        shape: Channels, height and width of the images.
        classes: Outputs.
        plan: Its size; ``width`` is the growth rate.
    """

    def __init__(self, shape: ImageShape, classes: int, plan: Plan) -> None:
        super().__init__()
        channels = 2 * plan.width
        layers: list[nn.Module] = [convolution(shape, shape[0], channels, plan.norm)]
        for block, count in enumerate(spread(plan.depth - 4, BLOCKS)):
            if block:
                kept = channels // (2 * plan.width) * plan.width
                layers.append(Transition(shape, channels, kept, plan.norm))
                channels = kept
            for _ in range(count):
                layers.append(DenseLayer(shape, channels, plan.width, plan.norm))
                channels += plan.width
        self.layers = nn.Sequential(*layers, normalisation(plan.norm, channels), nn.ReLU())
        self.dropout = nn.Dropout(plan.dropout)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(n, c, h, w)`` to logits ``(n, classes)``."""
        logits: Tensor = self.head(self.dropout(self.layers(x).mean(dim=(2, 3))))
        return logits
