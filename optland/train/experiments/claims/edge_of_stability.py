"""The edge of stability repeated: without noise, sharpness climbs to what the rate allows, and stays there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace

from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.cells import everywhere, plain, sgd, stacked
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean
from optland.train.experiments.claims.verdicts import Band

SETTINGS = {0.0: 0.2, 0.9: 0.8}
"""Rate by momentum: thresholds 2 / eta = 10 and (2 + 2 beta) / eta = 4.75. Chosen on seed 900, which is not told of."""

TIMES, NOISE = 40, 0.4
"""Passes as a multiple of the plain ones, and share of labels redrawn: the loss must not reach 0 before the edge."""

FITTED = (
    "Where the training loss comes to zero the curvature of a cross-entropy does too, whatever the rate: such a run "
    "was done before it came to the edge, or has left it."
)


def full_batch(dial: Dial, data: str, seed: int, momentum: float) -> BankRun:
    """All samples in one batch, from PyTorch's own start, which is flat."""
    rule = sgd(SETTINGS[momentum], momentum)
    net = stacked(dial.units, 2, "default")
    run = plain(dial, data, seed, times=TIMES, batch_size=dial.samples, optimizer=rule, net=net)
    return replace(run, data=replace(run.data, label_noise=NOISE))


def at_the_edge(momentum: float) -> Callable[[Evidence, Dial], Found]:
    r"""Median of lambda_max over the second half of the run, over the threshold.

    .. math:: \lambda_{\max} = \frac{2 + 2 \beta}{\eta}

    is the largest curvature at which gradient descent with momentum beta is stable (Cohen et al. 2021,
    arXiv:2103.00065).

    Args:
        momentum: Beta, a key of :data:`SETTINGS`.
    """
    threshold = (2 + 2 * momentum) / SETTINGS[momentum]

    def effect(evidence: Evidence, dial: Dial) -> Found:
        series = {}
        starts = []

        def one(data: str, seed: int) -> float:
            run = full_batch(dial, data, seed, momentum)
            seen = evidence.line(run).get("along", {}).get("watch", {}).get("sharpness", [])
            found = [float(v) / threshold for v in seen if v is not None]
            starts.append(evidence.number(run, "start", "point", "lambda_max") / threshold)
            if len(found) < 2:
                return math.nan
            series[f"{data}, seed {seed}"] = [
                (k * dial.epochs * TIMES / len(found), v) for k, v in enumerate(found, 1)
            ]
            return statistics.median(found[len(found) // 2 :])

        values = by_data(dial, one)
        beside = {"threshold": threshold, "at the start, over the threshold": mean(starts)}
        return Found(values, beside, series, ("epochs", "lambda_max over the threshold"), FITTED)

    return effect


def row(momentum: float, text: str, formula: str) -> Claim:
    """The row of a momentum."""
    return Claim(
        name="edge of stability" if momentum == 0 else "edge of stability, momentum",
        text=text,
        source="Cohen et al. 2021, arXiv:2103.00065",
        measured=f"median of lambda_max in the second half of training over {formula}",
        band=Band(low=0.9, high=1.5, null=0.5, is_ratio=True),
        effect=at_the_edge(momentum),
        runs=everywhere(lambda dial, data, seed: [full_batch(dial, data, seed, momentum)]),
        published="at 1 or just above it, on fully connected and convolutional nets",
    )


CLAIMS = (
    row(0.0, "Gradient descent without noise trains at lambda_max = 2 / eta", "2 / eta"),
    row(0.9, "With momentum beta the edge lies at (2 + 2 beta) / eta", "(2 + 2 beta) / eta"),
)
