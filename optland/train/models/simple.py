"""The two plainest nets: a multilayer perceptron, and a small CNN without normalisation.

The CNN has no normalisation on purpose: such nets die at a learning rate that is a few times too high, which makes
them the honest test of a controller.
"""

from __future__ import annotations

from torch import nn

from optland.train.models.layers import ImageShape, Plan, along, convolution

__all__ = ["cnn", "mlp"]


def mlp(shape: ImageShape, classes: int, plan: Plan) -> nn.Module:
    """``depth`` hidden ReLU layers of ``width`` units.

    Args:
        shape: Channels, height and width of the images, which are flattened.
        classes: Outputs.
        plan: Its size; dropout stands before the last layer alone.

    Example:
        >>> mlp((1, 2, 2), 3, Plan(width=8, depth=1, norm="none", skips=False, dropout=0.0))[1]
        Linear(in_features=4, out_features=8, bias=True)
    """
    c, h, w = shape
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = c * h * w
    for _ in range(plan.depth):
        layers += [nn.Linear(inputs, plan.width), nn.ReLU()]
        inputs = plan.width
    return nn.Sequential(*layers, nn.Dropout(plan.dropout), nn.Linear(inputs, classes))


def cnn(shape: ImageShape, classes: int, plan: Plan) -> nn.Module:
    """Three 3 x 3 convolutions (width, 2 width, 2 width channels), one pooling, one linear layer; no normalisation.

    Args:
        shape: Channels, height and width of the images; an axis of one pixel is neither padded nor pooled.
        classes: Outputs.
        plan: Its size; the depth is fixed, and there is no normalisation whatever it says.
    """
    (c, h, w), width = shape, plan.width
    down, across = along(shape, 2)
    return nn.Sequential(
        convolution(shape, c, width, "none"), nn.ReLU(),
        convolution(shape, width, 2 * width, "none"), nn.ReLU(),
        nn.MaxPool2d((down, across)),
        convolution(shape, 2 * width, 2 * width, "none"), nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(plan.dropout),
        nn.Linear(2 * width * (h // down) * (w // across), classes),
    )  # fmt: skip
