"""On random Gaussian landscapes saddles outnumber minima by 2^d."""

from __future__ import annotations

import math
import statistics
from typing import Any

from optland.problems.gaussian import index_shares
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import mean
from optland.train.experiments.claims.trials import Trial
from optland.train.experiments.claims.verdicts import Band

DIMENSIONS = (2, 3, 4, 5, 6, 7)
NAME = "random Gaussian"


def counted(dial: Dial, seed: int) -> Trial:
    """The shares of one seed."""
    return Trial("Gaussian landscapes", NAME, seed, dial, shares, ("draws",))


def shares(trial: Trial) -> dict[str, Any]:
    """Saddles for each minimum, by dimension, and the growth of that for each further one.

    The growth is the exponential of the slope of a line through log ratio against dimension, by least squares.
    """
    ratios = []
    for d in DIMENSIONS:
        by_index = index_shares(d, trial.dial.draws, seed=trial.seed * 100 + d)
        ratios.append(float(by_index[1:-1].sum() / by_index[0]))
    # From d = 3 on, since in 2 there is one index of saddles alone; a dimension without a single minimum tells nothing.
    logs = [(d, math.log(r)) for d, r in zip(DIMENSIONS[1:], ratios[1:], strict=True) if math.isfinite(r)]
    slope = statistics.linear_regression(*zip(*logs, strict=True)).slope if len(logs) > 2 else math.nan
    return {"ratios": ratios, "growth": math.exp(slope), "ge": 0.0}


def effect(evidence: Evidence, dial: Dial) -> Found:
    """Factor by which saddles per minimum grow with each dimension."""
    trials = [counted(dial, seed) for seed in range(dial.seeds)]
    values = {NAME: [evidence.trial(trial, "growth") for trial in trials]}
    points = [
        (float(d), r)
        for trial in trials
        for d, r in zip(DIMENSIONS, evidence.listed(trial, "ratios"), strict=False)
    ]
    beside = {f"saddles per minimum, d = {d}": mean(y for x, y in points if x == d) for d in DIMENSIONS}
    beside["2^d - 2, of d = 7"] = 126.0
    return Found(values, beside, {"seeds": points}, ("dimensions", "saddles per minimum"))


CLAIM = Claim(
    name="2^d",
    text="On random Gaussian landscapes the ratio of saddles to minima grows as 2^d",
    source="third document, 2.3.1",
    measured="factor for each further dimension, from 3 to 7, by the formula of Kac and Rice",
    band=Band(low=1.9, high=2.1, null=1.0, is_ratio=True),
    effect=effect,
    trials=lambda dial: [counted(dial, seed) for seed in range(dial.seeds)],
)
