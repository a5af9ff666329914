"""The shape of a loss curve in a few numbers, which several rules read."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass

from optland.doctor.histories import Histories

__all__ = ["Shape", "shape_of"]


@dataclass(frozen=True)
class Shape:
    """What the training loss did.

    Attributes:
        first: The first loss; infinite where it is not finite.
        chance: The loss of knowing nothing, or the loss at the start where that is unknown.
        begin: Median of the first tenth.
        end: Median of the last fifth.
        least: Least median of a twentieth of the run.
        gained: Share of the loss of knowing nothing that is gone at the end.
        highest: Largest median of five updates in a row over that of knowing nothing.
        jumps: Updates whose loss was over four times the median of those before it, by their numbers.
        recovered: Share of the jumps after which the loss came back.
        noise: Mean change from one update to the next in the last half, over the mean loss there.
        drift: Fall of the loss over the last half, as a share of the mean loss there; negative where it rises.
        broken: First update whose loss is not finite; 0 where none is.
        count: Number of losses.
    """

    first: float
    chance: float
    begin: float
    end: float
    least: float
    gained: float
    highest: float
    jumps: tuple[int, ...]
    recovered: float
    noise: float
    drift: float
    broken: int
    count: int


def shape_of(run: Histories) -> Shape:
    """The shape of a run's training loss.

    Args:
        run: Its ``train/loss``, and the fact ``chance``, the loss of knowing nothing, where that is known.

    Returns:
        With fewer than five finite losses a shape that no rule speaks on: nothing gained, no rise, no jump.

    Example:
        >>> run = Histories({"chance": 2.3})
        >>> for step in range(1, 101):
        ...     run.put(step, {"train/loss": 2.3 * 0.97**step})
        >>> shape = shape_of(run)
        >>> round(shape.gained, 2), shape.jumps, shape.broken
        (0.94, (), 0)
    """
    steps, raw = run.steps("train/loss"), run.raw("train/loss")
    broken = next((s for s, v in zip(steps, raw, strict=True) if not math.isfinite(v)), 0)
    losses = [v for v in raw if math.isfinite(v)]
    first = raw[0] if raw and math.isfinite(raw[0]) else math.inf
    known, n = run.fact("chance"), len(losses)
    if n < 5:
        chance = known if known > 0 else first
        return Shape(first, chance, first, first, first, 0.0, 1.0, (), 1.0, 0.0, 0.0, broken, n)
    begin = statistics.median(losses[: max(3, n // 10)])
    end = statistics.median(losses[-max(3, n // 5) :])
    chance = known if known > 0 else first if math.isfinite(first) else begin
    windows = [statistics.median(losses[i : i + 5]) for i in range(0, n - 4, 2)]
    part = max(3, n // 20)
    least = min(statistics.median(losses[i : i + part]) for i in range(0, n - part + 1, part))
    jumps, back = _jumps(losses, 1.2 * chance)
    half = losses[n // 2 :]
    mean = statistics.fmean(half)
    changes = [abs(b - a) for a, b in itertools.pairwise(half)]
    third = max(2, len(half) // 3)
    fall = statistics.fmean(half[:third]) - statistics.fmean(half[-third:])
    return Shape(
        first=first, chance=chance, begin=begin, end=end, least=least,
        gained=1 - end / chance if chance > 0 else 0.0, highest=max(windows) / chance if chance > 0 else 1.0,
        jumps=tuple(steps[i] for i in jumps), recovered=back,
        noise=statistics.fmean(changes) / mean if mean > 0 and changes else 0.0,
        drift=fall / mean if mean > 0 else 0.0, broken=broken, count=n,
    )  # fmt: skip


def _jumps(losses: list[float], above: float) -> tuple[list[int], float]:
    """Indices of single losses far above the median of the ten before, and how many were back within five.

    Near the end of a run that fits its data a batch with one hard sample is many times the usual; it is no jump as long
    as its loss is below that of knowing nothing.
    """
    found, back = [], 0
    for i in range(10, len(losses)):
        before = statistics.median(losses[i - 10 : i])
        if losses[i] > max(above, 4 * before, 4 * losses[i - 1]):
            found.append(i)
            after = losses[i + 1 : i + 6]
            back += bool(after) and min(after) < 2 * before
    return found, back / len(found) if found else 1.0
