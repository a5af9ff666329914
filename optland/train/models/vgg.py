"""VGG for small images: plain stacks of 3 x 3 convolutions (Simonyan and Zisserman 2014, arXiv:1409.1556).

Three stages of width, 2 width and 4 width channels, each ending in a max pooling that halves the image, then one
linear layer: depth = convolutions + 1. Without normalisation, as in the paper, it is the plain net that gets hard to
train with depth.
"""

from __future__ import annotations

from torch import nn

from optland.train.models.layers import ImageShape, Plan, along, convolution, normalisation, spread

__all__ = ["STAGES", "vgg"]

STAGES = 3


def vgg(shape: ImageShape, classes: int, plan: Plan) -> nn.Module:
    """``depth - 1`` convolutions in three stages, and a linear layer on the flattened features."""
    channels, h, w = shape
    down, across = along(shape, 2)
    layers: list[nn.Module] = []
    for stage, count in enumerate(spread(plan.depth - 1, STAGES)):
        for _ in range(count):
            outputs = plan.width * 2**stage
            layers += [
                convolution(shape, channels, outputs, plan.norm), normalisation(plan.norm, outputs), nn.ReLU()
            ]  # fmt: skip
            channels = outputs
        layers.append(nn.MaxPool2d((down, across)))
        h, w = h // down, w // across
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Dropout(plan.dropout), nn.Linear(channels * h * w, classes)
    )
