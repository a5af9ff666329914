r"""Damped Newton steps towards a critical point of any index, all dampings from one decomposition.

.. math:: s_\mu = -(H^2 + \mu^2)^{-1} H g \quad\text{minimises}\quad |g + H s|^2 + \mu^2 |s|^2

Without damping it is the Newton step -H^+ g, with much damping the gradient step of |g|^2 / 2; every s_mu descends
|g|^2, whatever the signs of the eigenvalues. In the eigenbasis of H, or of its compression to the Krylov space of g, a
change of mu costs no product.

**Cost.** d products and a (d, d) basis, or ``max_matvecs`` products and as many vectors.

**References.** Levenberg 1944; Marquardt 1963; Saad 2003, Iterative Methods for Sparse Linear Systems.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from optland import vectors
from optland.curvature.eigen.eigenvalues import Eigenvalues
from optland.curvature.eigen.krylov import Array, Krylov
from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.vectors import Vector

__all__ = ["NewtonModel", "from_eigenvalues", "from_gradient"]


@dataclass(frozen=True, slots=True)
class NewtonModel:
    """The quadratic model of the loss: gradient and Hessian in a subspace that holds the gradient.

    Attributes:
        theta: Eigenvalues of the compressed Hessian.
        c: Coordinates of the gradient in its eigenbasis.
        lift: From coordinates in that basis to a vector in the shapes of the parameters.
    """

    theta: Array  # (m,)
    c: Array  # (m,)
    lift: Callable[[Array], list[Tensor]]

    @property
    def scale(self) -> float:
        """Largest curvature in the subspace."""
        return float(np.abs(self.theta).max(initial=0.0))

    def step(self, mu: float) -> list[Tensor]:
        r"""s_mu; without damping, eigenvalues that are 0 are left out.

        .. math:: s_\mu = -\sum_i \frac{\theta_i c_i}{\theta_i^2 + \mu^2} \, y_i

        Args:
            mu: Damping, a curvature; 0 is the Newton step.

        Returns:
            In the shapes of the parameters; towards the critical point, of whatever index.
        """
        denominator = self.theta**2 + mu**2
        y = np.divide(-self.theta * self.c, denominator, out=np.zeros_like(self.c), where=denominator > 0)
        return self.lift(y)

    def newton(self, level: float) -> tuple[list[Tensor], float]:
        """The Newton step over eigenvalues above ``level`` in magnitude, and the size of the gradient outside.

        Args:
            level: Curvature that cannot be told from 0.

        Returns:
            The step, and the norm of the gradient's part along the eigenvalues that were left out.
        """
        live = np.abs(self.theta) > level
        y = np.divide(-self.c, self.theta, out=np.zeros_like(self.c), where=live)
        return self.lift(y), float(np.linalg.norm(self.c[~live]))


def from_eigenvalues(seen: Eigenvalues, g: Vector) -> NewtonModel:
    """The exact model, from a full eigendecomposition.

    Args:
        seen: With its ``basis``.
        g: The gradient, in the shapes of the parameters.

    Raises:
        ValueError: ``seen`` holds no eigenbasis.

    Example:
        >>> from optland.curvature import hessian
        >>> from optland.curvature.eigen.eigenvalues import eigenvalues
        >>> from optland.problems import saddle
        >>> L = saddle(1.0, 0.5)
        >>> model = from_eigenvalues(eigenvalues(hessian(L)), L.gradient())
        >>> model.step(0.0)[0].tolist()  # to the saddle at the origin
        [-1.0, -0.5]
    """
    Q = seen.basis
    if Q is None:
        raise ValueError("seen holds no eigenbasis: eigenvalues() formed none, as d is large for its budget")
    flat = vectors.flatten(g).to("cpu", torch.float64).numpy()

    def lift(y: Array) -> list[Tensor]:
        return vectors.unflatten(torch.from_numpy(Q @ y), g)

    return NewtonModel(seen.values, Q.T @ flat, lift)


def from_gradient(H: SymmetricOperator, g: Vector, *, max_matvecs: int = 30) -> NewtonModel:
    """The model in the Krylov space of g, which must not be 0.

    Args:
        H: The Hessian.
        g: The gradient, in the shapes of the parameters.
        max_matvecs: Most products, and dimension of the space; 30.

    Raises:
        ValueError: The gradient is 0 or not finite.

    Example:
        >>> from optland.curvature import hessian
        >>> from optland.problems import saddle
        >>> L = saddle(1.0, 0.5)
        >>> [round(x, 12) for x in from_gradient(hessian(L), L.gradient()).step(0.0)[0].tolist()]
        [-1.0, -0.5]
    """
    length = float(vectors.norm(g))
    if not (length > 0 and np.isfinite(length)):
        raise ValueError(f"the gradient has norm {length}; a Newton step needs one that is finite and not 0")
    space = Krylov(H, min(max_matvecs, H.dim))
    space.start(g)
    while space.size < min(max_matvecs, H.dim) and not (space.broke_down or space.failed):
        space.extend()
    if space.size == 0:
        return NewtonModel(np.zeros(1), np.array([length]), lambda y: vectors.scaled(float(y[0]) / length, g))
    ritz = space.ritz()

    def lift(y: Array) -> list[Tensor]:
        coordinates = ritz.s @ y
        size = float(np.linalg.norm(coordinates))
        if size == 0.0:
            return [torch.zeros_like(t) for t in g]
        return vectors.scaled(size, space.vector(coordinates))

    return NewtonModel(ritz.theta, length * ritz.s[0], lift)
