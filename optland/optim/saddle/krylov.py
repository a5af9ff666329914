r"""A Krylov space that holds the gradient and the extreme curvature, with the Hessian inside it.

.. math:: Q^\top Q = I, \qquad B = Q^\top H Q = U \Lambda U^\top

Grown by Lanczos from the gradient and, for the last part, from a random vector orthogonal to all so far: a space of
powers of H on g alone is empty where g = 0, and never leaves an invariant subspace, the *hard case* in which every
method built on it stays on the stable ridge of a saddle. All vectors are orthogonalised twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optland import vectors
from optland.curvature.eigen.spectrum import certified_tau, random_start_certificate
from optland.vectors import Vector

__all__ = ["Krylov", "explore"]

BREAKDOWN = 1e-8
"""A new vector this much shorter than the product that it came from adds nothing."""

MATURE = 5
"""Random products before a negative direction that the gradient led to may end the search. On minibatches the gradient
is noise, its own space holds some slightly negative curvature, and what is really negative may lie outside it."""


@dataclass
class Krylov:
    """The Hessian in a small space.

    Attributes:
        basis: Orthonormal vectors q_1 ... q_k.
        values: Eigenvalues of B, ascending.
        mixes: Eigenvectors of B, columns, in the basis.
        gradient: Coefficients of g in the eigenvectors of B.
        residual: ||H v - lambda v|| of the smallest Ritz pair.
        error: Error of a curvature by the way that products are made: what cannot be told from zero; 0 if exact.
        num_matvecs: Products with H.
        num_random_matvecs: Those in the part that started at random.
        complete: Whether the space is the whole one.
    """

    basis: list[list[Tensor]]
    values: Tensor
    mixes: Tensor
    gradient: Tensor
    residual: float
    error: float
    num_matvecs: int
    num_random_matvecs: int
    complete: bool

    def vector(self, coefficients: Tensor) -> list[Tensor]:
        """The vector with these coefficients in the eigenvectors of B.

        Args:
            coefficients: (k,).

        Returns:
            In the shapes of the weights, of the length of the coefficients.
        """
        return vectors.combine((self.mixes @ coefficients).tolist(), self.basis)

    @property
    def lowest_vector(self) -> list[Tensor]:
        """The unit vector of the smallest Ritz value."""
        return vectors.combine(self.mixes[:, 0].tolist(), self.basis)

    @property
    def lowest(self) -> float:
        """The smallest Ritz value, an upper bound of the smallest eigenvalue."""
        return float(self.values[0])

    @property
    def size(self) -> float:
        """The largest curvature seen, in absolute value."""
        return float(self.values.abs().max())

    def tau_or_nan(self, rounding: float) -> float:
        """:meth:`tau` for a record; NaN where nothing is known."""
        found = self.tau(sum(t.numel() for t in self.basis[0]), rounding)
        return math.nan if found is None else found

    def tau(self, dim: int, rounding: float) -> float | None:
        """The tau such that no eigenvalue lies below -tau: exact in the whole space, else with probability 99 %.

        None where too few products were made to say anything.

        Args:
            dim: Number of weights d.
            rounding: Relative error of a curvature.
        """
        exact = max(0.0, -self.lowest) + rounding * self.size
        if self.complete:
            return exact
        certificate = random_start_certificate(dim, self.num_random_matvecs)
        found = certified_tau(self.lowest, float(self.values[-1]), certificate)
        return None if found is None else max(found, exact)


def explore(
    product: Callable[[Vector], Vector],
    g: Vector,
    *,
    budget: int,
    generator: torch.Generator,
    tol: float = 0.05,
    until_negative: bool = False,
    doubt: Callable[[Vector, float], float] | None = None,
) -> Krylov:
    """Grow the space until the budget is spent, or the smallest eigenvalue is known.

    Args:
        product: v -> H v.
        g: The gradient, which may be zero.
        budget: Products, at least 1; the space is whole after d of them.
        generator: Of the random part.
        tol: Relative residual of the smallest Ritz pair at which it counts as known.
        until_negative: Stop as soon as a surely negative direction is known.
        doubt: (v, v'Hv) -> error of that curvature, for products that are not exact; asked once, at the end.

    Example:
        >>> A = torch.diag(torch.tensor([3.0, -1.0], dtype=torch.float64))
        >>> at_rest = [torch.zeros(2, dtype=torch.float64)]
        >>> found = explore(lambda v: [A @ v[0]], at_rest, budget=2, generator=torch.Generator().manual_seed(0))
        >>> round(found.lowest, 6), found.complete
        (-1.0, True)
    """
    dim = vectors.numel(g)
    budget = min(budget, dim)
    basis: list[list[Tensor]] = []
    images: list[list[Tensor]] = []
    length = float(vectors.norm(g))
    # From the gradient with a part of the budget, from a random vector with the rest.
    from_gradient = (budget + 1) // 2 if length > 0 and math.isfinite(length) else 0
    num_random_matvecs = 0
    fresh: list[Tensor] | None = vectors.scaled(1.0 / length, g) if from_gradient else None
    at_random = from_gradient == 0
    while len(basis) < budget:
        if fresh is None or (not at_random and len(basis) >= from_gradient):
            at_random, fresh = True, _random_like(g, generator, basis)
            if fresh is None:
                break
        basis.append(fresh)
        images.append([t.detach() for t in product(fresh)])
        num_random_matvecs += at_random
        fresh = _next(images[-1], basis)
        if until_negative and at_random and len(basis) > 1:
            found = _solve(basis, images, g, num_random_matvecs, dim)
            surely = found.residual < tol * found.size and found.lowest + found.residual < 0
            if surely and (num_random_matvecs >= MATURE or _from_random_part(found)):
                break
    found = _solve(basis, images, g, num_random_matvecs, dim)
    if doubt is not None:
        found.error = doubt(found.lowest_vector, found.lowest)
    return found


def _from_random_part(found: Krylov) -> bool:
    """Whether the lowest direction came out of the random part, and not out of what the gradient alone leads to."""
    at_random = found.mixes[len(found.basis) - found.num_random_matvecs :, 0]
    return float(at_random.square().sum()) > 0.5


def _next(image: Vector, basis: list[list[Tensor]]) -> list[Tensor] | None:
    before = float(vectors.norm(image))
    return _orthogonal(image, basis, BREAKDOWN * before)


def _orthogonal(v: Vector, basis: list[list[Tensor]], least: float) -> list[Tensor] | None:
    """``v`` without its parts in the basis, at unit length; None where nothing is left."""
    w = vectors.clone(list(v))
    for _ in range(2):
        for q in basis:
            vectors.axpy_(-float(vectors.dot(q, w)), q, w)
    length = float(vectors.norm(w))
    if not length > max(least, 1e-30) or not math.isfinite(length):
        return None
    return vectors.scaled(1.0 / length, w)


def _random_like(g: Vector, generator: torch.Generator, basis: list[list[Tensor]]) -> list[Tensor] | None:
    draw = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in g]
    return _orthogonal(draw, basis, 1e-6 * float(vectors.norm(draw)))


def _solve(
    basis: list[list[Tensor]], images: list[list[Tensor]], g: Vector, num_random_matvecs: int, dim: int
) -> Krylov:
    k = len(basis)
    B = torch.tensor([[float(vectors.dot(q, h)) for h in images] for q in basis], dtype=torch.float64)
    values, mixes = torch.linalg.eigh(0.5 * (B + B.T))
    slope = torch.tensor([float(vectors.dot(q, g)) for q in basis], dtype=torch.float64)
    lowest = mixes[:, 0].tolist()
    v, Hv = vectors.combine(lowest, basis), vectors.combine(lowest, images)
    vectors.axpy_(-float(values[0]), v, Hv)
    return Krylov(
        basis, values, mixes, mixes.T @ slope, float(vectors.norm(Hv)), 0.0, k, num_random_matvecs, k >= dim
    )
