"""Narrow nets depend on their start, wide ones do not; minima that are reached have similar loss."""

from __future__ import annotations

import math
import statistics

from optland.train.experiments.claims.cells import each, everywhere, plain
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import mean
from optland.train.experiments.claims.verdicts import Band
from optland.train.experiments.claims.widths import of_width

NARROW, WIDE = 4, 64


def deviations(values: list[float]) -> list[float]:
    """Distances from the median, after Brown and Forsythe 1974: what a test of equal spread compares.

    Of fewer than three values they are NaN: the median of two lies between them, whatever they are.

    Example:
        >>> deviations([1.0, 2.0, 4.0]), deviations([1.0, 2.0])
        ([1.0, 0.0, 2.0], [nan, nan])
    """
    middle = statistics.median(values) if len(values) > 2 else math.nan
    return [abs(v - middle) for v in values]


def spread(evidence: Evidence, dial: Dial) -> Found:
    """Spread of the training accuracy over seeds, narrow less wide, in points."""
    values: dict[str, list[float]] = {}
    points: dict[str, list[tuple[float, float]]] = {}
    for data in dial.data:
        found = {
            width: [
                evidence.at_end(of_width(dial, data, seed, width), "train_acc") for seed in range(dial.seeds)
            ]
            for width in (NARROW, WIDE)
        }
        whole = [k for k in range(dial.seeds) if all(math.isfinite(found[width][k]) for width in found)]
        narrow, wide = (deviations([found[width][k] for k in whole]) for width in (NARROW, WIDE))
        values[data] = [a - b for a, b in zip(narrow, wide, strict=True)]
        points[data] = [(found[WIDE][k], found[NARROW][k]) for k in whole]
    every = [pair for pairs in points.values() for pair in pairs]
    beside = {
        f"training accuracy, width {WIDE}": mean(a for a, _ in every),
        f"training accuracy, width {NARROW}": mean(b for _, b in every),
    }
    return Found(
        values, beside, points, (f"training accuracy, width {WIDE}", f"training accuracy, width {NARROW}")
    )


def similar(evidence: Evidence, dial: Dial) -> Found:
    """Distance of a seed's training loss at the end from the median over seeds, in per cent of that at the start."""
    values: dict[str, list[float]] = {}
    points: dict[str, list[tuple[float, float]]] = {}
    for data in dial.data:
        runs = [plain(dial, data, seed) for name, seed in each(dial) if name == data]
        ends = [
            (evidence.at_end(run, "train_loss"), evidence.number(run, "start", "point", "train_loss"))
            for run in runs
        ]
        kept = [(end, start) for end, start in ends if math.isfinite(end) and start > 0]
        apart = deviations([end for end, _ in kept])
        values[data] = [100.0 * a / start for a, (_, start) in zip(apart, kept, strict=True)]
        points[data] = [(float(k), end) for k, (end, _) in enumerate(kept)]
    beside = {
        f"training loss at the end, {data}": mean(y for _, y in found) for data, found in points.items()
    }
    return Found(values, beside, points, ("seed", "training loss at the end"))


CLAIMS = (
    Claim(
        name="narrow: start",
        text="Narrow nets have many local minima and depend on their initialisation; wide ones do not",
        source="first document, table of architectures",
        measured=f"distance of a seed from the median training accuracy, width {NARROW} less width {WIDE}, in points",
        band=Band(low=1.0, high=100.0, null=0.0),
        effect=spread,
        runs=everywhere(
            lambda dial, data, seed: [of_width(dial, data, seed, width) for width in (NARROW, WIDE)]
        ),
    ),
    Claim(
        name="minima: similar loss",
        text="The minima that are reached have similar loss",
        source="first document",
        measured="distance of a seed's final training loss from the median, in per cent of the loss at the start",
        band=Band(low=0.0, high=2.0, null=10.0),
        effect=similar,
        runs=everywhere(lambda dial, data, seed: [plain(dial, data, seed)]),
    ),
)
