"""Functions of two variables for pictures, each with a window and its critical points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optland.objective import Objective
from optland.problems.points import function_objective

__all__ = [
    "SURFACES",
    "CriticalPoint",
    "Surface",
    "stable_ridge",
]


@dataclass(frozen=True)
class CriticalPoint:
    """Where a gradient is zero, and what is there.

    Attributes:
        at: The point.
        kind: ``minimum``, ``strict saddle`` or ``degenerate``.
        eigenvalues: Of the Hessian there, ascending.
    """

    at: tuple[float, float]
    kind: str
    eigenvalues: tuple[float, float]


@dataclass(frozen=True)
class Surface:
    """A function of two variables, the window it is looked at through, and its known critical points.

    Attributes:
        name: In words.
        function: Of a tensor (2,).
        window: (low, high) of both variables.
        points: Critical points in closed form; the others in the window are not listed.

    Example:
        >>> SURFACES["Rosenbrock"].objective(1.0, 1.0).value()
        0.0
    """

    name: str
    function: Callable[[Tensor], Tensor]
    window: tuple[float, float]
    points: tuple[CriticalPoint, ...]

    def objective(self, x: float = 0.0, y: float = 0.0) -> Objective:
        """The objective at (x, y).

        Args:
            x: Where to stand.
            y: The same of the other variable.
        """
        return function_objective(self.function, torch.tensor([x, y], dtype=torch.float64))

    def grid(self, num_points: int = 101) -> tuple[Tensor, Tensor]:
        """The axis of the window and the values over it, x along the rows.

        Args:
            num_points: Of the axis.

        Returns:
            (num_points,) and (num_points, num_points), the latter with entry [i, j] at x = axis[i], y = axis[j].
        """
        axis = torch.linspace(*self.window, num_points, dtype=torch.float64)
        places = torch.cartesian_prod(axis, axis)
        return axis, torch.stack([self.function(p) for p in places]).reshape(num_points, num_points)


def _multimodal(w: Tensor) -> Tensor:
    return (w[0] ** 2 + w[1] ** 2) * (1 + 0.5 * torch.sin(5 * w[0]) * torch.sin(5 * w[1]))


def _rosenbrock(w: Tensor) -> Tensor:
    return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2


def _stable_ridge(w: Tensor) -> Tensor:
    return w[0] ** 2 / 2 - w[1] ** 2 / 2 + w[1] ** 4 / 4


def _bounded_monkey(w: Tensor) -> Tensor:
    return w[0] ** 3 - 3 * w[0] * w[1] ** 2 + 0.1 * (w[0] ** 2 + w[1] ** 2) ** 2


@dataclass(frozen=True)
class _W:
    """The W-shaped function of the first variable plus ten times the square of the second."""

    epsilon: float
    length: float

    def __call__(self, w: Tensor) -> Tensor:
        r, size = self.epsilon**0.5, w[0].abs()
        if bool(size <= r):
            # Of squares, since |x| has no second derivative at 0 for autograd.
            valley = (size / 3 - r) * w[0] ** 2
        elif bool(size <= self.length * r):
            valley = -self.epsilon * size + r**3 / 3
        else:
            beyond = size - (self.length + 1) * r
            valley = r * beyond**2 + beyond**3 / 3 - (3 * self.length + 1) / 3 * r**3
        value: Tensor = valley + 10 * w[1] ** 2
        return value


def stable_ridge(x: float, y: float) -> Objective:
    """L(x, y) = x^2/2 - y^2/2 + y^4/4: on y = 0 every gradient method runs into the saddle at the origin, and stays.

    The saddle has the Hessian diag(1, -1), the minima (0, 1) and (0, -1) have the loss -1/4 and diag(1, 2).

    Args:
        x: Where to stand.
        y: The same of the other variable.

    Example:
        >>> stable_ridge(0.0, 1.0).value()
        -0.25
    """
    return SURFACES["stable ridge"].objective(x, y)


def _point(x: float, y: float, kind: str, low: float, high: float) -> CriticalPoint:
    return CriticalPoint((x, y), kind, (low, high))


SURFACES: dict[str, Surface] = {
    "convex": Surface(
        "convex quadratic", lambda w: 0.5 * (w[0] ** 2 + 10 * w[1] ** 2), (-2.0, 2.0),
        (_point(0, 0, "minimum", 1, 10),),
    ),
    "multimodal": Surface("many minima", _multimodal, (-2.0, 2.0), (_point(0, 0, "minimum", 2, 2),)),
    "saddle": Surface(
        "saddle point", lambda w: w[0] ** 2 - w[1] ** 2, (-2.0, 2.0), (_point(0, 0, "strict saddle", -2, 2),)
    ),
    "Rosenbrock": Surface(
        "Rosenbrock's valley", _rosenbrock, (-2.0, 2.0),
        (_point(1, 1, "minimum", 501 - 250_601**0.5, 501 + 250_601**0.5),),
    ),
    "stable ridge": Surface(
        "double well", _stable_ridge, (-1.6, 1.6),
        (
            _point(0, 0, "strict saddle", -1, 1),
            _point(0, 1, "minimum", 1, 2),
            _point(0, -1, "minimum", 1, 2),
        ),
    ),
    "two factors": Surface(
        "two factors", lambda w: 0.5 * (w[0] * w[1] - 1) ** 2, (-2.0, 2.0),
        (_point(0, 0, "strict saddle", -1, 1), _point(1, 1, "minimum", 0, 2), _point(-1, -1, "minimum", 0, 2)),
    ),
    "monkey": Surface(
        "monkey saddle, bounded", _bounded_monkey, (-2.0, 2.0), (_point(0, 0, "degenerate", 0, 0),)
    ),
    "W": Surface(
        "W and a parabola", _W(0.01, 5.0), (-0.9, 0.9),
        (
            _point(0, 0, "strict saddle", -0.2, 20),
            _point(0.6, 0, "minimum", 0.2, 20),
            _point(-0.6, 0, "minimum", 0.2, 20),
        ),
    ),
}  # fmt: skip
"""By short name; the first four are the usual picture of four landscapes."""
