r"""Fine-tune a part of a net: everything, its last layers, or a product of two thin factors beside each linear layer.

.. math:: y = W x + b + B A x, \qquad A \in \mathbb{R}^{r \times n}, \; B \in \mathbb{R}^{m \times r}, \; B = 0

W and b are frozen, so that the net starts where it was.

Reference: Hu et al. 2021, arXiv:2106.09685 (LoRA).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["LowRank", "Scope", "narrow"]

Scope = Literal["all", "last", "lora"]


class LowRank(nn.Module):
    """A frozen linear layer plus B A x, with B = 0 at the start.

    Args:
        layer: The layer, which is frozen.
        rank: Width of the two factors.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> x = torch.ones(1, 3)
        >>> torch.equal(LowRank(layer, 2)(x), layer(x))
        True
    """

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, layer.in_features).to(layer.weight) / layer.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank).to(layer.weight))

    def forward(self, x: Tensor) -> Tensor:
        """W x + b + B A x."""
        out: Tensor = self.layer(x) + x @ self.a.T @ self.b.T
        return out


def narrow(model: nn.Module, scope: Scope, rank: int = 4) -> nn.Module:
    """Leave only a part of a net trainable, in place.

    Args:
        model: The net.
        scope: ``all``; ``last``, the last module that has weights of its own; ``lora``, factors beside each linear
            layer (not those inside PyTorch's own attention, which does not call them).
        rank: Of the factors.

    Returns:
        The same module. Under ``lora`` each linear layer is replaced by a :class:`LowRank`, so the names of its weights
        change; a layer in two places is replaced in both, with factors of its own in each.

    Raises:
        ValueError: An unknown scope, a rank below 1, or ``lora`` without a linear layer.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [name for name, p in narrow(net, "last").named_parameters() if p.requires_grad]
        ['2.weight', '2.bias']
    """
    if scope not in ("all", "last", "lora"):
        raise ValueError(f"scope {scope!r} is not known; use all, last or lora")
    if rank < 1:
        raise ValueError(f"rank {rank} must be at least 1")
    if scope == "all":
        return model
    owners = [module for module in model.modules() if list(module.parameters(recurse=False))]
    model.requires_grad_(False)
    if scope == "last":
        owners[-1].requires_grad_(True)
        return model
    places = {}
    # Also where one module holds it under two names:
    for path, layer in model.named_modules(remove_duplicate=False):
        if path and type(layer) is nn.Linear:
            above, _, name = path.rpartition(".")
            places[model.get_submodule(above), name] = layer
    if not places:
        raise ValueError(f"scope 'lora': {type(model).__name__} has no linear layer; use all or last")
    for (parent, name), layer in places.items():
        setattr(parent, name, LowRank(layer, rank))
    return model
