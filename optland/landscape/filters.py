"""Filters: what makes one output unit of a layer, and which dimension of its weights numbers them."""

from __future__ import annotations

from torch import Tensor, nn

from optland.vectors import Vector

__all__ = ["filter_axes", "matrices"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip


def filter_axes(model: nn.Module, params: Vector) -> list[int | None]:
    """By parameter: the dimension that numbers its filters; None for biases and gains, which have none.

    Args:
        model: Whose layers say which dimension that is; for a transposed convolution it is the second.
        params: Parameters of it, in any order.

    Returns:
        One for each parameter, in their order.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> filter_axes(net, list(net.parameters()))
        [0, None, None, None]
    """
    owner: dict[int, nn.Module] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            owner.setdefault(id(p), module)
    return [_axis(p, owner.get(id(p))) for p in params]


def matrices(model: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """The parameters that have filters, by name, each with the dimension that numbers them; a tied one once.

    Args:
        model: Its parameters, trained or frozen.

    Returns:
        By name, the detached parameter itself, not a copy, and its dimension.

    Example:
        >>> {name: axis for name, (_, axis) in matrices(nn.ConvTranspose1d(2, 3, 5)).items()}
        {'weight': 1}
    """
    named = list(model.named_parameters())
    axes = filter_axes(model, [p for _, p in named])
    return {name: (p.detach(), axis) for (name, p), axis in zip(named, axes, strict=True) if axis is not None}


def _axis(p: Tensor, owner: nn.Module | None) -> int | None:
    if p.ndim < 2 or isinstance(owner, _NORMS):
        return None
    return 1 if isinstance(owner, _TRANSPOSED) else 0
