"""torchvision's image classifiers by name, with random weights: ``torchvision:resnet18``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optland.config import ConfigError, did_you_mean
from optland.train.models.layers import ImageShape, outputs_of

__all__ = ["PREFIX", "build_torchvision", "check_name"]

PREFIX = "torchvision:"

_SEVERAL_OUTPUTS = ("googlenet", "inception_v3")


def check_name(name: str) -> None:
    """Refuse what torchvision does not have, and what does not fit a loss on one output.

    Args:
        name: With :data:`PREFIX`, such as ``torchvision:resnet18``.

    Raises:
        ValueError: With the fix.
    """
    from torchvision import models

    short = name.removeprefix(PREFIX)
    known = models.list_models(module=models)
    if short not in known:
        hint = did_you_mean(short, known)
        raise ValueError(f"torchvision has no classifier {short!r}; torchvision:resnet18 is one.{hint}")
    if short in _SEVERAL_OUTPUTS:
        raise ValueError(f"{short} gives several outputs in training; use for example torchvision:resnet18")


def build_torchvision(name: str, shape: ImageShape, classes: int) -> nn.Module:
    """The classifier with ``classes`` outputs, tried on one image of this shape.

    Args:
        name: With :data:`PREFIX`.
        shape: Channels, height and width of the images; one channel is given to the net three times.
        classes: Outputs.

    Returns:
        The net with random weights from PyTorch's present random state.

    Raises:
        ConfigError: Images of this shape do not fit the net.
    """
    from torchvision import models

    if shape[0] not in (1, 3):
        raise ConfigError(
            f"name: {name} takes images with 1 or 3 channels, not {shape[0]}; use for example resnet"
        )
    model: nn.Module = models.get_model(name.removeprefix(PREFIX), weights=None, num_classes=classes)
    if shape[0] == 1:
        model = GreyToColour(model)
    try:
        outputs_of(model, shape)
    except (RuntimeError, AssertionError, ValueError) as error:
        c, h, w = shape
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"name: {name} cannot take images of {c} x {h} x {w} ({reason}); use resnet, or larger images"
        ) from error
    return model


class GreyToColour(nn.Module):
    """A net for colour images on grey ones: the one channel is given three times.

    Args:
        model: Takes images of three channels.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Map grey images ``(n, 1, h, w)`` to the net's logits."""
        return torch.as_tensor(self.model(x.expand(-1, 3, -1, -1)))
