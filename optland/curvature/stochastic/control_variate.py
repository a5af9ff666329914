r"""Counted products with a matrix minus its known part, for which old eigenpairs serve as control variate.

.. math:: B = A - M, \qquad M = U^\top \mathrm{diag}(\lambda)\, U, \qquad
          \mathrm{tr}\,A = \mathrm{tr}\,M + \mathrm{tr}\,B, \qquad
          \|A\|_F^2 = \|B\|_F^2 + 2 \langle M, B \rangle + \|M\|_F^2

Whatever U and lambda are, the sums are right; where they are the eigenpairs of a little while ago, B is small.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optland import vectors
from optland.curvature.eigen.spectrum import Spectrum
from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.curvature.stochastic.deflation import Deflation

__all__ = ["Products"]


class Products:
    """Counted products with B on flat vectors.

    Args:
        H: The operator A.
        limit: Most products.
    """

    def __init__(self, H: SymmetricOperator, limit: int) -> None:
        self.H, self.limit, self.used = H, limit, 0
        self.flat = vectors.flatten(H.like)
        self.U, self.lam = self.flat.new_empty((0, self.flat.numel())), self.flat.new_empty(0)
        self.failed = False

    @property
    def left(self) -> int:
        """Products that may still be computed."""
        return 0 if self.failed else self.limit - self.used

    def known(self, w: Tensor) -> Tensor:
        """M w, (d,)."""
        return (self.lam * (self.U @ w)) @ self.U

    def plain(self, w: Tensor) -> Tensor:
        """A w, (d,)."""
        return self.checked(vectors.flatten(self.H.matvec(vectors.unflatten(w, self.H.like))))

    def checked(self, product: Tensor) -> Tensor:
        """The vector that one product gave, counted."""
        self.used += 1
        self.failed = self.failed or not bool(torch.isfinite(product).all())
        return product

    def __call__(self, w: Tensor) -> Tensor:
        """B w, (d,)."""
        product = self.plain(w)
        return product - self.known(w) if len(self.lam) else product

    def known_diagonal(self) -> Tensor:
        """The diagonal of M, (d,)."""
        diagonal = torch.zeros_like(self.flat)
        for lam, u in zip(self.lam, self.U, strict=True):
            diagonal += lam * u * u
        return diagonal

    def known_square(self, K: Deflation) -> float:
        """||M||_F^2 + 2 <M, K>.

        Args:
            K: A part of B that is known by its products.
        """
        along = sum(float(lam * (u @ K.times(u))) for lam, u in zip(self.lam, self.U, strict=True))
        return float(self.lam.square().sum()) + 2 * along

    def square(self, w: Tensor, product: Tensor, square: float) -> float:
        """A sample of ||A||_F^2 from one of ||B||_F^2: ||A||^2 = ||B||^2 + 2 <M, B> + ||M||^2.

        Args:
            w: The test vector, (d,).
            product: B w.
            square: The sample of ||B||_F^2 that it gave.

        Returns:
            ``square`` itself where nothing is known of A.
        """
        if not len(self.lam):
            return square
        return square + 2 * float(self.known(w) @ product) + float(self.lam.square().sum())

    def warm(self, start: Spectrum) -> None:
        """Take the eigenpairs of a spectrum, at no cost."""
        if start.vectors:
            rows = torch.stack([vectors.flatten(v) for v in start.vectors])
            # Orthonormal vectors, whose order and signs the factorisation keeps up to the sign.
            self.U = torch.linalg.qr(rows.T).Q.T.contiguous()
            self.lam = self.flat.new_tensor([value.value for value in start.values])
