r"""An orthonormal Krylov basis of a curvature operator, and the operator compressed to it.

.. math:: H V_m = V_m h + v_{m+1} b^\top + E, \qquad T = \tfrac12 (h + h^\top)

The basis is kept and every new vector is projected twice against all of it: a single pass loses orthogonality
as soon as an eigenvalue converges, and then shows copies of it. All coefficients h are kept, not only the two
that the three-term recurrence needs: what lies outside the tridiagonal part measures how far the products are
from symmetric, and counts in the residuals. So does E, what a narrow storage type loses.

**Thick restart.** With S the wanted eigenvectors of T, V S and the same v_{m+1} obey the same equation with h
replaced by S'hS and b by S'b, an arrow: the space goes on as if it had only ever held those vectors, and every
residual stays what it was.

**References.** Paige 1980 (loss of orthogonality); Wu & Simon 2000, SIAM J. Matrix Anal. Appl. 22 (thick restart).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from optland import vectors
from optland.curvature.eigen.basis import Array, Basis
from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.vectors import Vector

__all__ = ["Array", "Krylov", "RitzPairs"]

BREAKDOWN = 100.0
"""A new direction below this many units of rounding of ||T|| is rounding itself: the space is invariant."""


@dataclass(frozen=True, slots=True)
class RitzPairs:
    """Eigenpairs of T: approximate eigenpairs of H, with the norms of their residuals ||H y - theta y||.

    Attributes:
        theta: Ritz values, ascending, (m,).
        s: (m, m), whose columns are the coordinates of the Ritz vectors in the basis.
        residual: Norms of the residuals, (m,).
        floor: The part of each that more products cannot remove, from the errors of products and storage, (m,).
    """

    theta: Array  # (m,) ascending
    s: Array  # (m, m), columns are coordinates in the basis
    residual: Array  # (m,)
    floor: Array  # (m,) part of the residual that more products cannot remove

    @property
    def scale(self) -> float:
        """||T||, at most ||H||."""
        return float(np.abs(self.theta).max(initial=0.0))

    @property
    def value_error(self) -> Array:
        """r^2 / gap where that is below r: the error of each value if no unseen eigenvalue lies in the gap, (m,).

        The gap of a Ritz value is its distance to the nearest interval of another one. It is read from the Ritz
        values themselves, so this is an estimate where the residual is a bound.
        """
        apart = np.abs(self.theta[:, None] - self.theta[None, :]) - self.residual[None, :]
        np.fill_diagonal(apart, np.inf)
        gap = apart.min(axis=1)
        clear = np.isfinite(gap) & (gap > self.residual)
        ratio = np.divide(self.residual, gap, out=np.ones_like(gap), where=clear)
        return np.asarray(self.residual * ratio)


class Krylov:
    """Grows by one product at a time, from one or several starting vectors.

    Args:
        H: The operator.
        capacity: Most basis vectors; their memory is taken as they come.
        dtype: Type that the basis is stored in; that of the arithmetic by default.

    Attributes:
        size: Basis vectors that have been multiplied, m.
        broke_down: Whether the space is invariant: another start is needed to go on.
        failed: Whether the last product was not finite; it is not part of the space.
    """

    def __init__(
        self,
        H: SymmetricOperator,
        capacity: int,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.H = H
        self.like = H.like
        self.capacity = capacity
        self.sizes = [t.numel() for t in self.like]
        sample = vectors.flatten(self.like)
        self.rounding = BREAKDOWN * torch.finfo(sample.dtype).eps
        self.basis = Basis(sample, dtype)
        self.h: Array = np.zeros((capacity + 1, capacity))  # row m: coefficients in the vector next in line
        self.lost: Array = np.zeros(capacity)  # bound on the part of H v_j outside all basis vectors
        self.scale = 0.0  # largest ||H v_j||
        self.size = 0
        self.broke_down = False
        self.failed = False
        self._ritz: RitzPairs | None = None

    def start(self, vector: Vector) -> None:
        """Put a vector, made orthogonal to the basis, next in line."""
        m, w = self.size, vectors.flatten(vector)
        self.basis.project_out(w, m)
        self.basis.put(m, w / vectors.norm([w]))
        self.lost[:m] += np.abs(self.h[m, :m])  # whoever was next in line is gone
        self.h[m, :m] = 0.0
        self.broke_down, self._ritz = False, None

    def extend(self) -> None:
        """Multiply the vector next in line by H and take it into the basis; one read from the device."""
        m = self.size
        w = vectors.flatten(self.H.matvec(self._pieces(self.basis.row(m))))
        c = self.basis.project_out(w, m + 1)
        beta = vectors.norm([w])
        column = torch.cat([c, beta[None]]).to("cpu", torch.float64).numpy()
        self.failed = not bool(np.isfinite(column).all())
        if self.failed:
            return
        self.h[: m + 1, m], self.size, self._ritz = column[:-1], m + 1, None
        self.scale = max(self.scale, float(np.linalg.norm(column)))
        outside = float(column[-1])
        self.broke_down = outside <= max(self.rounding * self.scale, self.H.product_error)
        if self.broke_down:
            self.lost[m] = outside
        else:
            self.h[m + 1, m] = outside
            self.lost[m] = outside * self.basis.put(m + 1, w.div_(beta))

    def restart(self, keep: Sequence[int]) -> None:
        """Keep only these Ritz pairs and the vector next in line; the memory of the others is free again."""
        m, p, ritz = self.size, len(keep), self.ritz()
        S = np.ascontiguousarray(ritz.s[:, list(keep)])
        h, b = self.h[:m, :m], self.h[m, :m]
        asymmetric = (h - h.T) / 2 @ S
        left = np.linalg.norm(asymmetric - S @ (S.T @ asymmetric), axis=0)
        arrow, shaft = S.T @ h @ S, b @ S
        lost = self.lost[:m] @ np.abs(S) + left
        # A row y that is stored as y + e has the residual of y and (H - theta) e.
        lost += 2 * self.scale * self.basis.rotate(S, waiting=not self.broke_down)
        self.h[:], self.lost[:] = 0.0, 0.0
        self.h[:p, :p], self.h[p, :p], self.lost[:p] = arrow, shaft, lost
        self.size, self._ritz = p, None

    def ritz(self) -> RitzPairs:
        """Eigenpairs of T with their residuals, from numbers that are on the host already."""
        if self._ritz is None:
            self._ritz = self._solve()
        return self._ritz

    def _solve(self) -> RitzPairs:
        m = self.size
        h = self.h[:m, :m]
        theta, s = np.linalg.eigh((h + h.T) / 2)
        inside = np.linalg.norm((h - h.T) / 2 @ s, axis=0)
        outside = self.h[m, :m] @ s
        lost = self.lost[:m] @ np.abs(s)
        residual = np.sqrt(inside**2 + outside**2 + self.H.product_error**2) + lost
        return RitzPairs(theta, s, residual, self.H.product_error + lost)

    def vector(self, s: Array) -> list[Tensor]:
        """The unit vector of R^d with coordinates s in the basis.

        Args:
            s: (m,), a column of :attr:`RitzPairs.s` for a Ritz vector.

        Returns:
            In the shapes and types of the parameters.
        """
        y = self.basis.combine(s)
        return vectors.unflatten(y / vectors.norm([y]), self.like)

    def _pieces(self, flat: Tensor) -> list[Tensor]:
        """A row in the shapes of the parameters; views where type and device agree: a product only reads them."""
        parts = flat.split_with_sizes(self.sizes)
        return [vectors.beside(part.view(t.shape), t) for part, t in zip(parts, self.like, strict=True)]
