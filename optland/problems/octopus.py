r"""The octopus: saddles in a row, each of which throws the path into the stable directions of the next.

With lengths in units of :math:`\tau`, curvatures L > 0 across and :math:`-\gamma` along, let i be the first coordinate
below :math:`2 \tau`. All before it have arrived at :math:`4 \tau`, all after it are held at 0:

.. math::
    f(x) = \sum_{j<i} L (x_j - 4\tau)^2 - (i - 1) \nu + \sum_{j > i} L x_j^2 +
    \begin{cases} -\gamma x_i^2 & 0 \le x_i \le \tau \\
    g_1(x_i) + (g_2(x_i) - L)\, x_{i+1}^2 & \tau \le x_i \le 2\tau \end{cases}

:math:`g_1` joins the hill at :math:`\tau` to the bowl around :math:`4 \tau` and :math:`g_2` turns the next coordinate
from stable, L, into the direction of escape, :math:`-\gamma`, both with two continuous derivatives. While one saddle
is being left, the next direction of escape shrinks, so plain gradient descent needs about :math:`(1 + L/\gamma)` times
as long at each saddle as at the one before: exponential in their number. A kick at each makes it linear.

Reference: Du et al. 2017, arXiv:1705.10412 (the construction; the joining functions here are this module's own).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optland.objective import Objective
from optland.problems.points import function_objective

__all__ = ["Octopus", "octopus"]


@dataclass(frozen=True)
class Octopus:
    """The function and what is known of it.

    Attributes:
        d: Number of saddles, and of dimensions.
        stable: L; half the curvature across.
        unstable: gamma; half the size of the curvature along which a saddle is left.
        tau: The unit of length.

    Raises:
        ValueError: ``d`` is below 1, or one of the others is not above 0.

    Example:
        >>> f = Octopus(2)
        >>> float(f(f.saddle(1))) == -f.drop, float(f(torch.full((2,), 4.0, dtype=torch.float64))) == f.minimum
        (True, True)
    """

    d: int
    stable: float = 1.0
    unstable: float = 0.5
    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.d < 1 or not min(self.stable, self.unstable, self.tau) > 0:
            raise ValueError(
                f"d {self.d} must be at least 1, and stable {self.stable}, unstable {self.unstable} and tau {self.tau} "
                "above 0"
            )

    @property
    def drop(self) -> float:
        """By how much each saddle lies below the one before, nu."""
        joined = self._joined()
        return float(4 * self.stable * self.tau**2 - joined(torch.tensor(1.0, dtype=torch.float64)))

    @property
    def minimum(self) -> float:
        """The loss at (4 tau, .., 4 tau), where every curvature is 2L."""
        return -self.d * self.drop

    def saddle(self, k: int) -> Tensor:
        """The k-th saddle, k from 0: loss -k nu, curvature -2 gamma along coordinate k and 2L across.

        Args:
            k: From 0 to d - 1; k = d is the minimum.

        Returns:
            (d,) in float64.
        """
        w = torch.zeros(self.d, dtype=torch.float64)
        w[:k] = 4 * self.tau
        return w

    def _joined(self) -> Callable[[Tensor], Tensor]:
        """g_1 of u in [0, 1]: its slope is the cubic through the slopes and curvatures of both sides."""
        g, stable, t = self.unstable, self.stable, self.tau
        slope0, bend0, slope1, bend1 = -2 * g * t, -2 * g * t, -4 * stable * t, 2 * stable * t
        b, c, d = bend0, 3 * (slope1 - slope0) - 2 * bend0 - bend1, 2 * (slope0 - slope1) + bend0 + bend1
        return lambda u: -g * t**2 + t * u * (slope0 + u * (b / 2 + u * (c / 3 + u * d / 4)))

    def __call__(self, w: Tensor) -> Tensor:
        """f(w); each coordinate counts by its size, so that the function is even in all of them."""
        # Squares are taken of w itself, since |w| has no second derivative at 0 for autograd.
        x, t = w.abs(), self.tau
        below = (x < 2 * t).nonzero()
        i = int(below[0]) if len(below) else self.d
        value = self.stable * (x[:i] - 4 * t).square().sum() - i * self.drop
        if i == self.d:
            return value
        value = value + self.stable * w[i + 1 :].square().sum()
        if bool(x[i] <= t):
            return value - self.unstable * w[i] ** 2
        u = x[i] / t - 1.0
        value = value + self._joined()(u)
        if i + 1 < self.d:
            turned = u**3 * (10 - 15 * u + 6 * u**2)  # 0 to 1, flat and straight at both ends
            value = value - (self.stable + self.unstable) * turned * w[i + 1] ** 2
        return value


def octopus(d: int, start: Tensor | None = None, *, stable: float = 1.0, unstable: float = 0.5) -> Objective:
    """The octopus with d saddles, at ``start`` (default: the first saddle, the origin).

    Args:
        d: Number of saddles, and of dimensions.
        start: Where to stand, (d,).
        stable: L; half the curvature across.
        unstable: gamma; half the size of the curvature along which a saddle is left.

    Raises:
        ValueError: ``d`` is below 1, or one of the curvatures is not above 0.

    Example:
        >>> L = octopus(3)
        >>> L.value(), L.gradient()[0].tolist()
        (0.0, [0.0, 0.0, 0.0])
    """
    f = Octopus(d, stable, unstable)
    return function_objective(f, f.saddle(0) if start is None else start)
