r"""The norm and the scope of a perturbation: its length, and the tensors that share it.

.. math:: \epsilon = \rho \, T \, \frac{\operatorname{sign}(x) |x|^{q-1}}{\|x\|_q^{q-1}}, \qquad x = T d, \qquad
          \frac1p + \frac1q = 1, \qquad \|T^{-1} \epsilon\|_p = \rho

the maximiser of <d, eps> in the ball of radius rho of the p-norm. For p = 2 it is rho T x / \|x\|.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from optland import vectors

__all__ = ["Scope", "check_ball", "dual_norm", "scopes", "steepest", "times"]

Scope = Literal["global", "group", "tensor"]
"""What one norm is taken over: all parameters, each parameter group, or each tensor (a layer's weight or bias)."""


def check_ball(p: float, scope: str) -> None:
    """Refuse an unknown norm or scope.

    Args:
        p: Of the norm; ``math.inf`` is allowed.
        scope: ``global``, ``group`` or ``tensor``.

    Raises:
        ValueError: ``p`` is not above 1, or ``scope`` is not known.
    """
    if not p > 1:
        raise ValueError(
            f"p={p} has no unique steepest direction; use p > 1, 2 for SAM or math.inf for the sign"
        )
    if scope not in get_args(Scope):
        raise ValueError(f"scope={scope!r} is not known; use one of {', '.join(get_args(Scope))}")


def scopes(groups: Sequence[dict[str, Any]], scope: Scope) -> Iterator[list[int]]:
    """Indices of the entries that share one norm, given the group of each entry.

    Args:
        groups: The group of each entry; told apart by identity.
        scope: What shares one norm.

    Yields:
        Ascending; every index once.

    Example:
        >>> one, two = {"rho": 0.1}, {"rho": 0.2}
        >>> [list(scopes([one, two, one], s)) for s in ("global", "group", "tensor")]
        [[[0, 1, 2]], [[0, 2], [1]], [[0], [1], [2]]]
    """
    if scope == "tensor":
        yield from ([i] for i in range(len(groups)))
    elif scope == "group":
        owners = {id(group): group for group in groups}
        yield from ([i for i, group in enumerate(groups) if id(group) == owner] for owner in owners)
    elif groups:
        yield list(range(len(groups)))


def dual_norm(x: Sequence[Tensor], p: float) -> Tensor:
    """The q-norm of x with 1/p + 1/q = 1, a 0-d tensor: the rise of <x, u> over the unit ball of the p-norm.

    Args:
        x: Tensors treated as one vector.
        p: Above 1; of ``math.inf`` the dual norm is the sum of magnitudes.

    Example:
        >>> x = [torch.tensor([3.0]), torch.tensor([-4.0])]
        >>> float(dual_norm(x, 2)), round(float(dual_norm(x, math.inf)), 5)
        (5.0, 7.0)
    """
    if p == 2:
        return vectors.norm(x)
    q = _conjugate(p)
    powers = [t.abs().pow(q / 2) for t in x]  # so that the sum of squares is that of q-th powers
    return vectors.norm(powers) ** (2 / q)


def steepest(x: list[Tensor], p: float) -> list[Tensor]:
    """sign(x) |x|^(q-1): x itself for p = 2, its sign for p = inf.

    Args:
        x: Tensors.
        p: Above 1, with 1/p + 1/q = 1.

    Example:
        >>> steepest([torch.tensor([3.0, -4.0])], math.inf)
        [tensor([ 1., -1.])]
    """
    if p == 2:
        return x
    if p == math.inf:
        return [t.sign() for t in x]
    return [t.sign() * t.abs().pow(_conjugate(p) - 1) for t in x]


def times(x: list[Tensor], radius: Tensor | float, length: Tensor, p: float) -> list[Tensor]:
    """Radius * x / length^(q-1), zero where the length is zero or not finite.

    On the CPU that is decided by the host, at once. On a device it is decided there, without waiting.

    Args:
        x: What :func:`steepest` gave.
        radius: With its sign.
        length: What :func:`dual_norm` gave, a 0-d tensor.
        p: Above 1, with 1/p + 1/q = 1.

    Returns:
        New tensors, at least in float32.

    Example:
        >>> times([torch.tensor([3.0, 4.0])], 1.0, torch.tensor(5.0), 2.0)
        [tensor([0.6000, 0.8000])]
    """
    power = 1.0 if p == 2 else _conjugate(p) - 1
    wide = [
        t if t.dtype in (torch.float32, torch.float64) else t.float() for t in x
    ]  # a small factor may underflow
    if length.is_cpu:
        norm = float(length)
        if not 0.0 < norm < math.inf:
            return [torch.zeros_like(t) for t in wide]
        # As a tensor: a list times a number is five times slower.
        kinds = {t.dtype for t in wide}
        kind = kinds.pop() if len(kinds) == 1 else torch.float64
        return list(torch._foreach_mul(wide, torch.scalar_tensor(float(radius) / norm**power, dtype=kind)))
    usable = length.isfinite() & (length > 0)
    factor = torch.where(usable, radius / length**power, torch.zeros_like(length))
    # 0 * inf would be NaN.
    if len({(t.dtype, t.device) for t in wide}) == 1:  # three launches instead of two per tensor
        flat = torch.cat([t.flatten() for t in wide]).nan_to_num_(0.0, 0.0, 0.0)
        pieces = torch.split(flat.mul_(factor.to(flat)), [t.numel() for t in wide])
        return [piece.view(t.shape) for piece, t in zip(pieces, wide, strict=True)]
    return [t.nan_to_num(0.0, 0.0, 0.0).mul_(factor.to(device=t.device, dtype=t.dtype)) for t in wide]


def _conjugate(p: float) -> float:
    return 1.0 if p == math.inf else p / (p - 1)
