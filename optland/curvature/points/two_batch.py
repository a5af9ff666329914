r"""The curvature along a vector on data that did not find it, and the certificate that this gives.

.. math:: q_j = u^\top H_{B_j} u, \quad j = 1 \dots r, \qquad
          \lambda_{\min} \le u^\top H u \le \lambda_{\max}, \qquad
          u^\top H u \in \bar q \pm t_{r-1}\, \mathrm{SE}

The extreme eigenvalues of a minibatch lie far outside those of the whole loss, and along its most negative eigenvector
the whole loss mostly curves upwards. Given u, the q_j of *other* batches are unbiased: their mean and spread bound
the curvature of the whole loss along u, hence both ends of its spectrum from one side.

**Cost.** One Hessian product on every batch; one graph at a time in memory. With ``distance``, three forward passes:

.. math:: q_j = \frac{L_{B_j}(w + h u) - 2 L_{B_j}(w) + L_{B_j}(w - h u)}{h^2},

the mean curvature over the stretch from -h to h, in which the slope of a batch's noise cancels. Its rounding, about
4 eps L / h^2, is in the spread.

**When.** Before a step along a direction of negative curvature; as an honest lower bound of the largest eigenvalue
beside a minibatch value, which lies above it. The test protects against false alarms: to find true negative curvature
the vector has to come from a large batch.

**Defaults.** ``confidence`` 0.99, one-sided, by Student's t: with r = 8 batches 3.0 standard errors. At least 3
batches, since with 2 the quantile is 32.

**Caveats.** Independent means drawn anew, not used for u, and not added one by one until the verdict pleases. The
quantile is that of normal q_j; batches of a few samples are skewed, and cover a little less. Batches are weighted by
their counts; the intervals are meant for batches of about equal size.

**References.** Student 1908. The use of an independent batch is sample splitting (Cox 1975).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from optland import vectors
from optland.archive import Archived
from optland.curvature.cost import costs
from optland.curvature.operators.batchwise import each_batch, mean_and_error
from optland.curvature.operators.hessian import Method, declared_product_cost, hessian
from optland.estimate import Estimate, Provenance
from optland.objective import FORWARD_GE, Objective
from optland.statistics import student_quantile
from optland.vectors import Vector
from optland.words import Words

__all__ = [
    "Certificate",
    "CertificateVerdict",
    "certify",
]


class CertificateVerdict(Words):
    """Whether the sign that was asked for holds."""

    CERTIFIED = "certified"
    NOT_CERTIFIED = "not certified"
    TOO_FEW = "too few"


FEWEST_BATCHES = 3


@dataclass(frozen=True, slots=True)
class Certificate(Archived):
    """The curvature along one direction on independent batches, with the certainty of its sign.

    Attributes:
        curvature: Mean of u'H_B u with its standard error over batches; u is of unit length.
        verdict: ``certified`` when the sign that was asked for holds at ``confidence``; ``too few`` with fewer than
            three batches.
        sign: The sign that was asked for.
        lower: u'Hu is above this with probability ``confidence``; -inf with too few batches.
        upper: u'Hu is below this with probability ``confidence``; inf with too few batches.
        values: The curvature on every batch.
        confidence: One-sided, of either bound alone.
    """

    curvature: Estimate
    verdict: CertificateVerdict
    sign: Literal["negative", "positive"]
    lower: float
    upper: float
    values: tuple[float, ...]
    confidence: float

    @property
    def certified(self) -> bool:
        """Whether the sign is certain enough to act on."""
        return self.verdict is CertificateVerdict.CERTIFIED

    def __str__(self) -> str:
        return (
            f"{self.sign} curvature {self.verdict} at {self.confidence:.4g}: {self.curvature} on {len(self.values)} "
            f"batches, between {self.lower:.4g} and {self.upper:.4g}"
        )


def _cost(objective: Objective, *, method: Method = "auto", distance: float | None = None) -> float:
    """The most that :func:`certify` on the batches of ``objective`` can cost, in gradient evaluations."""
    if distance is not None:
        return 3.0 * FORWARD_GE * objective.num_samples
    # Batch by batch a graph is kept for one product; as a whole it may be built afresh. Either way round:
    one_batch = method if method != "auto" else "kept_graph"
    return max(declared_product_cost(objective, 1, method=m) for m in (method, one_batch))


@costs(_cost)
def certify(
    vector: Vector,
    batches: Objective | Sequence[Objective],
    *,
    sign: Literal["negative", "positive"] = "negative",
    confidence: float = 0.99,
    method: Method = "auto",
    distance: float | None = None,
) -> Certificate:
    """Measure the curvature along ``vector`` on every batch, and judge its sign.

    Args:
        vector: The direction u, of any length, found on other data.
        batches: An objective, whose batches are taken one by one, or one objective for each batch.
        sign: Which sign is to be certified.
        confidence: Probability with which a bound holds, one-sided.
        method: How products are computed.
        distance: h of second differences of the loss, instead of products; None makes products.

    Returns:
        A :class:`Certificate`.

    Raises:
        ValueError: No batches, an unknown sign, ``confidence`` outside (0.5, 1), a ``distance`` that is not positive,
            or a vector that is zero, not finite, or of other shapes.

    Example:
        >>> import torch
        >>> from optland.problems import linear_regression
        >>> X = torch.tensor([[1.0], [1.5], [2.0], [1.0]], dtype=torch.float64)    # curvatures 2 x^2
        >>> L = linear_regression(X, torch.zeros_like(X), sizes=[1, 1, 1, 1])
        >>> print(certify([torch.ones(1, 1, dtype=torch.float64)], L, sign="positive", confidence=0.9))
        positive curvature certified at 0.9: 4.125 ± 1.42 (standard_error) on 4 batches, between 1.8 and 6.45
    """
    u = _checked(vector, sign, confidence)
    if distance is not None and not 0.0 < distance < math.inf:
        raise ValueError(
            f"distance={distance} is not one; use a positive number, or None for Hessian products"
        )
    values, counts, cost, source = [], [], 0.0, None
    for piece in each_batch(batches) if isinstance(batches, Objective) else batches:
        before = piece.cost_ge
        value, source = _curvature(piece, u, method) if distance is None else _stretch(piece, u, distance)
        values.append(value)
        counts.append(piece.num_samples)
        cost += piece.cost_ge - before
    if source is None:
        raise ValueError("there are no batches; pass an objective that holds some, or a list of objectives")
    mean, error = mean_and_error(values, counts)
    usable = len(values) >= FEWEST_BATCHES and math.isfinite(mean)
    margin = error * student_quantile(confidence, len(values) - 1) if usable else math.inf
    known = math.isfinite(error)
    curvature = Estimate(
        value=mean,
        error=error,
        error_kind="standard_error" if known else "none",
        converged=usable,
        cost_ge=cost,
        provenance=replace(source, num_samples=sum(counts)),
        note="" if usable else "Too few batches, or a curvature that is not finite, for a standard error.",
    )
    holds = mean + margin < 0 if sign == "negative" else mean - margin > 0
    verdict = CertificateVerdict.CERTIFIED if holds else CertificateVerdict.NOT_CERTIFIED
    if not usable:
        verdict = CertificateVerdict.TOO_FEW
    return Certificate(curvature, verdict, sign, mean - margin, mean + margin, tuple(values), confidence)


def _curvature(piece: Objective, u: Vector, method: Method) -> tuple[float, Provenance]:
    """The curvature by a Hessian product."""
    with hessian(piece, method=method) as H:
        value = float(vectors.dot(u, H.matvec(u)) / vectors.dot(u, u))
        return value, H.provenance("two-batch certificate: u'Hu")


def _stretch(piece: Objective, u: Vector, h: float) -> tuple[float, Provenance]:
    """The mean curvature from -h to h by three forward passes."""
    here, forth, back = piece.value(), piece.value(piece.displaced(u, h)), piece.value(piece.displaced(u, -h))
    source = piece.provenance(f"two-batch certificate: second difference of the loss at {h:.3g}")
    return (forth - 2.0 * here + back) / h**2, source


def _checked(vector: Vector, sign: str, confidence: float) -> Vector:
    """The vector at unit length."""
    if sign not in ("negative", "positive"):
        raise ValueError(f"sign={sign!r} is not known; use 'negative' or 'positive'")
    if not 0.5 < confidence < 1.0:
        raise ValueError(f"confidence={confidence} must lie between 0.5 and 1, for example 0.99")
    return vectors.scaled(1.0 / vectors.direction_length(vector, "vector"), vectors.dense(vector))
