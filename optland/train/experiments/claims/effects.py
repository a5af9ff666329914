"""Small sums that the effects of several claims are made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.cells import each
from optland.train.experiments.claims.claim import Evidence, Found
from optland.train.experiments.claims.dial import Dial

__all__ = [
    "HALF", "accuracy", "at_equal_loss", "by_data", "dimensions", "mean", "rank_correlation", "ratio", "trained",
    "two_sides",
]  # fmt: skip

Kind = TypeVar("Kind")
HALF = 50.0
"""Training accuracy at the end, in per cent, from which on a run counts as trained."""


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


def accuracy(evidence: Evidence, run: BankRun) -> float:
    """Training accuracy at the end, in per cent; 0 of a run that died, NaN of one that is not there yet."""
    line = evidence.line(run)
    if not line:
        return math.nan
    return 0.0 if line["dead"] else evidence.at_end(run, "train_acc")


def trained(evidence: Evidence, run: BankRun) -> float:
    """1 or 0; NaN where the run is not there yet. A run that died was not trained."""
    found = accuracy(evidence, run)
    return math.nan if math.isnan(found) else float(found >= HALF)


def two_sides(
    dial: Dial,
    side: Callable[[str, int, Kind], float],
    kinds: tuple[Kind, Kind],
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
        side: The number of a data set, a seed and one of the kinds.
        kinds: What is compared.
        effect: Of both numbers, in the order of the kinds.
        names: Of both.
        seeds: How many; those of the dial by default.
        beside: What else is told.
        note: One sentence where something needs saying.
    """
    pairs: list[tuple[float, float]] = []

    def one(data: str, seed: int) -> float:
        pairs.append((side(data, seed, kinds[0]), side(data, seed, kinds[1])))
        return effect(*pairs[-1])

    values = by_data(dial, one, seeds)
    told = {name: mean(pair[k] for pair in pairs) for k, name in enumerate(names)}
    return Found(values, told | dict(beside or {}), {"seeds": pairs}, names, note)


def dimensions(
    evidence: Evidence,
    dial: Dial,
    runs: Callable[[Dial, str, int], Sequence[BankRun]],
    names: tuple[str, str],
    *,
    seeds: int | None = None,
) -> Found:
    """k90 of the gradients of the second of two runs over that of the first, with how many gradients were kept.

    Args:
        evidence: What is there.
        dial: Sizes.
        runs: Both runs of a data set and seed.
        names: Of both.
        seeds: How many; those of the dial by default.
    """

    def side(data: str, seed: int, which: int) -> float:
        return evidence.watched(runs(dial, data, seed)[which], "dimension", "k90")

    kept = {"gradients kept": float(dial.gradients)}
    return two_sides(dial, side, (0, 1), lambda a, b: ratio(b, a), names, seeds=seeds, beside=kept)


def at_equal_loss(
    runs: Callable[[Dial, str, int], Sequence[BankRun]],
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
        pairs = {(data, seed): runs(dial, data, seed) for data, seed in each(dial, getattr(dial, seeds))}

        def side(data: str, seed: int, which: int) -> float:
            return evidence.at_level(pairs[data, seed][which], name)

        names = (f"{kinds[0]}: {name}", f"{kinds[1]}: {name}")
        seen = two_sides(dial, side, (0, 1), effect, names, seeds=getattr(dial, seeds))
        beside = dict(seen.beside)
        for kind, own in zip(kinds, zip(*pairs.values(), strict=True), strict=True):
            beside |= {f"{kind}: {what}": mean(evidence.at_level(run, what) for run in own) for what in read}
            ends = {what: mean(evidence.at_end(run, what) for run in own) for what in at_end}
            beside |= {f"{kind}: {what} at the end": value for what, value in ends.items()}
        return replace(seen, beside=beside)

    return found
