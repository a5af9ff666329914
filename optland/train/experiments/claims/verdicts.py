r"""From measured effects to a verdict, by one rule for all claims.

An effect is measured once for each seed and data set. With the mean m_k and the standard error s_k of each of K data
sets, the effect and its error are

.. math:: \bar m = \frac1K \sum_k m_k, \qquad s^2 = \frac1{K^2} \sum_k s_k^2,

and the 95 % interval is Student's t with the degrees of freedom of Welch and Satterthwaite. Ratios are averaged as
logarithms. A claim says that the effect lies in a **band**, and what it would be if nothing were true of it, the
**null**. p is two-sided, for the effect being the null, and is corrected over all rows after Holm. Then:

=============================  ========================================================================================
supported                      p < 0.05, on the claimed side of the null, and the mean lies in the band
same direction, other size     p < 0.05, on the claimed side, and the interval leaves the band out
opposite                       p < 0.05, on the other side of the null
not supported                  p >= 0.05 and the interval leaves the band out
undecided at this scale        all else: also where data sets contradict each other, or one has fewer than two values
=============================  ========================================================================================

References: Welch 1947 (the degrees of freedom); Holm 1979 (the correction).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from optland.statistics import student_quantile
from optland.words import Words

__all__ = ["Band", "Effect", "Verdict", "effect_of", "verdict_of"]

LEVEL = 0.05


class Verdict(Words):
    """What the experiment says of a claim; the module has the rule."""

    SUPPORTED = "supported"
    OTHER_SIZE = "same direction, other size"
    NOT_SUPPORTED = "not supported"
    OPPOSITE = "opposite"
    UNDECIDED = "undecided at this scale"


@dataclass(frozen=True)
class Band:
    """What a claim predicts of its effect.

    Attributes:
        low: Least effect that the claim speaks of.
        high: Largest.
        null: The effect if the claim had nothing to it; outside of the band.
        is_ratio: Whether the effect is a ratio, so that means and intervals are those of its logarithm.
        resolution: Least difference that a single value can show; an interval is never narrower than its share.

    Raises:
        ValueError: The null lies in the band.
    """

    low: float
    high: float = math.inf
    null: float = 0.0
    is_ratio: bool = False
    resolution: float = 0.0

    def __post_init__(self) -> None:
        if not self.low <= self.high or self.low <= self.null <= self.high:
            raise ValueError(
                f"null: {self.null} must lie outside of the band from {self.low} to {self.high}, or no result could "
                "speak against the claim"
            )
        if self.is_ratio and not (self.low >= 0 and self.null > 0):
            raise ValueError(f"is_ratio: low {self.low} must be 0 or more and null {self.null} above 0")

    def claimed_side(self, value: float) -> bool:
        """Whether a value lies on the side of the null on which the band lies.

        Args:
            value: An effect, in its own unit, not its logarithm.

        Example:
            >>> Band(low=2.0, null=1.0, is_ratio=True).claimed_side(1.1), Band(low=-1.0, high=-0.5).claimed_side(0.1)
            (True, False)
        """
        return value > self.null if self.low > self.null else value < self.null


@dataclass(frozen=True)
class Effect:
    """An effect over seeds and data sets.

    Attributes:
        mean: The mean over data sets; a geometric one of a ratio. NaN where a data set has too few values.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p_value: Two-sided, for the null; not corrected.
        by_data: Mean of each data set.
        counts: Values of each data set.
        contradict: Whether two data sets have intervals on both sides of the null.
    """

    mean: float
    low: float
    high: float
    p_value: float
    by_data: Mapping[str, float]
    counts: Mapping[str, int]
    contradict: bool = False


def effect_of(values: Mapping[str, Sequence[float]], band: Band) -> Effect:
    """The effect of the values of each data set; those that are not finite are left out.

    Args:
        values: One effect for each seed, by data set.
        band: Says whether effects are ratios, what the null is, and the grain of a single value.

    Returns:
        Mean, 95 % interval and p; all NaN, and p 1, where a data set has fewer than two finite values.

    Example:
        >>> found = effect_of({"digits": [1.9, 2.1, 2.0], "mnist1d": [2.2, 1.8, 2.0]}, Band(low=1.0))
        >>> round(found.mean, 3), round(found.low, 2), round(found.high, 2), round(found.p_value, 3)
        (2.0, 1.72, 2.28, 0.001)
    """
    kept = {name: [v for v in map(_inner(band), xs) if math.isfinite(v)] for name, xs in values.items()}
    counts = {name: len(xs) for name, xs in kept.items()}
    outer = math.exp if band.is_ratio else float
    by_data = {name: outer(statistics.fmean(xs)) if xs else math.nan for name, xs in kept.items()}
    if not kept or min(counts.values()) < 2:
        return Effect(math.nan, math.nan, math.nan, 1.0, by_data, counts)
    null = _inner(band)(band.null)
    mean, error, dof = _combined(list(kept.values()), band.resolution)
    half = student_quantile(1 - LEVEL / 2, dof) * error
    ends = [_interval(xs, band.resolution) for xs in kept.values()]
    contradict = any(low > null for low, _ in ends) and any(high < null for _, high in ends)
    p_value = _p_value(mean - null, error, dof)
    return Effect(outer(mean), outer(mean - half), outer(mean + half), p_value, by_data, counts, contradict)


def verdict_of(effect: Effect, band: Band, p_value: float) -> Verdict:
    """The verdict under the rule of the module.

    Args:
        effect: What was measured.
        band: What was predicted.
        p_value: Corrected over all rows.

    Example:
        >>> band = Band(low=3.0, high=5.0, null=1.0, is_ratio=True)
        >>> found = effect_of({"digits": [1.9, 2.1, 2.0, 2.0]}, band)
        >>> verdict_of(found, band, p_value=0.001)
        'same direction, other size'
    """
    if math.isnan(effect.mean) or effect.contradict:
        return Verdict.UNDECIDED
    outside = effect.high < band.low or effect.low > band.high
    if p_value >= LEVEL:
        return Verdict.NOT_SUPPORTED if outside else Verdict.UNDECIDED
    if not band.claimed_side(effect.mean):
        return Verdict.OPPOSITE
    if band.low <= effect.mean <= band.high:
        return Verdict.SUPPORTED
    return Verdict.OTHER_SIZE if outside else Verdict.UNDECIDED


def _inner(band: Band) -> Callable[[float], float]:
    if not band.is_ratio:
        return float
    return lambda v: math.log(v) if v > 0 else math.nan


def _error(values: Sequence[float], resolution: float) -> float:
    """Standard error of a mean; values that are all alike still have the grain of their measurement."""
    spread = max(statistics.stdev(values), resolution / math.sqrt(12))
    return spread / math.sqrt(len(values))


def _combined(groups: Sequence[Sequence[float]], resolution: float) -> tuple[float, float, int]:
    r"""Mean over data sets, its error, and the degrees of freedom.

    .. math:: \nu = \frac{\bigl(\sum_k s_k^2\bigr)^2}{\sum_k s_k^4 / (n_k - 1)}

    rounded down, one at least (Welch 1947; Satterthwaite 1946).
    """
    errors = [_error(xs, resolution) ** 2 for xs in groups]
    total = sum(errors)
    mean = statistics.fmean(statistics.fmean(xs) for xs in groups)
    parts = sum(e**2 / (len(xs) - 1) for e, xs in zip(errors, groups, strict=True))
    dof = math.floor(total**2 / parts + 1e-9) if parts > 0 else sum(len(xs) - 1 for xs in groups)
    return mean, math.sqrt(total) / len(groups), max(1, dof)


def _interval(values: Sequence[float], resolution: float) -> tuple[float, float]:
    half = student_quantile(1 - LEVEL / 2, len(values) - 1) * _error(values, resolution)
    mean = statistics.fmean(values)
    return mean - half, mean + half


def _p_value(distance: float, error: float, dof: int) -> float:
    """Two-sided p of Student's t at a distance of the mean from the null; without any spread 0 or 1."""
    from scipy.special import stdtr  # a tenth of a second

    if error == 0.0:
        return 0.0 if distance else 1.0
    return float(2 * stdtr(dof, -abs(distance) / error))
