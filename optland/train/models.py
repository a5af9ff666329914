"""Small image models by name: an MLP, a CNN without normalisation, and ResNet-8 with BatchNorm.

The CNN has no normalisation on purpose: such nets die at a learning rate that is a few times too high, which makes
them the honest test of a controller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.config import did_you_mean

__all__ = ["MODELS", "ModelConfig", "ResNet8", "build_model"]


@dataclass(frozen=True)
class ModelConfig:
    """Which model and how wide.

    Attributes:
        name: A key of :data:`MODELS`.
        width: Hidden units of the MLP, channels of the first layer of the convolutional nets.
        dropout: Dropout probability before the last layer, in [0, 1).
    """

    name: str = "cnn"
    width: int = 16
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            hint = did_you_mean(self.name, MODELS)
            raise ValueError(f"name: model {self.name!r} is not known; choose from {sorted(MODELS)}.{hint}")
        if self.width < 1:
            raise ValueError(f"width: {self.width} units are too few; use at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(
                f"dropout: {self.dropout} is not a probability below 1; use a number from 0 to 0.9"
            )


def _mlp(shape: tuple[int, int, int], classes: int, width: int, dropout: float) -> nn.Module:
    """Three hidden ReLU layers of ``width`` units."""
    c, h, w = shape
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(c * h * w, width), nn.ReLU(),
        nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, width), nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, classes),
    )  # fmt: skip


def _cnn(shape: tuple[int, int, int], classes: int, width: int, dropout: float) -> nn.Module:
    """Three 3 x 3 convolutions (width, 2 width, 2 width channels), one pooling, one linear layer; no normalisation."""
    c, h, w = shape
    return nn.Sequential(
        nn.Conv2d(c, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(2 * width * (h // 2) * (w // 2), classes),
    )  # fmt: skip


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm and a skip connection (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.skip = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, channels_in, h, w)`` to ``(n, channels, h / stride, w / stride)``."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.skip(x))


class ResNet8(nn.Module):
    """ResNet of depth 8 for small images: a stem and three blocks of width, 2 width and 4 width channels."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 4 * width, 2),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(n, c, h, w)`` to logits ``(n, classes)``."""
        features = self.blocks(self.stem(x)).mean(dim=(2, 3))
        return torch.as_tensor(self.head(self.dropout(features)))


MODELS: dict[str, Callable[[tuple[int, int, int], int, int, float], nn.Module]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "resnet8": ResNet8,
}
"""Constructors ``(image shape, classes, width, dropout) -> module`` by name."""


def build_model(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The configured model with PyTorch's default initialisation (seed the random state before)."""
    return MODELS[config.name](image_shape, num_classes, config.width, config.dropout)
