r"""An orthonormal Krylov basis of a curvature operator, and the operator compressed to it.

.. math:: H v_j = \sum_{i \le j+1} h_{ij} v_i, \qquad T = \tfrac12 (h + h^\top)

The basis is kept and every new vector is projected twice against all of it: a single pass loses orthogonality
as soon as an eigenvalue converges, and then shows copies of it. All coefficients h are kept, not only the two
that the three-term recurrence needs: what lies outside the tridiagonal part measures how far the products are
from symmetric, and counts in the residuals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optland import vectors
from optland.curvature.operators import CurvatureOperator
from optland.vectors import Vector

__all__ = ["Array", "Krylov", "RitzPairs"]

BREAKDOWN = 100.0
"""A new direction below this many units of rounding of ||T|| is rounding itself: the space is invariant."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RitzPairs:
    """Eigenpairs of T: approximate eigenpairs of H, with the norms of their residuals ||H y - theta y||."""

    theta: Array  # (m,) ascending
    s: Array  # (m, m), columns are coordinates in the basis
    residual: Array  # (m,)

    @property
    def scale(self) -> float:
        """||T||, at most ||H||."""
        return float(np.abs(self.theta).max(initial=0.0))


class Krylov:
    """Grows by one product at a time, from one or several starting vectors.

    Args:
        H: The operator.
        capacity: Most basis vectors; their memory is allocated at once.

    Attributes:
        size: Basis vectors that have been multiplied, m.
        broke_down: Whether the space is invariant: another start is needed to go on.
        failed: Whether the last product was not finite; it is not part of the space.
    """

    def __init__(self, H: CurvatureOperator, capacity: int) -> None:
        self.H = H
        self.like = H.objective.params
        sample = vectors.flatten(self.like)
        self.V = sample.new_empty(
            (capacity + 1, sample.numel())
        )  # (m + 1, d): the last row waits for its product
        self.h: Array = np.zeros((capacity + 1, capacity))
        self.tail: Array = np.zeros(capacity)  # norm of the part of H v_j outside the basis
        self.size = 0
        self.broke_down = False
        self.failed = False
        self._linked = False  # whether the vector next in line is the rest of the last product

    def start(self, vector: Vector) -> None:
        """Put a vector, made orthogonal to the basis, next in line."""
        _, w = self._project_out(vectors.flatten(vector), self.size)
        self.V[self.size] = w / vectors.norm([w])
        self.broke_down, self._linked = False, False

    def extend(self) -> None:
        """Multiply the vector next in line by H and take it into the basis; one read from the device."""
        m = self.size
        w = vectors.flatten(self.H.matvec(vectors.unflatten(self.V[m], self.like)))
        c, w = self._project_out(w, m + 1)
        beta = vectors.norm([w])
        column = torch.cat([c, beta[None]]).to("cpu", torch.float64).numpy()
        self.failed = not bool(np.isfinite(column).all())
        if self.failed:
            return
        if self._linked:  # the rest of H v_{m-1} is v_m, which now belongs to the basis
            self.h[m, m - 1], self.tail[m - 1] = self.tail[m - 1], 0.0
        self.h[: m + 1, m], self.tail[m] = column[:-1], column[-1]
        self.size = m + 1
        rounding = BREAKDOWN * torch.finfo(w.dtype).eps * self.ritz().scale
        self.broke_down = bool(column[-1] <= max(rounding, self.H.product_error))
        self._linked = not self.broke_down
        if self._linked:
            self.V[m + 1] = w / beta

    def ritz(self) -> RitzPairs:
        """Eigenpairs of T with their residuals, from numbers that are on the host already."""
        m = self.size
        h = self.h[:m, :m]
        T = (h + h.T) / 2
        theta, s = np.linalg.eigh(T)
        inside = np.linalg.norm((h - T) @ s, axis=0)
        outside = np.linalg.norm(self.tail[:m, None] * s, axis=0)
        residual = np.sqrt(inside**2 + outside**2 + self.H.product_error**2)
        return RitzPairs(theta, s, residual)

    def vector(self, s: Array) -> list[Tensor]:
        """The unit vector of R^d with coordinates s in the basis."""
        y = torch.as_tensor(s, dtype=self.V.dtype, device=self.V.device) @ self.V[: self.size]
        return vectors.unflatten(y / vectors.norm([y]), self.like)

    def _project_out(self, w: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Coefficients of w in the first ``rows`` basis vectors, and the rest of w; twice is enough."""
        V = self.V[:rows]
        first = V @ w
        w = w - first @ V
        second = V @ w
        return first + second, w - second @ V
