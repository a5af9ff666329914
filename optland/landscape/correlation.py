r"""Kendall's rank correlation of flatness measures with the generalisation gap over runs.

.. math:: \tau_b = \frac{C - D}{\sqrt{(n_0 - n_1)(n_0 - n_2)}}

C and D count the pairs of runs that measure and gap order alike and unlike, n_0 all pairs, n_1 and n_2 those tied in
one of the two. 1 is the same order, -1 the opposite, 0 none. Ranks alone count, so units and scales do not.

Tau and its two-sided p-value are SciPy's: exact without ties, from the normal distribution with them. The interval
comes from resampling the runs. **A few runs prove little**: of 5 runs, only a perfect order has p below 0.05. And an
order over runs that differ in one setting is the order of that setting: Jiang et al. 2020 (arXiv:1912.02178) vary one
at a time; Andriushchenko et al. 2023 (arXiv:2302.07011) find no sharpness whose order holds across settings.

Reference: Kendall 1938 (tau), 1945 (ties).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from optland.archive import Archived

__all__ = ["RankCorrelation", "rank_correlations"]

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class RankCorrelation(Archived):
    """Kendall's tau between a measure and the gap.

    Attributes:
        tau: From -1 to 1; NaN where either has no order.
        low: Lower end of the 95 % interval over resampled runs.
        high: Its upper end.
        p_value: Probability of a tau of this size or more without any relation.
        num_runs: n.
    """

    tau: float
    low: float
    high: float
    p_value: float
    num_runs: int

    def __str__(self) -> str:
        return f"tau {self.tau:+.2f} [{self.low:+.2f}, {self.high:+.2f}], p {self.p_value:.2g}, {self.num_runs} runs"


def rank_correlations(
    measures: Mapping[str, Sequence[float]], gaps: Sequence[float], *, seed: int = 0
) -> dict[str, RankCorrelation]:
    """Kendall's tau of every measure with the gap over the same runs.

    Args:
        measures: By name, a value for each run.
        gaps: The generalisation gap of each run, in the same order.
        seed: Of the resamples.

    Returns:
        By name; positive where the gap rises with the measure. All measures share the resampled runs' seed.

    Raises:
        ValueError: Fewer than 3 runs, lists of other lengths, or a value that is not a number.

    Example:
        >>> gaps = [0.1, 0.2, 0.3, 0.4, 0.5]
        >>> print(rank_correlations({"trace": [1, 2, 3, 5, 4]}, gaps)["trace"])  # doctest: +ELLIPSIS
        tau +0.80 [...], p 0.083, 5 runs
    """
    if len(gaps) < 3:
        raise ValueError(f"{len(gaps)} runs have no order to speak of; use at least 3, better 10")
    y = _checked("gaps", gaps, len(gaps))
    return {name: _related(_checked(name, values, len(gaps)), y, seed) for name, values in measures.items()}


def _checked(name: str, values: Sequence[float], length: int) -> list[float]:
    found = [float(v) for v in values]
    if len(found) != length:
        raise ValueError(f"{name!r} has {len(found)} values for {length} runs")
    if any(map(math.isnan, found)):
        raise ValueError(f"{name!r} holds NaN; leave out the run that has no value, in every list")
    return found


def _related(x: list[float], y: list[float], seed: int) -> RankCorrelation:
    from scipy import stats  # most of a second

    n = len(x)
    found = stats.kendalltau(x, y)
    if math.isnan(found.statistic):
        return RankCorrelation(math.nan, math.nan, math.nan, 1.0, n)
    draws = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    resampled = [
        stats.kendalltau(a, b).statistic for a, b in zip(np.take(x, draws), np.take(y, draws), strict=True)
    ]
    low, high = np.nanquantile(resampled, [0.025, 0.975])  # NaN: one run drawn n times
    return RankCorrelation(float(found.statistic), float(low), float(high), float(found.pvalue), n)
