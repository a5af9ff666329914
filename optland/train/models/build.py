"""Build the configured model, and refuse before training what the image's size does not allow."""

from __future__ import annotations

import torch
from torch import nn

from optland.config import ConfigError
from optland.config.imports import is_import_path
from optland.train.models.config import ModelConfig
from optland.train.models.initialisation import initialise
from optland.train.models.layers import MAX_PARAMETERS, ImageShape
from optland.train.models.own import build_own
from optland.train.models.registry import MODELS
from optland.train.models.torchvision_models import PREFIX, build_torchvision
from optland.train.models.vit import patch_size

__all__ = ["build_model", "check_model"]


def build_model(config: ModelConfig, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """The configured model; seed the random state before.

    Args:
        config: The configuration.
        image_shape: Channels, height and width of the images; a signal is an image of height 1.
        num_classes: Number of outputs.

    Returns:
        A module that maps ``(n, c, h, w)`` to logits ``(n, num_classes)``.

    Raises:
        ConfigError: The images do not fit the net, or the net does not fit into memory.

    Example:
        >>> model = build_model(ModelConfig(name="resnet", depth=14, norm="group"), (3, 32, 32), 10)
        >>> tuple(model(torch.zeros(2, 3, 32, 32)).shape)
        (2, 10)
    """
    _check(config, image_shape, num_classes)
    if config.name.startswith(PREFIX):
        model = build_torchvision(config.name, image_shape, num_classes)
    elif is_import_path(config.name):
        model = build_own(config.name, config.settings(), image_shape, num_classes)
    else:
        model = MODELS[config.name].make(image_shape, num_classes, config.plan())
    return initialise(model, config.init)


def check_model(config: ModelConfig, image_shape: ImageShape | None, num_classes: int = 10) -> None:
    """Refuse in a recipe's configuration what :func:`build_model` could not build, at no cost in memory or randomness.

    Args:
        config: The configuration. A model of one's own is made and tried by :func:`build_model` alone.
        image_shape: Channels, height and width of the images; None where the data have to be read to know it.
        num_classes: Number of outputs; only its effect on the number of parameters matters.

    Raises:
        ValueError: The images do not fit the net, or the net does not fit into memory; it names the key under
            ``model``, as a ``__post_init__`` has to.

    Example:
        >>> check_model(ModelConfig(name="vit"), (1, 8, 8))
        >>> check_model(ModelConfig(name="vit"), (1, 9, 9))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: model.name: vit cuts the image into patches of 2 pixels, which does not go into 9; ...
    """
    try:
        _check(config, image_shape, num_classes)
    except ConfigError as error:
        raise ValueError(f"model.{error}") from error


def _check(config: ModelConfig, image_shape: ImageShape | None, num_classes: int) -> None:
    own = is_import_path(config.name) and not config.name.startswith(PREFIX)
    if own or image_shape is None:
        return
    with torch.device("meta"):  # shapes alone
        if config.name.startswith(PREFIX):
            sketch = build_torchvision(config.name, image_shape, num_classes)
        else:
            if config.name == "vit":
                _check_patches(image_shape)
            sketch = MODELS[config.name].make(image_shape, num_classes, config.plan())
    _check_size(config, sum(p.numel() for p in sketch.parameters()))


def _check_patches(shape: ImageShape) -> None:
    for side in shape[1:]:
        if side % patch_size(side):
            raise ConfigError(
                f"name: vit cuts the image into patches of {patch_size(side)} pixels, which does not go into {side}; "
                "use another model, or images whose side is a multiple of 4"
            )


def _check_size(config: ModelConfig, parameters: int) -> None:
    if parameters > MAX_PARAMETERS:
        raise ConfigError(
            f"width: {config.name} of width {config.width} has {parameters:.2g} parameters on these images, more than "
            f"the {MAX_PARAMETERS:.0g} allowed; use a smaller width or depth"
        )
