"""Refuse optimizers with which everything that reads a loss or a curvature would be wrong."""

from __future__ import annotations

from collections.abc import Iterable

from torch.optim import Optimizer

__all__ = ["refuse_misread"]


def refuse_misread(optimizers: Iterable[Optimizer]) -> None:
    """Raise where the loss is maximized, or a parameter complex.

    Args:
        optimizers: Those of a pilot.

    Raises:
        ValueError: A group is maximized.
        TypeError: A parameter is complex.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> refuse_misread([torch.optim.SGD([w], lr=0.1)])
        >>> refuse_misread([torch.optim.SGD([w], lr=0.1, maximize=True)])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: this SGD has maximize=True, and a pilot takes a loss that rises for trouble; ...
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if group.get("maximize"):
                raise ValueError(
                    f"this {type(optimizer).__name__} has maximize=True, and a pilot takes a loss that rises for "
                    "trouble; minimize the negated objective, and give that to after_step"
                )
            if any(p.is_complex() for p in group["params"]):
                raise TypeError(
                    "the optimizer holds a complex parameter, whose curvature is not a symmetric matrix of that "
                    "size; hold it as a real tensor (torch.view_as_real) and form the complex one inside the model"
                )
