"""Small sums that the effects of several claims are made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from optland.train.experiments.claims.cells import each
from optland.train.experiments.claims.dial import Dial

__all__ = ["by_data", "mean", "rank_correlation", "ratio"]


def by_data(
    dial: Dial, effect: Callable[[str, int], float], seeds: int | None = None
) -> dict[str, list[float]]:
    """The effect for each seed, by data set.

    Args:
        dial: Names the data sets.
        effect: ``effect(data, seed)``, a number or NaN.
        seeds: How many; None takes ``dial.seeds``.
    """
    values: dict[str, list[float]] = {data: [] for data in dial.data}
    for data, seed in each(dial, seeds):
        values[data].append(effect(data, seed))
    return values


def mean(values: Iterable[float]) -> float:
    """The mean of those that are finite; NaN where there are none.

    Example:
        >>> mean([1.0, 3.0, float("nan")]), mean([])
        (2.0, nan)
    """
    kept = [v for v in values if math.isfinite(v)]
    return statistics.fmean(kept) if kept else math.nan


def ratio(a: float, b: float) -> float:
    """The quotient a / b; NaN where one is not positive.

    Example:
        >>> ratio(3.0, 2.0), ratio(3.0, 0.0)
        (1.5, nan)
    """
    return a / b if a > 0 and b > 0 else math.nan


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: Pearson's correlation of the ranks, ties sharing theirs; NaN with fewer than three pairs or no order.

    A pair with a NaN is left out; infinity is the last rank.

    Args:
        x: Numbers.
        y: As many.

    Returns:
        From -1 to 1.

    Example:
        >>> rank_correlation([1.0, 2.0, 3.0], [1.0, 8.0, float("inf")])
        1.0
    """
    from scipy.stats import rankdata  # most of a second

    pairs = [(a, b) for a, b in zip(x, y, strict=True) if not (math.isnan(a) or math.isnan(b))]
    if len(pairs) < 3 or any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
        return math.nan
    ranks = [rankdata(side) for side in zip(*pairs, strict=True)]
    return round(statistics.correlation(list(map(float, ranks[0])), list(map(float, ranks[1]))), 12)
