r"""Extreme eigenvalues of the Hessian from both ends, by the Lanczos method.

.. math:: \beta_{j+1} v_{j+1} = H v_j - \alpha_j v_j - \beta_j v_{j-1}, \qquad
          T s = \theta s, \quad y = V s, \quad \|H y - \theta y\| = \beta_{m+1} |s_m|

**How.** Both ends come out of one Krylov space. It stops when the residual of every wanted pair is below
``tol``, never because a value has stopped changing: on clustered spectra a value rests long before it is
right.

**Cost.** One product an iteration, at most ``max_products``; m vectors of memory for the basis; one read from
the device an iteration. :func:`declared_cost` says the most it can cost before it runs.

**When.** The top is known after 5 to 20 products; the bottom of a network's spectrum, whose negative part is
small, takes several times that. A warm start from the last spectrum saves half of the products or more in a
training loop.

**Defaults.** ``tol`` 1e-2: the residual relative to the eigenvalue, good for logs (0.05 for a schedule, 1e-3
for plotting along eigenvectors). Eigenvalues below a tenth of ||H|| are held to that tenth, as zero has no
relative error. ``max_products`` 40: in d = 10^7 a random start then is within 3 % of the width at both ends.

**Caveats.** A residual shows that *some* eigenvalue is near. That it is the extreme one is only certified,
with probability, by a random start: repeat a cold start now and then, and compare. On a minibatch the top is
biased upwards and the bottom downwards. Copies of a multiple eigenvalue are found only after the space breaks
down.

**References.** Lanczos 1950; Paige 1980 (loss of orthogonality); Parlett 1998, The Symmetric Eigenvalue
Problem.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from optland import vectors
from optland.curvature.krylov import Array, Krylov, RitzPairs
from optland.curvature.operators import CurvatureOperator, Method, declared_product_cost
from optland.curvature.spectrum import Spectrum, random_start_certificate
from optland.estimate import Estimate
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["declared_cost", "lanczos"]

Ends = Literal["both", "top", "bottom"]

ADMIXTURE = 0.1
"""Length of the random part of a warm start: lets directions in that the last spectrum did not contain."""

FLOOR = 0.1
"""Residuals are relative to the eigenvalue, but never to less than this part of ||T||."""


def declared_cost(objective: Objective, max_products: int = 40, *, method: Method = "auto") -> float:
    """The most that :func:`lanczos` on a fresh Hessian of ``objective`` can cost, in gradient evaluations."""
    return declared_product_cost(objective, max_products, method=method)


def lanczos(
    H: CurvatureOperator,
    k: int = 1,
    *,
    ends: Ends = "both",
    tol: float = 1e-2,
    start: Spectrum | Sequence[Vector] | None = None,
    max_products: int = 40,
    seed: int = 0,
) -> Spectrum:
    """Compute the k largest and/or k smallest eigenvalues of ``H``.

    Args:
        H: The operator.
        k: Number of pairs at each end.
        ends: Which ends have to converge; the other one is reported as it came.
        tol: Wanted residual relative to the eigenvalue.
        start: The last spectrum of the same parameters, or its vectors alone, for a warm start.
        max_products: Most products with ``H``, never exceeded.
        seed: Seed of the random start, or of the random part of a warm one.

    Returns:
        A :class:`~optland.curvature.spectrum.Spectrum`; pairs that missed ``tol`` are marked as not
        converged.

    Raises:
        ValueError: ``k``, ``ends``, ``tol`` or ``max_products`` out of range, or ``start`` has other shapes.

    Example:
        >>> from optland.curvature import hessian
        >>> from optland.problems import saddle
        >>> print(lanczos(hessian(saddle(), method="double_backward")))
        spectrum: 2 products, 8 GE, cold start, epsilon 0
          top 1     2 ± 0 (residual)
          bottom 1  -2 ± 0 (residual)
          negative curvature: certified
    """
    warm = list(start.vectors if isinstance(start, Spectrum) else start or [])
    _check(H, k, ends, tol, warm, max_products)
    spent, already = H.cost_ge, H.num_products
    run = _Run(H, k, ends, tol, cold=not warm, limit=min(max_products, H.dim))
    run.space.start(_starting_vector(H, warm, seed))
    while not run.over:
        run.space.extend()
        run.look()
        if run.space.broke_down and not run.over:
            run.space.start(vectors.random_unit(H.objective.params, seed + run.breakdowns))
    return _spectrum(run, H.num_products - already, H.cost_ge - spent, seed)


class _Run:
    """A Krylov space on its way to the wanted pairs."""

    def __init__(
        self, H: CurvatureOperator, k: int, ends: Ends, tol: float, *, cold: bool, limit: int
    ) -> None:
        self.H, self.k, self.ends, self.tol, self.cold, self.limit = H, k, ends, tol, cold, limit
        self.space = Krylov(H, limit)
        self.num_pairs = min(H.dim, 2 * k if ends == "both" else k)
        self.breakdowns = 0
        self.over = False

    def look(self) -> None:
        """Take note of the last product, and decide whether to go on."""
        space = self.space
        self.breakdowns += space.broke_down
        self.over = space.failed or space.size == self.limit
        # Each start finds one copy of a multiple eigenvalue, so after a breakdown k pairs take k starts.
        if not self.over and self.told_apart and (self.breakdowns == 0 or self.breakdowns >= self.k):
            self.over = space.broke_down or self.settled(space.ritz())

    @property
    def told_apart(self) -> bool:
        """Whether the space can tell the wanted pairs apart: it has as many, or there are no more to see."""
        seen_all = self.cold and self.k == 1 and self.breakdowns > 0
        return seen_all or self.space.size >= self.num_pairs

    def settled(self, ritz: RitzPairs) -> bool:
        """Whether more products would not help: residuals within tolerance, or down to the products' own error."""
        wanted = [*self.upper(ritz), *self.lower(ritz)]
        enough = np.maximum(self.tolerance(ritz), 2 * self.H.product_error)
        return bool((ritz.residual[wanted] <= enough[wanted]).all())

    def tolerance(self, ritz: RitzPairs) -> Array:
        return self.tol * np.maximum(np.abs(ritz.theta), FLOOR * ritz.scale)

    def upper(self, ritz: RitzPairs) -> list[int]:
        """Indices of the wanted largest Ritz values, descending."""
        m = len(ritz.theta)
        return list(range(m - 1, m - 1 - min(self.k, m), -1)) if self.ends != "bottom" else []

    def lower(self, ritz: RitzPairs) -> list[int]:
        """Indices of the wanted smallest Ritz values, descending."""
        m = len(ritz.theta)
        return list(range(min(self.k, m) - 1, -1, -1)) if self.ends != "top" else []

    @property
    def certificate(self) -> float | None:
        """Bound of a random start; 0 when its Krylov space is invariant, as it then holds every eigenvalue."""
        if not self.cold:
            return None
        if self.space.size == 0:
            return 1.0
        exact = self.breakdowns > 0 or self.space.size == self.H.dim
        return 0.0 if exact else random_start_certificate(self.H.dim, self.space.size)


def _spectrum(run: _Run, num_products: int, cost: float, seed: int) -> Spectrum:
    space, H = run.space, run.H
    provenance = H.objective.provenance(f"lanczos on the Hessian by {H.method} ({H.reason})", seed)
    note = "A product with H was not finite." if space.failed else ""
    if space.size == 0:
        nothing = Estimate(math.nan, math.nan, "residual", False, cost, provenance, note)
        return Spectrum(
            (nothing,),
            nothing,
            nothing,
            (),
            1,
            (),
            num_products,
            cost,
            run.cold,
            run.certificate,
            provenance,
            note,
        )
    ritz = space.ritz()
    met = run.told_apart & (ritz.residual <= run.tolerance(ritz))

    def estimate(i: int) -> Estimate:
        theta, residual = float(ritz.theta[i]), float(ritz.residual[i])
        return Estimate(theta, residual, "residual", bool(met[i]), cost, provenance, note)

    upper, lower = run.upper(ritz), run.lower(ritz)
    return Spectrum(
        values=tuple(estimate(i) for i in upper + lower),
        top=estimate(-1),
        bottom=estimate(0),
        vectors=tuple(space.vector(ritz.s[:, i]) for i in upper + lower),
        num_top=len(upper),
        ritz_values=tuple(ritz.theta.tolist()),
        num_products=num_products,
        cost_ge=cost,
        cold=run.cold,
        certificate=run.certificate,
        provenance=provenance,
        note=note,
    )


def _starting_vector(H: CurvatureOperator, warm: Sequence[Vector], seed: int) -> list[Tensor]:
    """Random, or (y_max + y_min) / sqrt 2 of the last spectrum with a small random part."""
    random = vectors.random_unit(H.objective.params, seed)
    if not warm:
        return random
    last = vectors.combine([1.0 / math.sqrt(len(warm))] * len(warm), warm)
    vectors.axpy_(ADMIXTURE, random, last)
    return last


def _check(
    H: CurvatureOperator, k: int, ends: str, tol: float, warm: Sequence[Vector], max_products: int
) -> None:
    if not 1 <= k <= H.dim:
        raise ValueError(f"k={k} must be between 1 and the number of parameters, {H.dim}")
    if ends not in ("both", "top", "bottom"):
        raise ValueError(f"ends={ends!r} is not known; use 'both', 'top' or 'bottom'")
    if not tol > 0:
        raise ValueError(f"tol={tol} must be positive: it is the residual relative to the eigenvalue")
    if max_products < 1:
        raise ValueError(f"max_products={max_products} must be at least 1")
    shapes = [p.shape for p in H.objective.params]
    if any([t.shape for t in y] != shapes for y in warm):
        raise ValueError("start is the spectrum of other parameters: its vectors have other shapes")
