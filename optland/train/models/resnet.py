"""ResNet for small images (He et al. 2016, arXiv:1512.03385), with or without its skip connections.

    out = relu(norm(conv(relu(norm(conv(x))))) + skip(x))

A stem convolution, three stages of width, 2 width and 4 width channels, the mean over the image, a linear layer:
depth = 1 + 2 blocks + 1, so 8 is one block a stage and 20 is three. Where a stage changes the shape, the skip is a
1 x 1 convolution. ``skips: false`` leaves the skips out and nothing else: the plain net whose landscape Li et al.
2018 (arXiv:1712.09913) compare with the ResNet's.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from optland.train.models.layers import ImageShape, Plan, along, convolution, normalisation, spread

__all__ = ["STAGES", "ResNet", "ResidualBlock"]

STAGES = 3


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each with its normalisation, and a skip connection over both.

    Args:
        shape: Channels, height and width of the net's images, which say along which axes kernels reach.
        channels_in: Maps that come in.
        channels: Maps that go out.
        stride: Of the first convolution; 2 halves the sides.
        plan: Says which normalisation, and whether there is a skip.
    """

    def __init__(self, shape: ImageShape, channels_in: int, channels: int, stride: int, plan: Plan) -> None:
        super().__init__()
        norm = plan.norm
        self.conv1 = convolution(shape, channels_in, channels, norm, stride)
        self.norm1 = normalisation(norm, channels)
        self.conv2 = convolution(shape, channels, channels, norm)
        self.norm2 = normalisation(norm, channels)
        self.skip: nn.Module | None = nn.Identity() if plan.skips else None
        if plan.skips and (stride != 1 or channels_in != channels):
            project = nn.Conv2d(channels_in, channels, 1, stride=along(shape, stride), bias=norm == "none")
            self.skip = nn.Sequential(project, normalisation(norm, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, channels_in, h, w)`` to ``(n, channels, h / stride, w / stride)``."""
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(out if self.skip is None else out + self.skip(x))


class ResNet(nn.Module):
    """A stem, three stages of blocks, the mean over the image, and a linear layer.

    Args:
        shape: Channels, height and width of the images.
        classes: Outputs.
        plan: Its size; ``width`` is the number of channels of the first stage, ``depth`` counts the weight layers.
    """

    def __init__(self, shape: ImageShape, classes: int, plan: Plan) -> None:
        super().__init__()
        width = plan.width
        self.stem = nn.Sequential(
            convolution(shape, shape[0], width, plan.norm), normalisation(plan.norm, width), nn.ReLU()
        )
        blocks, channels = [], width
        for stage, count in enumerate(spread((plan.depth - 2) // 2, STAGES)):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(ResidualBlock(shape, channels, width * 2**stage, stride, plan))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(plan.dropout)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(n, c, h, w)`` to logits ``(n, classes)``."""
        features = self.blocks(self.stem(x)).mean(dim=(2, 3))
        logits: Tensor = self.head(self.dropout(features))
        return logits
