"""The edge of stability repeated: without noise, sharpness climbs to what the rate allows, and stays there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.cells import everywhere, plain, sgd
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean
from optland.train.experiments.claims.verdicts import Band

SETTINGS = {0.0: 0.3, 0.9: 0.1}
"""Rate by momentum: thresholds 2 / eta = 6.7, and (2 + 2 beta) / eta = 38."""

TIMES = 20


def full_batch(dial: Dial, data: str, seed: int, momentum: float) -> BankRun:
    """All samples in one batch, twenty times the plain passes."""
    return plain(
        dial, data, seed, times=TIMES, batch_size=dial.samples, optimizer=sgd(SETTINGS[momentum], momentum)
    )


def at_the_edge(momentum: float) -> Callable[[Evidence, Dial], Found]:
    """The largest lambda_max of the run, as a median of three neighbours, over the threshold."""
    threshold = (2 + 2 * momentum) / SETTINGS[momentum]

    def effect(evidence: Evidence, dial: Dial) -> Found:
        series = {}
        starts = []

        def one(data: str, seed: int) -> float:
            run = full_batch(dial, data, seed, momentum)
            seen = evidence.line(run).get("along", {}).get("watch", {}).get("sharpness", [])
            found = [float(v) / threshold for v in seen if v is not None]
            starts.append(evidence.number(run, "start", "point", "lambda_max") / threshold)
            if len(found) < 3:
                return math.nan
            series[f"{data}, seed {seed}"] = [
                (k * dial.epochs * TIMES / len(found), v) for k, v in enumerate(found, 1)
            ]
            return max(statistics.median(found[k : k + 3]) for k in range(len(found) - 2))

        values = by_data(dial, one)
        beside = {"threshold": threshold, "at the start, over the threshold": mean(starts)}
        return Found(values, beside, series, ("epochs", "lambda_max over the threshold"))

    return effect


def row(momentum: float, text: str, formula: str) -> Claim:
    """The row of a momentum."""
    return Claim(
        name="edge of stability" if momentum == 0 else "edge of stability, momentum",
        text=text,
        source="Cohen et al. 2021, arXiv:2103.00065",
        measured=f"largest lambda_max along training over {formula}, median of three checks; published: 1.0 to 1.1",
        band=Band(low=0.9, high=1.25, null=0.5, is_ratio=True),
        effect=at_the_edge(momentum),
        runs=everywhere(lambda dial, data, seed: [full_batch(dial, data, seed, momentum)]),
        is_reproduction=True,
    )


CLAIMS = (
    row(0.0, "Gradient descent without noise trains at lambda_max = 2 / eta", "2 / eta"),
    row(0.9, "With momentum beta the edge lies at (2 + 2 beta) / eta", "(2 + 2 beta) / eta"),
)
