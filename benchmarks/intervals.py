"""The interval of a mean over seeds, as the tables show it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from optland.statistics import student_quantile

__all__ = ["interval"]


def interval(values: Sequence[float]) -> list[float]:
    """Mean and half width of its 95 % interval over independent values, two or more."""
    mean, n = statistics.fmean(values), len(values)
    return [mean, student_quantile(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)]
