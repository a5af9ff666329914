"""Initialisation schemes by name, on the weight matrices and kernels of a built net.

With fan_in the number of inputs of a unit and fan_out that of its outputs, the weights get the variance

    kaiming   2 / fan_in                   He et al. 2015, arXiv:1502.01852
    xavier    2 / (fan_in + fan_out)       Glorot and Bengio 2010
    normal    std^2, ``normal:0.02`` (the default of ``normal``), whatever the layer's size

(normal or uniform), or orthonormal rows or columns (Saxe et al. 2014, arXiv:1312.6120). Biases of these layers become
zero. Normalisation layers and learned positions keep PyTorch's values, and so does all under ``default``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import init

from optland.config import did_you_mean

__all__ = ["INITIALISATIONS", "initialise", "parse_scheme"]

INITIALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "kaiming_normal": partial(init.kaiming_normal_, nonlinearity="relu"),
    "kaiming_uniform": partial(init.kaiming_uniform_, nonlinearity="relu"),
    "xavier_normal": init.xavier_normal_,
    "xavier_uniform": init.xavier_uniform_,
    "orthogonal": init.orthogonal_,
    "normal": partial(init.normal_, std=0.02),
}
"""Schemes by name, each filling a weight in place from PyTorch's global random state."""


def parse_scheme(scheme: str) -> Callable[[Tensor], Tensor] | None:
    """The filling function of a scheme; None for ``default``.

    Args:
        scheme: ``default``, a key of :data:`INITIALISATIONS`, or ``normal:STD``.

    Returns:
        A function that fills a tensor in place from PyTorch's global random state.

    Raises:
        ValueError: No scheme of this name, or a deviation that is not a number above 0.

    Example:
        >>> parse_scheme("default") is None, parse_scheme("normal:0.5").keywords
        (True, {'std': 0.5})
    """
    if scheme == "default":
        return None
    name, colon, number = scheme.partition(":")
    if not colon and name in INITIALISATIONS:
        return INITIALISATIONS[name]
    if name != "normal":
        known = ["default", *INITIALISATIONS, "normal:STD"]
        raise ValueError(f"{scheme!r} is not known; choose from {known}.{did_you_mean(name, known)}")
    try:
        std = float(number)
    except ValueError:
        std = math.nan
    if not 0 < std < math.inf:
        raise ValueError(f"{scheme!r} needs a standard deviation above 0, for example normal:0.02")
    return partial(init.normal_, std=std)


def initialise(model: nn.Module, scheme: str) -> nn.Module:
    """Fill the weights of linear, convolutional and attention layers by a scheme; biases of these become zero.

    Args:
        model: The module, changed in place.
        scheme: ``default`` (leaves the module as it is), a key of :data:`INITIALISATIONS`, or ``normal:STD``.

    Returns:
        The same module.

    Raises:
        ValueError: The scheme is not known.

    Example:
        >>> net = initialise(nn.Linear(4, 3), "orthogonal")
        >>> bool((net.weight @ net.weight.T - __import__("torch").eye(3)).abs().max() < 1e-5)
        True
    """
    fill = parse_scheme(scheme)
    if fill is None:
        return model
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            fill(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            # Three square maps in one matrix: each has its own fan.
            for part in module.in_proj_weight.chunk(3):
                fill(part)
            init.zeros_(module.in_proj_bias)
    return model
