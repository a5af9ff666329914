"""A point of R^d as a module, losses that are functions of it, and quadratics of a given spectrum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optland.objective import Objective

__all__ = ["Point", "function_objective", "quadratic", "with_spectrum"]


class Point(nn.Module):
    """A module whose output is its only parameter ``weight``: a point of R^d.

    Args:
        start: Where the point is, copied.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.detach().clone())

    def forward(self) -> Tensor:
        """The point itself."""
        return self.weight


def function_objective(loss: Callable[[Tensor], Tensor], start: Tensor) -> Objective:
    """The objective of a loss that is a function of the weights alone; its data is one empty sample.

    Args:
        loss: Of a tensor in the shape of ``start``, to a scalar; made of operations that autograd knows.
        start: Where to stand; copied.

    Returns:
        An objective with one sample, so that a gradient costs 1 GE.

    Example:
        >>> function_objective(lambda w: w.square().sum(), torch.ones(3)).value()
        3.0
    """

    def loss_fn(model: nn.Module, batch: Any) -> Any:
        return loss(model())

    return Objective(Point(start), loss_fn, [torch.zeros(1)], data="closed form")


def with_spectrum(eigenvalues: Sequence[float], *, seed: int = 0) -> Tensor:
    """A dense symmetric float64 matrix with these eigenvalues and random orthogonal eigenvectors.

    Args:
        eigenvalues: d of them, in any order.
        seed: Of the eigenvectors.

    Returns:
        (d, d) in float64.

    Example:
        >>> A = with_spectrum([5.0, 4.0, -8.0])
        >>> [round(x, 6) for x in torch.linalg.eigvalsh(A).tolist()]
        [-8.0, 4.0, 5.0]
    """
    values = torch.tensor(eigenvalues, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    A: Tensor = Q @ torch.diag(values) @ Q.T
    return (A + A.T) / 2


def quadratic(A: Tensor, start: Tensor | None = None) -> Objective:
    """L(w) = w'Aw / 2 at ``start`` (default: all ones): gradient Aw, Hessian A everywhere.

    Args:
        A: Symmetric, (d, d); of another the symmetric part is the Hessian.
        start: Where to stand, (d,), in the type of ``A``.

    Example:
        >>> L = quadratic(torch.diag(torch.tensor([2.0, -4.0])))
        >>> L.value(), L.gradient()[0].tolist()
        (-1.0, [2.0, -4.0])
    """
    start = torch.ones(A.shape[0], dtype=A.dtype) if start is None else start
    return function_objective(lambda w: 0.5 * w @ (A @ w), start)
