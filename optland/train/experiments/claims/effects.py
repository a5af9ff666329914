"""Small sums that the effects of several claims are made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.cells import each
from optland.train.experiments.claims.claim import Evidence, Found
from optland.train.experiments.claims.dial import Dial

__all__ = ["at_equal_loss", "by_data", "mean", "rank_correlation", "ratio", "two_sides"]


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


def two_sides(
    dial: Dial,
    sides: Callable[[str, int], tuple[float, float]],
    effect: Callable[[float, float], float],
    names: tuple[str, str],
    *,
    seeds: int | None = None,
    beside: Mapping[str, float] | None = None,
    note: str = "",
) -> Found:
    """The effect of two numbers of each seed, whose means are told beside it and which are drawn against each other.

    Args:
        dial: Sizes.
        sides: Both numbers of a data set and seed.
        effect: Of both, in their order.
        names: Of both.
        seeds: How many; those of the dial by default.
        beside: What else is told.
        note: One sentence where something needs saying.
    """
    pairs: list[tuple[float, float]] = []

    def one(data: str, seed: int) -> float:
        pairs.append(sides(data, seed))
        return effect(*pairs[-1])

    values = by_data(dial, one, seeds)
    told = {name: mean(pair[k] for pair in pairs) for k, name in enumerate(names)}
    return Found(values, told | dict(beside or {}), {"seeds": pairs}, names, note)


def at_equal_loss(
    runs: Callable[[Dial, str, int], tuple[BankRun, BankRun]],
    kinds: tuple[str, str],
    name: str,
    effect: Callable[[float, float], float],
    read: Sequence[str],
    at_end: Sequence[str] = (),
    seeds: str = "seeds",
) -> Callable[[Evidence, Dial], Found]:
    """An effect of two runs of each seed, when each has reached the level of the training loss.

    Args:
        runs: Both runs of a data set and seed.
        kinds: What they are called.
        name: What is compared.
        effect: Of the two values of it, in the order of the runs.
        read: What else is told of them at the level of the loss.
        at_end: What is told of them at the end of training.
        seeds: The setting of the dial that says how many.
    """

    def found(evidence: Evidence, dial: Dial) -> Found:
        pairs = []

        def sides(data: str, seed: int) -> tuple[float, float]:
            pairs.append(runs(dial, data, seed))
            one, other = (evidence.at_level(run, name) for run in pairs[-1])
            return one, other

        names = (f"{kinds[0]}: {name}", f"{kinds[1]}: {name}")
        seen = two_sides(dial, sides, effect, names, seeds=getattr(dial, seeds))
        beside = dict(seen.beside)
        for k, kind in enumerate(kinds):
            beside |= {f"{kind}: {what}": mean(evidence.at_level(p[k], what) for p in pairs) for what in read}
            beside |= {
                f"{kind}: {what} at the end": mean(evidence.at_end(p[k], what) for p in pairs)
                for what in at_end
            }
        return replace(seen, beside=beside)

    return found
