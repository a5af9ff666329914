r"""Split a matrix into a known part and a small rest, so that few random probes are enough.

.. math:: A = K + P A P, \qquad P = I - Q Q^\top, \qquad K = Q T Q^\top + R Q^\top + Q R^\top, \qquad
          T = Q^\top A Q, \quad R = P A Q

for orthonormal Q whose products A Q are known. The trace, the diagonal and the Frobenius norm of K follow exactly;
only those of P A P have to be sampled. When Q is a Krylov basis, R has a single nonzero column, so the memory is that
of Q alone.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optland import vectors

__all__ = ["Deflation"]

ROUNDING = 100.0
"""What lies below this many units of rounding of the largest product is rounding, and no new direction."""

Array = NDArray[np.float64]


class Deflation:
    """The known part of A: orthonormal rows Q and the products of A with them.

    Args:
        like: A flat vector (d,) of the arithmetic: its type, device and length.
        capacity: Most rows; their memory is taken at once.

    Attributes:
        capacity: Most rows.
        size: Rows so far, m.
        scale: Largest norm of a product with a row, at most ||A||.

    Example:
        >>> A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> K = Deflation(torch.zeros(2), 1)
        >>> q = K.orthonormal(torch.tensor([2.0, 0.0]))
        >>> K.take(q, A @ q)
        >>> K.diagonal().tolist(), K.rest(torch.ones(2), A @ torch.ones(2)).tolist()
        ([2.0, 0.0], [0.0, 3.0])
    """

    def __init__(self, like: Tensor, capacity: int) -> None:
        self._Q = like.new_empty((capacity, like.numel()))
        self._T: Array = np.zeros((capacity, capacity))
        self._tails: dict[int, Tensor] = {}  # nonzero columns of R
        self._eps = ROUNDING * torch.finfo(like.dtype).eps
        self.capacity = capacity
        self.size = 0
        self.scale = 0.0

    @property
    def Q(self) -> Tensor:
        """The rows, (m, d)."""
        return self._Q[: self.size]

    def orthonormal(self, w: Tensor) -> Tensor | None:
        """The direction of ``w`` outside the rows, a unit vector; None where only rounding is left of it.

        Args:
            w: (d,); taken out of the rows twice, since once leaves rounding of the size of w.
        """
        before = float(vectors.norm([w]))
        for _ in range(2):
            w = w - (self.Q @ w) @ self.Q
        length = float(vectors.norm([w]))
        return w / length if length > self._eps * before else None

    def take(self, q: Tensor, product: Tensor) -> None:
        """Take in the unit vector ``q``, orthogonal to the rows, and ``product`` = A q.

        Args:
            q: (d,), as :meth:`orthonormal` gave it.
            product: (d,); the part of it outside the rows is kept until the next row takes it in.
        """
        m = self.size
        for j in list(self._tails):
            self._leave(j, self._tails[j] - (q @ self._tails[j]) * q)
        self._Q[m], self.size = q, m + 1
        first = self.Q @ product
        tail = product - first @ self.Q
        second = self.Q @ tail
        column = (first + second).to("cpu", torch.float64).numpy()
        self._T[: m + 1, m] = self._T[m, : m + 1] = column
        self.scale = max(self.scale, float(np.linalg.norm(column)))
        self._leave(m, tail - second @ self.Q)

    def _leave(self, j: int, tail: Tensor) -> None:
        """Keep what A q_j has outside the rows, if it is more than rounding."""
        length = float(vectors.norm([tail]))
        self.scale = max(self.scale, length)
        self._tails.pop(j, None)
        if length > self._eps * self.scale:
            self._tails[j] = tail

    def next_in_krylov(self) -> Tensor | None:
        """The direction in which the last product left the rows; None where the space is invariant."""
        tail = self._tails.get(self.size - 1)
        return None if tail is None else tail / vectors.norm([tail])

    def diagonal(self) -> Tensor:
        """The diagonal of K, (d,)."""
        T = torch.as_tensor(self._T[: self.size, : self.size]).to(self._Q)
        diagonal = self._Q.new_zeros(self._Q.shape[1])
        for q, mixed in zip(self.Q, T, strict=True):  # row by row: no second matrix of the size of Q
            diagonal += q * (mixed @ self.Q)
        for j, tail in self._tails.items():
            diagonal += 2 * self._Q[j] * tail
        return diagonal

    def times(self, v: Tensor) -> Tensor:
        """K v, (d,)."""
        inside = self.Q @ v
        T = torch.as_tensor(self._T[: self.size, : self.size]).to(self._Q)
        product: Tensor = (T @ inside) @ self.Q
        for j, tail in self._tails.items():
            product = product + inside[j] * tail + (tail @ v) * self._Q[j]
        return product

    def project(self, rows: Tensor) -> Tensor:
        """P on vectors (..., d)."""
        for _ in range(2):
            rows = rows - (rows @ self.Q.T) @ self.Q
        return rows

    def square(self) -> float:
        """||K||_F^2."""
        outside = sum(float(vectors.norm([t])) ** 2 for t in self._tails.values())
        return float((self._T[: self.size, : self.size] ** 2).sum()) + 2 * outside

    def rest(self, w: Tensor, product: Tensor) -> Tensor:
        """P A P w from ``product`` = A w, (d,).

        Args:
            w: (d,); its part in the rows need not be taken out first.
            product: A w, (d,).
        """
        if self.size == 0:
            return product
        inside = self.Q @ w
        for j, tail in self._tails.items():
            product = product - inside[j] * tail
        for _ in range(2):  # A w may be long beside what is left of it
            product = product - (self.Q @ product) @ self.Q
        return product
