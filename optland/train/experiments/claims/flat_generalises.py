"""H2: at equal training loss, flat minima have a lower test error than sharp ones."""

from __future__ import annotations

import math

from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean, rank_correlation
from optland.train.experiments.claims.methods import methods, methods_everywhere
from optland.train.experiments.claims.verdicts import Band

FLAT, SHARP = 20.0, 50.0


def effect(evidence: Evidence, dial: Dial) -> Found:
    """Test error of the sharp nets less that of the flat ones, when each reaches the level of the loss."""
    points: dict[str, list[tuple[float, float]]] = {data: [] for data in dial.data}
    orders = []

    def one(data: str, seed: int) -> float:
        found = [
            (evidence.at_level(run, "lambda_max"), 100.0 - evidence.at_level(run, "test_acc"))
            for run in methods(dial, data, seed).values()
        ]
        found = [pair for pair in found if not math.isnan(pair[0])]
        points[data] += found
        orders.append(rank_correlation([x for x, _ in found], [y for _, y in found]))
        return mean(y for x, y in found if x > SHARP) - mean(y for x, y in found if x < FLAT)

    values = by_data(dial, one)
    every = [pair for pairs in points.values() for pair in pairs]
    beside = {
        "nets below 20": float(sum(x < FLAT for x, _ in every)),
        "nets above 50": float(sum(x > SHARP for x, _ in every)),
        "rank correlation of lambda_max and test error": mean(orders),
    }
    note = (
        "" if beside["nets below 20"] and beside["nets above 50"] else "One of the two kinds did not occur."
    )
    return Found(values, beside, points, ("lambda_max at equal training loss", "test error, %"), note)


CLAIM = Claim(
    name="H2",
    text="Final minima with lambda_max below 20 have 3 to 5 % lower test error than those above 50 at equal loss",
    source="third document, hypothesis 2",
    measured="test error in points: nets above 50 less nets below 20, at the same training loss",
    band=Band(low=3.0, high=5.0, null=0.0),
    effect=effect,
    runs=methods_everywhere,
)
