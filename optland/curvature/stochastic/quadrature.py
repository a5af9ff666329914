r"""Gauss quadrature of the spectral measure of one random vector, by Lanczos, for density and summary.

.. math:: v^\top f(H)\, v = \sum_{i=1}^{d} (u_i^\top v)^2 f(\lambda_i) \approx \sum_{i=1}^{m} \tau_i^2 f(\theta_i)

with the Ritz values theta of m products from the unit vector v and the squared first components tau^2 of their
eigenvectors: exact for polynomials up to degree 2m - 1, and for every f where the Krylov space ends.

**Cost.** m products, and m + 1 vectors of memory.

**References.** Golub and Meurant 2010.
"""

from __future__ import annotations

from dataclasses import dataclass

from optland.curvature.eigen.krylov import Array, Krylov
from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.vectors import Vector

__all__ = ["Quadrature", "quadrature"]


@dataclass(frozen=True, slots=True, eq=False)
class Quadrature:
    """Nodes and weights of the spectral measure of one vector.

    Attributes:
        nodes: Ritz values theta, ascending, (m,); none where the first product was not finite.
        weights: tau^2 of each node, adding up to 1.
        residuals: |Hy - theta y| of each node: where it is small, the node is an eigenvalue.
        failed: Whether a product was not finite, which ends the space; the nodes are those before it.
    """

    nodes: Array
    weights: Array
    residuals: Array
    failed: bool

    def moment(self, p: int) -> float:
        """The moment v'H^p v, exact for p up to 2m - 1."""
        return float(self.weights @ self.nodes**p)


def quadrature(H: SymmetricOperator, start: Vector, steps: int) -> Quadrature:
    """Nodes and weights from at most ``steps`` products with ``H``; fewer where the Krylov space ends.

    Args:
        H: The operator.
        start: The vector v, of any length.
        steps: Most products, m.

    Example:
        >>> import torch
        >>> from optland.curvature import hessian
        >>> from optland.problems import quadratic
        >>> H = hessian(quadratic(torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))))
        >>> found = quadrature(H, [torch.ones(2, dtype=torch.float64)], 5)
        >>> found.nodes.round(9).tolist(), found.weights.round(9).tolist(), round(found.moment(2), 9)
        ([1.0, 3.0], [0.5, 0.5], 5.0)
    """
    space = Krylov(H, min(steps, H.dim))
    space.start(start)
    while space.size < space.capacity and not (space.broke_down or space.failed):
        space.extend()
    ritz = space.ritz()
    first = ritz.s[0] ** 2 if space.size else ritz.theta
    return Quadrature(ritz.theta.copy(), first, ritz.residual.copy(), space.failed)
