r"""Both ends of a curvature spectrum, with the error of each value and a verdict on negative curvature.

.. math:: \Pr\big[\, \lambda_{\max} - \theta_{\max} > \epsilon\,(\lambda_{\max} - \lambda_{\min}) \,\big] \le
          1.648 \sqrt{d}\; e^{-(2m-1)\sqrt{\epsilon}}

holds for m products from a start drawn uniformly from the sphere, and alike at the lower end. It needs no gap
between eigenvalues, and is the only statement here about what the products have *not* seen: a small residual
shows that some eigenvalue is near, never that it is the extreme one.

**References.** Kuczynski & Wozniakowski 1992 (estimating the largest eigenvalue by the power and Lanczos
algorithms with a random start).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from optland.archive import Archived
from optland.estimate import Estimate, Provenance
from optland.words import Words

__all__ = ["NegativeCurvature", "Spectrum", "certified_tau", "random_start_certificate"]


class NegativeCurvature(Words):
    """What a spectrum says of eigenvalues below 0."""

    CERTIFIED = "certified"
    NONE_BELOW = "none below -tau"
    UNKNOWN = "unknown"


CONFIDENCE = 0.99
"""Probability with which a random-start certificate holds at both ends together."""


@dataclass(frozen=True, slots=True)
class Spectrum(Archived):
    """Extreme eigenvalues and eigenvectors of a curvature operator.

    Attributes:
        values: The k largest and then the k smallest eigenvalues (those that were asked for), descending.
        top: The largest eigenvalue, asked for or not.
        bottom: The smallest eigenvalue, asked for or not.
        vectors: One unit eigenvector, a list of tensors in the parameters' shapes, for each of ``values``.
        num_top: How many of ``values`` belong to the upper end.
        ritz_values: All Ritz values, ascending: everything that the products have seen of the spectrum.
        num_matvecs: Products with the operator.
        cost_ge: Gradient evaluations spent.
        cold: Whether the start was random; a warm start can lock on to pairs that are not extreme.
        certificate: For cold starts, the distance of ``top`` and ``bottom`` to the true extremes relative to
            the spectral width, exceeded with probability 1 % at most; None for warm starts.
        provenance: Method, data, mode and seed.
        note: One sentence when something needs saying.
        value_errors: For each of ``values`` r^2 / gap, the error of the value itself as far as the Ritz values
            show the gaps of the spectrum: an estimate, where ``error`` bounds the distance to some eigenvalue.
        num_restarts: How often the basis was full and all but the wanted vectors were dropped.
    """

    values: tuple[Estimate, ...]
    top: Estimate
    bottom: Estimate
    vectors: tuple[list[Tensor], ...]
    num_top: int
    ritz_values: tuple[float, ...]
    num_matvecs: int
    cost_ge: float
    cold: bool
    certificate: float | None
    provenance: Provenance
    note: str = ""
    value_errors: tuple[float, ...] = ()
    num_restarts: int = 0

    @property
    def converged(self) -> bool:
        """Whether every value that was asked for met its tolerance."""
        return all(value.converged for value in self.values)

    @property
    def residuals(self) -> tuple[float, ...]:
        """Residual ||H y - theta y|| of each of ``values``."""
        return tuple(value.error for value in self.values)

    @property
    def tau(self) -> float | None:
        """With probability 99 %, no eigenvalue lies below -tau; None when nothing can be said.

        The certificate is relative to the true width, of which only the seen part w is known: width <= w / (1
        - 2 epsilon), since each end may be epsilon widths further out.
        """
        if not self.ritz_values:
            return None
        return certified_tau(self.ritz_values[0], self.ritz_values[-1], self.certificate)

    @property
    def negative_curvature(self) -> NegativeCurvature:
        """``certified`` when the interval around the smallest value is below 0, else what the start allows.

        ``none below -tau`` holds with probability 99 %; ``unknown`` after a warm start or too few products.
        """
        if self.bottom.value + self.bottom.error < 0:
            return NegativeCurvature.CERTIFIED
        return NegativeCurvature.UNKNOWN if self.tau is None else NegativeCurvature.NONE_BELOW

    def __str__(self) -> str:
        start = "warm start" if self.certificate is None else f"cold start, epsilon {self.certificate:.2g}"
        lines = [f"spectrum: {self.num_matvecs} products, {self.cost_ge:.4g} GE, {start}"]
        for i, value in enumerate(self.values):
            upper = i < self.num_top
            name = f"top {i + 1}" if upper else f"bottom {len(self.values) - i}"
            lines.append(f"  {name:<9} {value}")
        verdict = self.negative_curvature
        lines.append(
            f"  negative curvature: {verdict}" + (f", tau {self.tau:.3g}" if "tau" in verdict else "")
        )
        return "\n".join(lines + ([f"  {self.note}"] if self.note else []))


def random_start_certificate(d: int, num_matvecs: int, share: float = 1.0) -> float:
    """The epsilon of the bound above, at confidence 99 % for both ends together, at most 1.

    Args:
        d: Dimension of the matrix.
        num_matvecs: m, products in the Krylov space of the random start.
        share: Length of the random part of a start of length 1; the probability of failure grows by its inverse.

    Example:
        >>> round(random_start_certificate(10**7, 50), 4), random_start_certificate(10**7, 2)
        (0.0196, 1.0)
    """
    if num_matvecs < 1:
        return 1.0
    failure = share * (1 - CONFIDENCE) / 2  # half for each end
    return min(1.0, (math.log(1.648 * math.sqrt(d) / failure) / (2 * num_matvecs - 1)) ** 2)


def certified_tau(smallest: float, largest: float, certificate: float | None) -> float | None:
    """The tau such that with probability 99 % no eigenvalue lies below -tau; None when nothing can be said.

    Args:
        smallest: Smallest Ritz value.
        largest: Largest Ritz value.
        certificate: The epsilon of :func:`random_start_certificate`, or None after a warm start.

    Returns:
        0 where even the certified bound is positive; None after a warm start, and from 1/2 on, where the seen width
        says nothing of the true one.

    Example:
        >>> certified_tau(1.0, 9.0, 0.1), certified_tau(0.0, 9.0, 0.1), certified_tau(0.0, 9.0, None)
        (0.0, 1.125, None)
    """
    if certificate is None or not certificate < 0.5:
        return None
    width = (largest - smallest) / (1 - 2 * certificate)
    return max(0.0, certificate * width - smallest)
