"""The tests behind decisions: a one-sided slope test, a mean with batch-means error, robust z-scores."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

__all__ = ["mean_interval", "robust_z", "slope_t", "step_noise", "t_quantile", "trend_z"]


def t_quantile(p: float, df: int) -> float:
    """Student's t quantile by the Cornish-Fisher expansion in 1/df.

    Its error is below 0.5 % for p = 0.975 from five degrees of freedom on.

    Example:
        >>> round(t_quantile(0.95, 20), 3)
        1.725
    """
    z = float(statistics.NormalDist().inv_cdf(p))
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + terms[0] / df + terms[1] / df**2 + terms[2] / df**3


def slope_t(values: Sequence[float], level: float = 0.05) -> tuple[float, float, float]:
    """Least-squares slope against the index, its t statistic, and the bound below which it is significantly negative.

    Example:
        >>> slope, t, bound = slope_t([3.0, 2.1, 0.9, 0.0, -1.1, -2.0])
        >>> round(slope, 2), t < bound
        (-1.01, True)
    """
    n = len(values)
    x_mean, y_mean = (n - 1) / 2, math.fsum(values) / n
    sxx = n * (n * n - 1) / 12
    slope = math.fsum((k - x_mean) * (y - y_mean) for k, y in enumerate(values)) / sxx
    rest = math.fsum((y - y_mean - slope * (k - x_mean)) ** 2 for k, y in enumerate(values))
    error = math.sqrt(rest / (n - 2) / sxx)
    t = slope / error if error > 0 else math.copysign(math.inf, slope) if slope else 0.0
    return slope, t, t_quantile(level, n - 2)


def mean_interval(values: Sequence[float], level: float = 0.05) -> tuple[float, float]:
    """Mean and half width of its confidence interval; batch means over sqrt(n) blocks account for correlation."""
    size = max(math.isqrt(len(values)), 1)
    blocks = [values[k : k + size] for k in range(0, len(values) - size + 1, size)]
    means = [math.fsum(block) / size for block in blocks]
    half = t_quantile(1 - level / 2, len(means) - 1) * statistics.stdev(means) / math.sqrt(len(means))
    return math.fsum(values) / len(values), half


def robust_z(value: float, past: Sequence[float], least: float) -> float:
    """Distance of ``value`` from the median of ``past`` in robust standard deviations, at least ``least`` each.

    Example:
        >>> round(robust_z(10.0, [0.0, 1.0, 2.0, 3.0, 4.0], least=0.1), 4)
        5.3959
    """
    middle = statistics.median(past)
    spread = 1.4826 * statistics.median(abs(x - middle) for x in past)
    return (value - middle) / max(spread, least)


def step_noise(values: Sequence[float]) -> float:
    """Standard deviation of one value of a series that drifts: 1.4826 med |x_k - x_{k-1}| / sqrt(2).

    A slope hardly touches it, and a single jump not at all.

    Example:
        >>> round(step_noise([0.0, 1.0, 0.0, 1.0, 50.0]), 3)
        1.048
    """
    steps = [abs(b - a) for a, b in itertools.pairwise(values)]
    return 1.4826 * statistics.median(steps) / math.sqrt(2.0)


def trend_z(value: float, past: Sequence[float], least: float, recent: int = 16) -> float:
    """As :func:`robust_z` for a series that drifts: against its recent median, in units of its step-to-step noise.

    The spread is :func:`step_noise`.

    Example:
        >>> round(trend_z(10.0, [-0.1 * k for k in range(40)], least=0.5), 2)
        26.3
    """
    middle = statistics.median(past[-recent:])
    return (value - middle) / max(step_noise(past), least)
