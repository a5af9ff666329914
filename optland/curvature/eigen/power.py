r"""Power iteration: the eigenvalue of largest magnitude, the baseline that the Lanczos method replaces.

.. math:: w = H v, \qquad \theta = v^\top w, \qquad r = \|w - \theta v\|, \qquad
          v \leftarrow \frac{w - \sigma v}{\|w - \sigma v\|}

**Cost.** One product per step, two vectors of memory. Value and residual belong to the same vector and come with the
product that the step needs anyway.

**When.** As a baseline in comparisons, and where two vectors are all the memory there is. The error shrinks by
|lambda_2 / lambda_1| per step, so a spectrum with {10, 9.9} at its top takes hundreds of steps; Lanczos has both ends
in fewer products than this has one.

**Defaults.** 20 steps, the usual choice in scripts; ``rtol`` 1e-2 as in
:func:`~optland.curvature.eigen.lanczos.lanczos`.

**Caveats.** It finds the largest *magnitude*: on {5, 4, ..., -8} that is -8. A shift sigma near lambda_max makes it
find lambda_min, slowly. With lambda and -lambda both extreme it never settles, and says so: it stops on the residual,
never on a value that has stopped changing.

**References.** von Mises & Pollaczek-Geiringer 1929; Parlett 1998, The Symmetric Eigenvalue Problem.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from optland import vectors
from optland.archive import Archived
from optland.curvature.cost import costs
from optland.curvature.eigen.lanczos import FLOOR
from optland.curvature.operators.hessian import Method, declared_product_cost
from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.estimate import Estimate
from optland.objective import Objective

__all__ = ["PowerIteration", "power_iteration"]


@dataclass(frozen=True, slots=True)
class PowerIteration(Archived):
    """The result of power iteration.

    Attributes:
        value: Eigenvalue of H with the largest |lambda - shift|, with its residual ||H y - lambda y||.
        vector: The unit vector that value and residual belong to.
        shift: The sigma that was subtracted.
        num_matvecs: Products with the operator.
    """

    value: Estimate
    vector: list[Tensor]
    shift: float
    num_matvecs: int

    def __str__(self) -> str:
        of = "magnitude" if self.shift == 0 else f"distance from {self.shift:.4g}"
        return f"largest {of}: {self.value}, {self.num_matvecs} products"


def _cost(objective: Objective, max_matvecs: int = 20, *, method: Method = "auto") -> float:
    """The most that :func:`power_iteration` on a fresh Hessian of ``objective`` can cost, in gradient evaluations."""
    return declared_product_cost(objective, max_matvecs, method=method)


@costs(_cost)
def power_iteration(
    H: SymmetricOperator,
    max_matvecs: int = 20,
    *,
    rtol: float = 1e-2,
    shift: float = 0.0,
    seed: int = 0,
) -> PowerIteration:
    """The eigenvalue of ``H`` that lies farthest from ``shift``.

    Args:
        H: The operator.
        max_matvecs: Most products.
        rtol: Wanted residual relative to the eigenvalue, and to no less than a tenth of ||H - shift I||.
        shift: Subtracted from every eigenvalue; lambda_max here gives lambda_min.
        seed: Seed of the random start.

    Returns:
        A :class:`PowerIteration`; marked as not converged when the residual is above ``rtol``.

    Raises:
        ValueError: ``max_matvecs`` or ``rtol`` is not positive.

    Example:
        >>> from optland.curvature import hessian
        >>> from optland.problems import quadratic, with_spectrum
        >>> H = hessian(quadratic(with_spectrum([5.0, 4.0, 0.1, -8.0])))
        >>> print(power_iteration(H, 40, rtol=1e-3))  # doctest: +ELLIPSIS
        largest magnitude: -8 ± ... (residual), ... products
    """
    if max_matvecs < 1 or not rtol > 0:
        raise ValueError(f"max_matvecs={max_matvecs} and rtol={rtol} must both be positive")
    spent, v = H.cost_ge, vectors.random_unit(H.like, seed)
    for step in range(1, max_matvecs + 1):
        w = H.matvec(v)
        theta = float(vectors.dot(v, w))
        rest = vectors.clone(w)
        vectors.axpy_(-theta, v, rest)
        residual = float(vectors.norm(rest))
        enough = rtol * max(abs(theta), FLOOR * math.hypot(theta - shift, residual))
        if not math.isfinite(residual) or residual <= max(enough, H.product_error) or step == max_matvecs:
            break
        vectors.axpy_(-shift, v, w)
        v = vectors.scaled(1.0 / vectors.norm(w), w)
    found = math.hypot(residual, H.product_error)
    note = "" if math.isfinite(found) else "A product with H was not finite."
    value = Estimate(
        value=theta if math.isfinite(found) else math.nan,
        error=found if math.isfinite(found) else math.nan,
        error_kind="residual",
        converged=found <= enough,
        cost_ge=H.cost_ge - spent,
        provenance=H.provenance(f"power iteration (largest |lambda - {shift:g}|)", seed),
        note=note,
    )
    return PowerIteration(value, v, shift, step)
