r"""Quantiles of Student's t distribution, for intervals from a handful of independent measurements.

.. math:: A(t \mid \nu) = P(|T| < t), \qquad \theta = \arctan(t / \sqrt{\nu})

is a finite sum in sin and cos of theta for a whole number of degrees of freedom (Abramowitz & Stegun 1964, 26.7.3 and
26.7.4), so that a quantile takes a bisection in theta and no library of special functions.
"""

from __future__ import annotations

import math
from statistics import NormalDist

__all__ = ["student_quantile"]

NEARLY_NORMAL = 1000
"""Degrees of freedom beyond which the first correction to the normal quantile is right to six digits or more."""

BISECTIONS = 100
"""Halvings of [0, pi / 2]; the interval is at rounding after about 60."""


def student_quantile(probability: float, dof: int) -> float:
    """The value that Student's t with ``dof`` degrees of freedom stays below with this probability.

    Args:
        probability: Between 0 and 1; 0.99 for a one-sided statement at 99 %.
        dof: Degrees of freedom, one less than the number of measurements behind a standard error of the mean.

    Returns:
        The quantile, negative below probability 1/2.

    Raises:
        ValueError: ``probability`` is not inside (0, 1), or ``dof`` is less than 1.

    Example:
        >>> round(student_quantile(0.975, 1), 4), round(student_quantile(0.975, 10), 4)
        (12.7062, 2.2281)
    """
    if not 0.0 < probability < 1.0:
        raise ValueError(f"probability={probability} must lie between 0 and 1, for example 0.99")
    if dof < 1:
        raise ValueError(f"dof={dof} must be at least 1: a spread takes two measurements or more")
    if probability < 0.5:
        return -student_quantile(1.0 - probability, dof)
    if dof > NEARLY_NORMAL:
        z = NormalDist().inv_cdf(probability)
        return z + (z**3 + z) / (4 * dof) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * dof**2)
    return math.sqrt(dof) * math.tan(_angle(2.0 * probability - 1.0, dof))


def _angle(inside: float, dof: int) -> float:
    """Theta at which A(t | dof) reaches ``inside``."""
    low, high = 0.0, math.pi / 2
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _inside(middle, dof) < inside:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _inside(theta: float, dof: int) -> float:
    """P(|T| < sqrt(dof) tan theta)."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = dof % 2 == 1
    term = cosine if odd else 1.0
    total = term if dof > 1 else 0.0
    for k in range(3 if odd else 2, dof - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
