"""Independent minima connect, straighter as width grows; wide nets are convex along the way."""

from __future__ import annotations

import math

from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.connected import WIDTHS, pair, pairs
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean, ratio
from optland.train.experiments.claims.verdicts import Band
from optland.train.experiments.claims.widths import of_width, widths_everywhere

NARROW, WIDE = WIDTHS[0], WIDTHS[-1]
LEAST = 1e-3
"""Share of the largest eigenvalue below which the smallest counts as 0."""

FLOOR = 1e-3
"""Barriers below this are taken as this: less cannot be told from none on so few samples."""


def connect(evidence: Evidence, dial: Dial) -> Found:
    """Share of the line's barrier that is gone on the trained curve, width 64."""
    points: dict[str, list[tuple[float, float]]] = {data: [] for data in dial.data}
    series = {}

    def one(data: str, seed: int) -> float:
        trial = pair(dial, data, seed, 64)
        line, curve = evidence.trial(trial, "line"), evidence.trial(trial, "curve")
        points[data].append((line, curve))
        if seed == 0:
            for name in ("line", "curve"):
                t = evidence.listed(trial, "t" if name == "line" else "curve_t")
                series[f"{name}, {data}"] = list(zip(t, evidence.listed(trial, f"{name}_loss"), strict=True))
        return 1.0 - curve / line if line > 10 * FLOOR else math.nan

    values = by_data(dial, one)
    every = [pair for found in points.values() for pair in found]
    beside = {"barrier of the line": mean(x for x, _ in every), "of the curve": mean(y for _, y in every)}
    return Found(
        values, beside, series, ("t", "training loss"), "A line without a barrier leaves nothing to connect."
    )


def straighter(evidence: Evidence, dial: Dial) -> Found:
    """Barrier of the line, narrow over wide."""
    found: dict[int, list[float]] = {width: [] for width in WIDTHS}

    def one(data: str, seed: int) -> float:
        for width in WIDTHS:
            found[width].append(max(evidence.trial(pair(dial, data, seed, width), "line"), FLOOR))
        return ratio(found[NARROW][-1], found[WIDE][-1])

    values = by_data(dial, one)
    beside = {f"barrier of the line, width {width}": mean(lines) for width, lines in found.items()}
    points = [(float(width), line) for width, lines in found.items() for line in lines]
    return Found(values, beside, {"pairs": points}, ("width", "barrier of the straight line"))


def convex(evidence: Evidence, dial: Dial) -> Found:
    """|lambda_min| / lambda_max after a tenth of the run, narrow over wide."""
    points = []

    def one(data: str, seed: int) -> float:
        shares = {}
        for width in (NARROW, 64, WIDE):
            run = of_width(dial, data, seed, width)
            low, top = (evidence.watched(run, "early", name) for name in ("lambda_min", "lambda_max"))
            shares[width] = ratio(max(-low, LEAST * top), top)  # a smallest that is not known is NaN
            points.append((float(width), shares[width]))
        return ratio(shares[NARROW], shares[WIDE])

    values = by_data(dial, one)
    beside = {
        f"negative share, width {width}": mean(y for x, y in points if x == width)
        for width in (NARROW, 64, WIDE)
    }
    return Found(values, beside, {"runs": points}, ("width", "|lambda_min| / lambda_max, early"))


CLAIMS = (
    Claim(
        name="minima connect",
        text="Independently trained minima are connected by a curve of low loss",
        source="third document, 2.2.2",
        measured="share of the straight line's barrier that is gone on a trained Bezier curve, width 64",
        band=Band(low=0.9, high=1.0, null=0.0, resolution=0.01),
        effect=connect,
        trials=pairs,
    ),
    Claim(
        name="width: straight",
        text="As width grows, minima are connected by straight lines",
        source="third document, 2.3.3",
        measured=f"barrier of the straight line, width {NARROW} over {WIDE}; no size claimed, twice is the least",
        band=Band(low=2.0, null=1.0, is_ratio=True),
        effect=straighter,
        trials=pairs,
    ),
    Claim(
        name="width: convex",
        text="As width grows, the landscape becomes convex along the way",
        source="third document, 2.3.3",
        measured=f"|lambda_min| / lambda_max after a tenth of the run, width {NARROW} over {WIDE}; twice is the least",
        band=Band(low=2.0, null=1.0, is_ratio=True),
        effect=convex,
        runs=widths_everywhere,
    ),
)
