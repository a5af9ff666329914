"""Models of the user's own: a function or class, named by its import path, that gives a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from optland.config import ConfigError
from optland.config.imports import given, imported
from optland.train.models.layers import ImageShape, outputs_of

__all__ = ["build_own", "check_own"]


def check_own(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse what is not there or cannot be called, and a setting that it has no parameter for.

    Args:
        name: ``package.module:name``.
        settings: Values of the configuration's section, by name; None and a probability of 0 ask for nothing.

    Raises:
        ValueError: With the fix; it starts with the setting's name.
    """
    try:
        function = _function(name)
        taken = given(name, function, {"image_shape": (), "num_classes": 0, **settings})
    except ValueError as error:
        raise ValueError(f"name: {error}") from error
    for key, value in settings.items():
        asked = value is not None and (value is False or value != 0)
        if asked and key not in taken:
            raise ValueError(
                f"{key}: {name} has no parameter {key}, so {value} cannot be set; use "
                f"{'0' if key == 'dropout' else 'null'}, or give it one"
            )


def build_own(name: str, settings: Mapping[str, Any], shape: ImageShape, classes: int) -> nn.Module:
    """The model that the function gives, tried on one sample of this shape.

    It has a parameter for what it wants to know, by name: ``image_shape``, ``num_classes``, ``width``, ``depth``,
    ``norm``, ``skips``, ``dropout``.

    Args:
        name: ``package.module:name``.
        settings: Values of the configuration's section, by name; the function gets those that it has a parameter for.
        shape: Channels, height and width of a sample; a table of f columns comes as (1, 1, f).
        classes: Outputs that the net must have.

    Returns:
        The module, in the modes in which it was made.

    Raises:
        ConfigError: It gives no module, or one that does not fit the data.
    """
    function = _function(name)
    model = function(**given(name, function, {"image_shape": shape, "num_classes": classes, **settings}))
    if not isinstance(model, nn.Module):
        raise ConfigError(f"name: {name} returned a {type(model).__name__}; return a torch.nn.Module")
    size = " x ".join(map(str, shape))
    try:
        out = outputs_of(model, shape)
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"name: the model of {name} cannot take samples of {size} ({reason}); a batch is (n, c, h, w), and a "
            "table comes as (n, 1, 1, features): begin with nn.Flatten()"
        ) from error
    if not isinstance(out, Tensor) or out.shape != (1, classes):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ConfigError(
            f"name: the model of {name} gives {got} for one sample, and the data have {classes} classes; "
            f"return logits (n, {classes})"
        )
    return model


def _function(name: str) -> Callable[..., Any]:
    found = imported(name)
    if not callable(found) or isinstance(found, nn.Module):
        raise ValueError(f"{name} is a {type(found).__name__}; name a function or class that makes the model")
    function: Callable[..., Any] = found
    return function
