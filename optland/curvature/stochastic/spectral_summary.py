r"""The whole spectrum in a few numbers: ends, mean, median, spread, condition, sign, each with its error.

.. math:: \bar\lambda = \frac{\mathrm{tr} H}{d}, \qquad
          \sigma^2 = \frac{\|H\|_F^2}{d} - \bar\lambda^2, \qquad
          \kappa = \frac{\max |\lambda_i|}{\min |\lambda_i|}, \qquad
          \mathrm{E}[v^\top H^p v] = \frac{\mathrm{tr} H^p}{d}

**How.** For d up to 1000 the matrix is formed and every number is exact. For more, half of the products go into one
Krylov space, whose ends, median and negative share they are; the other half into short ones from independent random
starts, whose three nodes hold v'Hv, v'H^2 v and v'H^4 v exactly: their means are the moments, and the last gives
the error of the second.

**Cost.** d products, or ``max_matvecs`` (200 by default), never exceeded.

**Caveats.** Means over few random vectors miss outliers that are few in d: their error bars are widened by the outliers
that the long space has found, but :func:`optland.curvature.stochastic.trace.trace` is the better estimator where only
the trace is wanted. The condition number is known only for definite matrices; else the eigenvalue nearest to 0 lies
inside the spectrum, where no Krylov space converges, and it is infinite when that eigenvalue cannot be told from 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from optland import vectors
from optland.archive import Archived
from optland.curvature.cost import costs
from optland.curvature.eigen.eigenvalues import (
    RESOLUTION,
    Eigenvalues,
    budget,
    counts,
    eigenvalues,
    end,
    takes_dense,
)
from optland.curvature.eigen.krylov import Array
from optland.curvature.operators.hessian import Method, declared_product_cost
from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.curvature.stochastic.quadrature import quadrature
from optland.estimate import Estimate, Provenance
from optland.objective import Objective
from optland.words import Words

__all__ = ["Definiteness", "SpectralSummary", "spectral_summary"]


class Definiteness(Words):
    """The signs of all eigenvalues together."""

    POSITIVE_DEFINITE = "positive definite"
    POSITIVE_SEMIDEFINITE = "positive semidefinite"
    NEGATIVE_DEFINITE = "negative definite"
    NEGATIVE_SEMIDEFINITE = "negative semidefinite"
    INDEFINITE = "indefinite"
    ZERO = "zero"
    UNKNOWN = "unknown"


SHORT = 3
"""Products from each short start: enough for v'H^4 v by Gauss quadrature."""


@dataclass(frozen=True, slots=True)
class SpectralSummary(Archived):
    """A spectrum in numbers.

    Attributes:
        smallest: Smallest eigenvalue.
        largest: Largest eigenvalue.
        mean: Mean of all d eigenvalues, tr H / d.
        median: Median of all d eigenvalues.
        std: Standard deviation of all d eigenvalues.
        condition: Largest over smallest magnitude; inf when some eigenvalue cannot be told from 0.
        fraction_negative: Share of eigenvalues that are negative beyond rounding.
        trace: Sum of all eigenvalues.
        frobenius: Root of the sum of their squares, ||H||_F.
        sign: The sign of the matrix as a quadratic form. ``positive semidefinite`` up to tau: none is below -tau.
        tau: Curvature that cannot be told from 0.
        dim: d.
        exact: Whether all eigenvalues were computed.
        num_matvecs: Products spent.
        cost_ge: Gradient evaluations spent.
        provenance: Method, data, mode and seed.
    """

    smallest: Estimate
    largest: Estimate
    mean: Estimate
    median: Estimate
    std: Estimate
    condition: Estimate
    fraction_negative: Estimate
    trace: Estimate
    frobenius: Estimate
    sign: Definiteness
    tau: float
    dim: int
    exact: bool
    num_matvecs: int
    cost_ge: float
    provenance: Provenance

    def __str__(self) -> str:
        how = "all eigenvalues" if self.exact else "estimated"
        names = [
            "smallest",
            "median",
            "mean",
            "largest",
            "std",
            "condition",
            "fraction_negative",
            "trace",
            "frobenius",
        ]
        return "\n".join(
            [
                f"spectrum of {self.dim} eigenvalues ({how}, {self.num_matvecs} products, {self.cost_ge:.4g} GE): "
                f"{self.sign}, tau {self.tau:.3g}",
                *(f"  {name.replace('_', ' '):<18}{getattr(self, name)}" for name in names),
            ]
        )


def _cost(objective: Objective, max_matvecs: int | None = None, *, method: Method = "auto") -> float:
    """The most that :func:`spectral_summary` on a fresh Hessian of ``objective`` can cost, in gradient evaluations."""
    products = budget(vectors.numel(objective.params), max_matvecs)
    return declared_product_cost(objective, products, method=method)


@costs(_cost)
def spectral_summary(
    H: SymmetricOperator, *, max_matvecs: int | None = None, seed: int = 0
) -> SpectralSummary:
    """Summarise the spectrum of ``H``.

    Args:
        H: The operator.
        max_matvecs: Most products; by default d for d up to 1000 (exact), else 200.
        seed: Seed of the random starts.

    Returns:
        A :class:`SpectralSummary`.

    Raises:
        ValueError: ``max_matvecs`` is below 1.

    Example:
        >>> import torch
        >>> from optland.curvature import hessian
        >>> from optland.problems import quadratic, with_spectrum
        >>> summary = spectral_summary(hessian(quadratic(with_spectrum([4.0, 1.0, 1.0, -2.0]))))
        >>> summary.sign, round(summary.trace.value, 9), round(summary.condition.value, 9)
        ('indefinite', 4.0, 4.0)
    """
    spent, already = H.cost_ge, H.num_matvecs
    total = budget(H.dim, max_matvecs)
    dense = takes_dense(H.dim, max_matvecs)
    long = total if dense else max(1, total - SHORT * (total // (2 * SHORT)))
    seen = eigenvalues(H, max_matvecs=long, seed=seed)
    left = (total - seen.num_matvecs) // SHORT if not dense else 0
    moments = _short_starts(H, left, seed) if not (seen.exact or seen.failed) else np.empty((0, 3))
    method = "all eigenvalues" if seen.exact else f"Krylov spaces of {1 + len(moments)} random starts"
    view = _View(seen, moments, H.cost_ge - spent, H.provenance(method, seed))
    mean, frobenius = view.mean(), view.frobenius()
    return SpectralSummary(
        smallest=end(seen, 0, view.cost, view.source),
        largest=end(seen, -1, view.cost, view.source),
        mean=mean,
        median=view.median(),
        std=view.std(mean, frobenius),
        condition=view.condition(),
        fraction_negative=view.scaled(counts(seen, seen.rounding, view.cost, view.source)[0], 1 / H.dim),
        trace=view.scaled(mean, H.dim),
        frobenius=frobenius,
        sign=view.sign(),
        tau=view.tau,
        dim=H.dim,
        exact=seen.exact,
        num_matvecs=H.num_matvecs - already,
        cost_ge=view.cost,
        provenance=view.source,
    )


def _short_starts(H: SymmetricOperator, number: int, seed: int) -> Array:
    """(v'Hv, v'H^2 v, v'H^4 v) of random unit vectors, (number, 3)."""
    starts = (vectors.random_unit(H.like, seed + 1000003 * (i + 1)) for i in range(number))
    found = [quadrature(H, start, SHORT) for start in starts]
    rows = [[q.moment(p) for p in (1, 2, 4)] for q in found if not q.failed]
    return np.array(rows).reshape(-1, 3)


class _View:
    """The numbers of the summary from eigenvalues, or from nodes and moments."""

    def __init__(self, seen: Eigenvalues, moments: Array, cost: float, source: Provenance) -> None:
        self.seen, self.cost, self.source = seen, cost, source
        self.d = seen.dim
        own = [float(seen.weights @ seen.values**p) for p in (1, 2, 4)]
        self.moments = np.vstack([np.array([own]), moments])  # (starts, 3)
        self.tau = seen.certificate + seen.rounding

    def estimate(self, value: float, error: float) -> Estimate:
        if self.seen.failed:
            return Estimate(math.nan, math.nan, "none", False, self.cost, self.source)
        if self.seen.exact:
            return Estimate(value, error, "residual", True, self.cost, self.source)
        known = error <= RESOLUTION * abs(value)
        return Estimate(value, error, "standard_error", known, self.cost, self.source)

    def scaled(self, x: Estimate, factor: float) -> Estimate:
        return Estimate(
            x.value * factor, x.error * factor, x.error_kind, x.converged, x.cost_ge, x.provenance, x.note
        )

    def mean(self) -> Estimate:
        m1, m2, _ = self.moments.mean(axis=0)
        return self.estimate(float(m1), self._error(float(m1), float(m2), 1))

    def _error(self, first: float, second: float, power: int) -> float:
        """Standard error of the mean of v'Av with A = H^power: var = 2 (tr A^2 / d - (tr A / d)^2) / (d + 2)."""
        if self.seen.exact:
            return self.seen.rounding * max(1.0, power * self.seen.scale ** (power - 1))
        # An outlier that the starts happened to miss would make the spread too small.
        outliers = float((self.seen.values ** (2 * power)).sum()) / self.d
        spread = max(max(second, outliers) - first**2, 0.0)
        return math.sqrt(2 * spread / (self.d + 2) / len(self.moments))

    def frobenius(self) -> Estimate:
        _, m2, m4 = self.moments.mean(axis=0)
        size = math.sqrt(self.d * m2)
        error = self.d * self._error(float(m2), float(m4), 2)
        return self.estimate(size, error / (2 * size) if size > 0 else 0.0)

    def std(self, mean: Estimate, frobenius: Estimate) -> Estimate:
        variance = max(frobenius.value**2 / self.d - mean.value**2, 0.0)
        error = 2 * math.hypot(frobenius.value * frobenius.error / self.d, mean.value * mean.error)
        std = math.sqrt(variance)
        return self.estimate(std, error / (2 * std) if std > 0 else math.sqrt(error))

    def median(self) -> Estimate:
        """The node at half of the weight, and half the distance of the nodes around it."""
        values = self.seen.values
        if self.seen.exact:
            return self.estimate(float(np.median(values)), self.seen.rounding)
        k = int(np.searchsorted(np.cumsum(self.seen.weights), 0.5))
        k = min(k, len(values) - 1)
        low, high = float(values[max(k - 1, 0)]), float(values[min(k + 1, len(values) - 1)])
        known = not self.seen.failed and (high - low) / 2 <= RESOLUTION * self.seen.scale
        value = math.nan if self.seen.failed else float(values[k])
        return Estimate(value, (high - low) / 2, "bracket", known, self.cost, self.source, "by quadrature")

    def condition(self) -> Estimate:
        values, error, tau = self.seen.values, self.seen.rounding, self.tau
        near, far = float(np.abs(values).min()), self.seen.scale
        if self.seen.failed:
            return self.estimate(math.nan, math.nan)
        definite = values[0] > tau or values[-1] < -tau
        if self.seen.exact and near <= tau:
            note = "Some eigenvalue is within tau of 0."
            return Estimate(math.inf, 0.0, "none", True, self.cost, self.source, note)
        if not (self.seen.exact or definite):
            note = "Not known: the eigenvalue nearest to 0 lies inside the spectrum, or is within tau of 0."
            return Estimate(math.nan, math.nan, "none", False, self.cost, self.source, note)
        if self.seen.exact:
            return self.estimate(far / near, (error + error * far / near) / near)
        worst = (far + tau) / (near - tau)
        known = worst - far / near <= RESOLUTION * far / near
        note = "A lower bound, with the certificate at both ends as error."
        return Estimate(far / near, worst - far / near, "certificate", known, self.cost, self.source, note)

    def sign(self) -> Definiteness:
        seen, error, tau = self.seen, self.seen.rounding, self.tau
        if seen.failed:
            return Definiteness.UNKNOWN
        low, high = float(seen.values[0]), float(seen.values[-1])
        if low < -error and high > error:
            return Definiteness.INDEFINITE
        if low > tau:
            return Definiteness.POSITIVE_DEFINITE
        if high < -tau:
            return Definiteness.NEGATIVE_DEFINITE
        if tau > max(RESOLUTION * seen.scale, error):
            return Definiteness.UNKNOWN
        if high > error:
            return Definiteness.POSITIVE_SEMIDEFINITE
        return Definiteness.NEGATIVE_SEMIDEFINITE if low < -error else Definiteness.ZERO
