r"""The basis v_1, ..., v_m of a Krylov space in R^d: rows stored in blocks, in any type.

.. math:: c = V w, \qquad w \leftarrow w - V^\top c, \qquad V \leftarrow S^\top V

Memory is taken in blocks as rows come in, so that a run that ends after five products holds six rows and not the
forty-one it might have needed. Rows may be stored in a narrower type than the arithmetic: a block is then
brought over, one at a time, whenever it is used. What the narrower type loses of a row is measured
when the row is put in, because the error of an eigenpair has to contain it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optland import vectors

__all__ = ["Array", "Basis"]

BLOCK_SIZE = 2**23
"""Most numbers in a block of several rows; a longer row is a block of its own."""

BLOCK_ROWS = 32
"""Most rows in a block: the projection on a short block is one small matrix product."""

SLICE = 2**20
"""Columns that are rotated at a time, so that a rotation needs no second basis."""

Array = NDArray[np.float64]


class Basis:
    """Orthonormal rows of R^d, to project a vector out of their span and to combine them.

    Args:
        like: A flat vector (d,) of the arithmetic: its type, device and length.
        dtype: Type of the stored rows; that of ``like`` by default.

    Example:
        >>> V = Basis(torch.zeros(3))
        >>> V.put(0, torch.tensor([1.0, 0.0, 0.0]))
        0.0
        >>> w = torch.tensor([5.0, 2.0, 1.0])
        >>> V.project_out(w, 1).tolist(), w.tolist()
        ([5.0], [0.0, 2.0, 1.0])
    """

    def __init__(self, like: Tensor, dtype: torch.dtype | None = None) -> None:
        self.like = like.new_empty(0)
        self.store = torch.empty(0, dtype=dtype or like.dtype, device=like.device)
        self.narrow = self.store.dtype != like.dtype
        self.d = like.numel()
        self.block_rows = max(1, min(BLOCK_ROWS, BLOCK_SIZE // self.d))
        self.blocks: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """Memory of the rows in bytes."""
        return sum(block.numel() * block.element_size() for block in self.blocks)

    def row(self, j: int) -> Tensor:
        """Row j (d,) in the type of the arithmetic; a view where the rows are stored in it."""
        return self.blocks[j // self.block_rows][j % self.block_rows].to(self.like)

    def put(self, j: int, v: Tensor) -> float:
        """Store ``v`` as row j, and say how much of it the storage lost: ||v - stored||.

        Args:
            j: At most the number of rows so far; a row that is there is overwritten.
            v: Of unit length, orthogonal to the other rows.

        Returns:
            0.0 where rows are stored in the type of the arithmetic.
        """
        if j // self.block_rows == len(self.blocks):
            self.blocks.append(self.store.new_empty((self.block_rows, self.d)))
        row = self.blocks[j // self.block_rows][j % self.block_rows]
        row.copy_(v)
        return float(vectors.norm([v - row.to(self.like)])) if self.narrow else 0.0

    def project_out(self, w: Tensor, rows: int) -> Tensor:
        """Remove from ``w``, in place, its part in the first rows; returns its coefficients (rows,). Twice is safe.

        Args:
            w: (d,), written to.
            rows: How many of the first rows.
        """
        if rows == 0:
            return w.new_empty(0)
        return self._take_out(w, rows).add_(self._take_out(w, rows))

    def combine(self, s: Array) -> Tensor:
        """The vector sum_j s_j v_j (d,).

        Args:
            s: As many coefficients as rows, (m,).
        """
        weights, total = torch.as_tensor(s).to(self.like), self.like.new_zeros(self.d)
        for start, block in self._used(len(s)):
            total.addmv_(block.T, weights[start : start + len(block)])
        return total

    def rotate(self, S: Array, *, waiting: bool) -> Array:
        """Replace the first m rows by the p combinations S^T V (m, p), in place, a slice of columns at a time.

        Args:
            S: Orthonormal columns, (m, p) with p < m.
            waiting: Whether row m, which is next in line, moves up to row p.

        Returns:
            What the storage lost of each of the p new rows, (p,).
        """
        m, p = S.shape
        weights, lost = torch.as_tensor(S.T.copy()).to(self.like), np.zeros(p)
        rows = [self.blocks[j // self.block_rows][j % self.block_rows] for j in range(m + waiting)]
        for start in range(0, self.d, SLICE):
            piece = torch.stack([row[start : start + SLICE] for row in rows[:m]]).to(self.like)
            for i, new in enumerate(weights @ piece):
                target = rows[i][start : start + SLICE]
                target.copy_(new)
                if self.narrow:
                    lost[i] += float(vectors.norm([new - target.to(self.like)])) ** 2
        if waiting:
            rows[p].copy_(rows[m])
        return np.sqrt(lost)

    def _take_out(self, w: Tensor, rows: int) -> Tensor:
        """One pass of Gram-Schmidt over all blocks, modified between blocks."""
        parts = []
        for _, block in self._used(rows):
            parts.append(block @ w)
            w.addmv_(block.T, parts[-1], alpha=-1)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _used(self, rows: int) -> Iterator[tuple[int, Tensor]]:
        """Index of the first row and the rows of every block in use, in the type of the arithmetic."""
        for i, block in enumerate(self.blocks):
            start = i * self.block_rows
            if start >= rows:
                return
            yield start, block[: rows - start].to(self.like)
