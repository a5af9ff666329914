"""Statistical tests for decisions: Student's t, Holm's correction, a slope test, batch means, robust z-scores."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

LEVEL = 0.05
"""Of the tests here: how often they speak where there is nothing."""

RECENT = 16
"""Values that the median of :func:`trend_z` is taken over."""


def student_quantile(probability: float, dof: int) -> float:
    """The value that Student's t with ``dof`` degrees of freedom stays below with this probability.

    Args:
        probability: Between 0 and 1; 0.99 for a one-sided statement at 99 %.
        dof: Degrees of freedom, one less than the number of measurements behind a standard error of the mean.

    Raises:
        ValueError: ``probability`` is not inside (0, 1), or ``dof`` is less than 1.

    Example:
        >>> round(student_quantile(0.975, 1), 4), round(student_quantile(0.975, 10), 4)
        (12.7062, 2.2281)
    """
    from scipy.special import stdtrit  # a tenth of a second, which `import optland` must not cost

    if not 0.0 < probability < 1.0:
        raise ValueError(f"probability={probability} must lie between 0 and 1, for example 0.99")
    if dof < 1:
        raise ValueError(f"dof={dof} must be at least 1: a spread takes two measurements or more")
    return float(stdtrit(dof, probability))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of several tests: below a level, a test is significant there among all of them.

    The k-th smallest of m is multiplied by m - k + 1, and none is below a smaller one's: more powerful than
    Bonferroni, and as safe under any dependence.

    Args:
        p_values: Those of the single tests, in any order.

    Returns:
        One for each, in the order given; at most 1.

    Raises:
        ValueError: One is not between 0 and 1.

    References: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    if not all(0.0 <= p <= 1.0 for p in p_values):
        raise ValueError(f"p_values {list(p_values)} must lie between 0 and 1")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    scaled = [min(1.0, (len(order) - k) * p_values[i]) for k, i in enumerate(order)]
    return [max(scaled[: order.index(i) + 1]) for i in range(len(order))]


def slope_t(values: Sequence[float]) -> tuple[float, float, float]:
    """Least-squares slope against the index, its t statistic, and the bound below which it is negative at 95 %.

    A series without noise has t = ±inf, and 0 where it is constant; ``scipy.stats.linregress`` says neither, and this
    test runs inside steps.

    Args:
        values: At least three, evenly spaced; their errors independent of each other.

    Returns:
        The slope per index, its t, and the 5 % quantile of Student's t with n - 2 degrees of freedom, which is
        negative: a series without a trend has a t below it in 5 % of cases.

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
    return slope, t, student_quantile(LEVEL, n - 2)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval; batch means over sqrt(n) blocks account for correlation.

    Args:
        values: At least two, in the order in which they were measured.

    Returns:
        The mean of all values, and the half width: Student's quantile times the standard error of the block means.
        Values after the last whole block are in the mean only.

    Example:
        >>> mean, half = mean_interval([1.0, 3.0])  # two blocks of one: the quantile 12.706 times 1
        >>> round(mean, 3), round(half, 3)
        (2.0, 12.706)
    """
    size = max(math.isqrt(len(values)), 1)
    blocks = [values[k : k + size] for k in range(0, len(values) - size + 1, size)]
    means = [math.fsum(block) / size for block in blocks]
    half = student_quantile(1 - LEVEL / 2, len(means) - 1) * statistics.stdev(means) / math.sqrt(len(means))
    return math.fsum(values) / len(values), half


def step_noise(values: Sequence[float]) -> float:
    """Standard deviation of one value of a series that drifts: 1.4826 med |x_k - x_{k-1}| / sqrt(2).

    A slope hardly touches it, and a single jump not at all.

    Args:
        values: At least two, in order. The factor 1.4826 makes the standard deviation of normal values of their median
            absolute deviation; a difference of two values has twice the variance of one.

    Example:
        >>> round(step_noise([0.0, 1.0, 0.0, 1.0, 50.0]), 3)
        1.048
    """
    steps = [abs(b - a) for a, b in itertools.pairwise(values)]
    return 1.4826 * statistics.median(steps) / math.sqrt(2.0)


def trend_z(value: float, past: Sequence[float], least: float) -> float:
    """Distance of ``value`` from the recent median of a series that drifts, in units of its :func:`step_noise`.

    Args:
        value: What is judged.
        past: The series before it.
        least: The smallest unit.

    Returns:
        Positive above the median. ``least`` keeps a series that hardly moves from making every value an outlier.

    Example:
        >>> round(trend_z(10.0, [-0.1 * k for k in range(40)], least=0.5), 2)
        26.3
    """
    middle = statistics.median(past[-RECENT:])
    return (value - middle) / max(step_noise(past), least)
