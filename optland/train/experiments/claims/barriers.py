"""H3: what the barrier between two trained nets says of them.

The document trains a curve between the two nets and takes the barrier on it. Nearly every pair has a barrier near 0
there, so that both kinds would not occur; the rows judge by the barrier on the straight line, and tell that of the
curve beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.connected import WIDTHS, pair, pairs
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean
from optland.train.experiments.claims.verdicts import Band

SOURCE = "third document, hypothesis 3 and 2.2.2"
Pair = tuple[float, float, float]


def judged(judge: Callable[[list[Pair]], float]) -> Callable[[Evidence, Dial], Found]:
    """An effect of the pairs (barrier of the line, accuracy of the worse end, accuracy lost to a shift) of a seed.

    Args:
        judge: From the pairs of a seed, one for each width, to the effect; NaN where the kinds that it compares do not
            both occur.
    """

    def effect(evidence: Evidence, dial: Dial) -> Found:
        points: dict[str, list[tuple[float, float]]] = {data: [] for data in dial.data}
        curves: list[float] = []

        def one(data: str, seed: int) -> float:
            found = []
            for width in WIDTHS:
                trial = pair(dial, data, seed, width)
                numbers = [evidence.trial(trial, name) for name in ("line", "worst_acc", "drop")]
                if all(map(math.isfinite, numbers)):
                    found.append((numbers[0], numbers[1], numbers[2]))
                    points[data].append((numbers[0], numbers[1]))
                    curves.append(evidence.trial(trial, "curve"))
            return judge(found)

        values = by_data(dial, one)
        lines = [x for found in points.values() for x, _ in found]
        beside = {
            "largest barrier of a trained curve": max(curves, default=math.nan),
            "lines below 0.5": float(sum(x < 0.5 for x in lines)),
            "lines below 1": float(sum(x < 1 for x in lines)),
            "lines above 2": float(sum(x > 2 for x in lines)),
        }
        note = "A seed counts only where its pairs hold the kinds that are compared."
        return Found(
            values, beside, points, ("barrier of the line", "test accuracy of the worse end, %"), note
        )

    return effect


def robust(found: list[Pair]) -> float:
    """Accuracy that a shift costs, pairs with a barrier of 1 or more less those below.

    Args:
        found: Barrier in nats, accuracy and loss of accuracy in percent, of each pair.

    Example:
        >>> robust([(2.0, 80.0, 9.0), (0.1, 95.0, 4.0), (0.2, 95.0, 6.0)])
        4.0
    """
    return mean(drop for line, _, drop in found if line >= 1) - mean(
        drop for line, _, drop in found if line < 1
    )


def both_good(found: list[Pair]) -> float:
    """Share of the pairs below 0.5 of which both ends are above 90 %.

    Example:
        >>> both_good([(0.1, 95.0, 0.0), (0.2, 85.0, 0.0), (3.0, 50.0, 0.0)])
        0.5
    """
    return mean(float(acc > 90) for line, acc, _ in found if line < 0.5)


def one_bad(found: list[Pair]) -> float:
    """Share of the pairs above 2 of which an end is below 85 %.

    Example:
        >>> one_bad([(0.1, 95.0, 0.0), (2.5, 84.0, 0.0), (3.0, 90.0, 0.0)])
        0.5
    """
    return mean(float(acc < 85) for line, acc, _ in found if line > 2)


CLAIMS = (
    Claim(
        name="H3: robust",
        text="Nets with a barrier below 1 have robust, transferable features",
        source=SOURCE,
        measured="test accuracy lost to an input shift, in points: pairs with a barrier of 1 or more less those below",
        band=Band(low=1.0, high=100.0, null=0.0),
        effect=judged(robust),
        trials=pairs,
    ),
    Claim(
        name="H3: generalise",
        text="A barrier below 0.5 means that both nets generalise (above 90 % test accuracy)",
        source=SOURCE,
        measured="share of the pairs below 0.5 of which both ends are above 90 %",
        band=Band(low=0.9, high=1.0, null=0.5, resolution=0.5),
        effect=judged(both_good),
        trials=pairs,
    ),
    Claim(
        name="H3: overfit",
        text="A barrier above 2 means that at least one net overfits (below 85 % test accuracy)",
        source=SOURCE,
        measured="share of the pairs above 2 of which an end is below 85 %",
        band=Band(low=0.9, high=1.0, null=0.5, resolution=0.5),
        effect=judged(one_bad),
        trials=pairs,
    ),
)
