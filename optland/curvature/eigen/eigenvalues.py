r"""All eigenvalues of a curvature operator where d is small, else estimates from a random start.

.. math:: \mathrm{index}(V^\top H V) \le \mathrm{index}(H), \qquad
          \frac{\#\{\lambda_i \le t\}}{d} \approx \sum_{\theta_j \le t} \tau_j^2, \quad \tau_j = s_{1j}

For few weights the matrix is formed and decomposed in float64. For many, one Krylov space from a random start gives,
for the same products: the ends with a certificate, a lower bound of the numbers of negative and of positive eigenvalues
(interlacing: no compression has more of either than H), and the share of eigenvalues on either side of a level
(Gauss quadrature, whose error the Chebyshev-Markov-Stieltjes inequality encloses).

**Cost.** d products where d is at most ``DENSE_DIM`` and the budget allows it, otherwise up to the budget: it stops
early once the certificate and the residuals of both ends are below a hundredth of ||H||.

**Caveats.** The share of eigenvalues below a level is resolved to about the weight of two nodes. One start draws the
share p with a standard error of sqrt(2 p (1 - p) / d).

**References.** Parlett 1998 (interlacing); Golub & Meurant 2010 (quadrature); Kuczynski & Wozniakowski 1992.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from optland import vectors
from optland.curvature.eigen.krylov import Array, Krylov
from optland.curvature.eigen.spectrum import random_start_certificate
from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.estimate import Estimate, Provenance

__all__ = [
    "DENSE_DIM",
    "Eigenvalues",
    "budget",
    "counts",
    "eigenvalues",
    "end",
    "share_below",
    "takes_dense",
]

DENSE_DIM = 1000
"""Largest d whose matrix is formed: 8 MB in float64, and an eigendecomposition of a second."""

DEFAULT_PRODUCTS = 200
"""Budget for larger d: in d = 10^6 a random start then is within 0.2 % of the width at both ends."""

CONFIDENT = 2.6
"""Standard errors on either side of a normal deviate that hold with probability 99 %."""

FLOOR = 0.1
"""Residuals are relative to the eigenvalue, but never to less than this part of ||H||."""

ASYMMETRY = 4.0
"""Rounding of a product is random, so that what it leaves of asymmetry is a part of it, of unknown size."""

RESOLUTION = 1e-2
"""Curvature, relative to ||H||, down to which products are made and an estimate counts as converged."""


@dataclass(frozen=True, slots=True)
class Eigenvalues:
    """All eigenvalues, or estimates of them from the products of a random start.

    Attributes:
        values: Eigenvalues with multiplicity (``exact``) or Ritz values, ascending.
        weights: Share of the spectrum each value stands for, adding up to 1; 1/d each where exact.
        residuals: Some eigenvalue lies within this of each value; 0 where exact.
        exact: Whether ``values`` are all d eigenvalues.
        certificate: With probability 99 %, no eigenvalue lies further than this outside of the values; inf when
            nothing can be said.
        rounding: Error of a value from the arithmetic and from the products.
        basis: Orthonormal eigenvectors in columns, (d, d), where exact; None otherwise.
        bottom: Unit vector of the smallest value.
        top: Unit vector of the largest value.
        middle: Unit vector of the value nearest to 0.
        num_matvecs: Products spent.
        dim: d.
        failed: Whether a product was not finite; the values before it are kept.
    """

    values: Array  # (m,)
    weights: Array  # (m,)
    residuals: Array  # (m,)
    exact: bool
    certificate: float
    rounding: float
    basis: Array | None
    bottom: list[Tensor]
    top: list[Tensor]
    middle: list[Tensor]
    num_matvecs: int
    dim: int
    failed: bool = False

    @property
    def scale(self) -> float:
        """Largest magnitude seen, at most ||H||."""
        return float(np.abs(self.values).max(initial=0.0))


def takes_dense(dim: int, max_matvecs: int | None) -> bool:
    """Whether :func:`eigenvalues` forms the matrix: d is small, and d products are within the budget.

    Args:
        dim: d.
        max_matvecs: The budget; None is the default one, with which the dense form is free to be chosen.

    Example:
        >>> takes_dense(500, None), takes_dense(500, 100), takes_dense(10**6, None)
        (True, False, False)
    """
    return dim <= DENSE_DIM and (max_matvecs is None or max_matvecs >= dim)


def budget(dim: int, max_matvecs: int | None) -> int:
    """The most products that :func:`eigenvalues` spends.

    Args:
        dim: d.
        max_matvecs: Most products; None for d where the matrix is formed, else 200.

    Returns:
        Never more than d, after which the space is invariant.

    Raises:
        ValueError: ``max_matvecs`` is below 1.

    Example:
        >>> budget(500, None), budget(500, 100), budget(10**6, None)
        (500, 100, 200)
    """
    if max_matvecs is not None and max_matvecs < 1:
        raise ValueError(f"max_matvecs={max_matvecs} must be at least 1, or None for the default")
    if takes_dense(dim, max_matvecs):
        return dim
    return min(dim, DEFAULT_PRODUCTS if max_matvecs is None else max_matvecs)


def eigenvalues(H: SymmetricOperator, *, max_matvecs: int | None = None, seed: int = 0) -> Eigenvalues:
    """All eigenvalues of ``H``, or the estimates that the budget allows.

    Args:
        H: The operator.
        max_matvecs: Most products; by default d for d up to 1000, else 200.
        seed: Seed of the random start.

    Returns:
        An :class:`Eigenvalues`.

    Raises:
        ValueError: ``max_matvecs`` is below 1.

    Example:
        >>> from optland.curvature import hessian
        >>> from optland.problems import saddle
        >>> seen = eigenvalues(hessian(saddle()))
        >>> seen.values.tolist(), seen.exact
        ([-2.0, 2.0], True)
    """
    limit = budget(H.dim, max_matvecs)
    if takes_dense(H.dim, max_matvecs):
        return _dense(H)
    return _from_random_start(H, limit, seed)


def _dense(H: SymmetricOperator) -> Eigenvalues:
    before = H.num_matvecs
    A = H.to_dense().to("cpu", torch.float64).numpy()
    d = len(A)
    failed = not bool(np.isfinite(A).all())
    if failed:
        A = np.full_like(A, 0.0)
    theta, Q = np.linalg.eigh((A + A.T) / 2)
    asymmetry = float(np.linalg.norm(A - A.T, 2)) / 2
    rounding = max(
        d * _eps(H) * float(np.abs(theta).max(initial=0.0)),
        ASYMMETRY * asymmetry,
        math.sqrt(d) * H.product_error,
    )

    def vector(i: int) -> list[Tensor]:
        return vectors.unflatten(torch.from_numpy(Q[:, i].copy()), H.like)

    return Eigenvalues(
        values=theta,
        weights=np.full(d, 1.0 / d),
        residuals=np.zeros(d),
        exact=not failed,
        certificate=math.inf if failed else 0.0,
        rounding=rounding,
        basis=None if failed else Q,
        bottom=vector(0),
        top=vector(-1),
        middle=vector(int(np.abs(theta).argmin())),
        num_matvecs=H.num_matvecs - before,
        dim=d,
        failed=failed,
    )


def _from_random_start(H: SymmetricOperator, limit: int, seed: int) -> Eigenvalues:
    """Ritz pairs of one Krylov space; after it has become invariant, of more starts, to see multiplicities."""
    before = H.num_matvecs
    space, starts, first = Krylov(H, limit), 0, 0
    space.start(vectors.random_unit(H.like, seed))
    while space.size < limit and not space.failed:
        space.extend()
        first = first if starts else space.size
        if space.broke_down:
            starts += 1
            if space.size < limit:
                space.start(vectors.random_unit(H.like, seed + starts))
        elif not starts and _settled(space):
            break
    m = space.size
    if m == 0:
        return _nothing(H, H.num_matvecs - before, seed)
    ritz = space.ritz()
    theta, whole = ritz.theta, m == H.dim
    certificate = 0.0 if starts or whole else _absolute(theta, H.dim, first)
    return Eigenvalues(
        values=theta,
        weights=np.full(m, 1.0 / m) if whole else ritz.s[0] ** 2,
        residuals=ritz.residual,
        exact=whole,
        certificate=math.inf if space.failed else certificate,
        rounding=max(m * _eps(H) * ritz.scale, math.sqrt(m) * H.product_error),
        basis=None,
        bottom=space.vector(ritz.s[:, 0]),
        top=space.vector(ritz.s[:, -1]),
        middle=space.vector(ritz.s[:, int(np.abs(theta).argmin())]),
        num_matvecs=H.num_matvecs - before,
        dim=H.dim,
        failed=space.failed,
    )


def _nothing(H: SymmetricOperator, num_matvecs: int, seed: int) -> Eigenvalues:
    """The result when not even the first product was finite."""
    y, zero = vectors.random_unit(H.like, seed), np.zeros(1)
    return Eigenvalues(
        values=zero,
        weights=np.ones(1),
        residuals=np.full(1, math.inf),
        exact=False,
        certificate=math.inf,
        rounding=math.inf,
        basis=None,
        bottom=y,
        top=y,
        middle=y,
        num_matvecs=num_matvecs,
        dim=H.dim,
        failed=True,
    )


def _settled(space: Krylov) -> bool:
    """Whether nothing that more products could show at the ends would exceed the resolution."""
    if random_start_certificate(space.H.dim, space.size) > RESOLUTION:  # cheap, and false for most of the run
        return False
    ritz = space.ritz()
    wanted = RESOLUTION * ritz.scale
    ends = max(float(ritz.residual[0]), float(ritz.residual[-1]))
    return ends <= wanted and _absolute(ritz.theta, space.H.dim, space.size) <= wanted


def _absolute(theta: Array, dim: int, num_matvecs: int) -> float:
    """The random-start certificate in the unit of the eigenvalues; the true width is at most w / (1 - 2 epsilon)."""
    epsilon = random_start_certificate(dim, num_matvecs)
    return epsilon * float(theta[-1] - theta[0]) / (1 - 2 * epsilon) if epsilon < 0.5 else math.inf


def _eps(H: SymmetricOperator) -> float:
    return float(torch.finfo(H.like[0].dtype).eps)


def share_below(seen: Eigenvalues, level: float) -> tuple[float, float]:
    """Share of the eigenvalues below ``level``, and its error (99 %): that of the start's draw plus half the bracket.

    Args:
        seen: What :func:`eigenvalues` gave.
        level: A curvature; eigenvalues equal to it are not below.

    Returns:
        Both between 0 and 1; the error is 0 where all eigenvalues are known.

    Example:
        >>> from optland.curvature import hessian
        >>> from optland.problems import saddle
        >>> share_below(eigenvalues(hessian(saddle())), 0.0)
        (0.5, 0.0)
    """
    if seen.exact:
        return float((seen.values < level).mean()), 0.0
    k = int((seen.values < level).sum())
    cumulative = np.concatenate([[0.0], np.cumsum(seen.weights)])
    # Every eigenvalue is seen by the first start, so beyond the last node there is nothing up to the certificate.
    low = float(cumulative[max(k - 1, 0)])
    high = float(cumulative[min(k + 1, len(seen.values))])
    if seen.certificate == 0.0:  # an invariant space holds the measure of its start exactly
        low = high = float(cumulative[k])
    share = min(1.0, (low + high) / 2)
    drawn = math.sqrt(2 * share * (1 - share) / (seen.dim + 2))
    return share, (high - low) / 2 + CONFIDENT * drawn


def counts(
    seen: Eigenvalues, error: float, cost: float, source: Provenance
) -> tuple[Estimate, Estimate, Estimate]:
    """Numbers of eigenvalues below -error, within it of 0 and above it.

    Exact counts carry no error. Estimated ones come from quadrature, are rounded to no integer, and never lie below
    what interlacing makes sure of; they are converged when known to a hundredth of d.

    Args:
        seen: What :func:`eigenvalues` gave.
        error: Size of a curvature that cannot be told from 0.
        cost: Gradient evaluations, for the record.
        source: Of the numbers.

    Returns:
        Three estimates, negative, near zero, positive; NaN where a product failed.
    """
    values, d = seen.values, seen.dim
    if seen.failed:
        nothing = Estimate(math.nan, math.nan, "none", False, cost, source)
        return nothing, nothing, nothing

    def exactly(number: int) -> Estimate:
        return Estimate(float(number), 0.0, "none", True, cost, source)

    sure = int((values < -error).sum()), int((values > error).sum())
    if seen.exact:
        return exactly(sure[0]), exactly(len(values) - sum(sure)), exactly(sure[1])
    below, below_error = share_below(seen, -error)
    not_above, above_error = share_below(seen, math.nextafter(error, math.inf))

    def counted(number: float) -> float:
        return number if number > 1e-9 * d else 0.0  # what a subtraction leaves of nothing

    negative = max(counted(d * below), float(sure[0]))
    positive = max(counted(d * (1.0 - not_above)), float(sure[1]))
    near = counted(d - negative - positive)

    def estimate(number: float, share_error: float, note: str) -> Estimate:
        known = share_error <= RESOLUTION
        return Estimate(number, d * share_error, "bracket", known, cost, source, f"by quadrature{note}")

    return (
        estimate(negative, below_error, f"; at least {sure[0]} for certain"),
        estimate(near, below_error + above_error, ""),
        estimate(positive, above_error, f"; at least {sure[1]} for certain"),
    )


def end(seen: Eigenvalues, i: int, cost: float, source: Provenance) -> Estimate:
    """The smallest (``i`` = 0) or largest (-1) value with its error.

    Args:
        seen: What :func:`eigenvalues` gave.
        i: 0 or -1.
        cost: Gradient evaluations, for the record.
        source: Of the number.

    Returns:
        With the residual as its error, and the rounding in its place where all eigenvalues are known.
    """
    value, residual = float(seen.values[i]), float(seen.residuals[i])
    if seen.failed:
        return Estimate(math.nan, math.nan, "none", False, cost, source)
    if seen.exact:
        return Estimate(value, seen.rounding, "residual", True, cost, source)
    known = residual <= RESOLUTION * max(abs(value), FLOOR * seen.scale)
    note = "A Ritz value: inside of the spectrum, at most the certificate from its end."
    return Estimate(value, residual, "residual", known, cost, source, note)
