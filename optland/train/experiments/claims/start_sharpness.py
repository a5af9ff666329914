"""H1: nets that are sharp at the start train unstably."""

from __future__ import annotations

from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean, trained
from optland.train.experiments.claims.starts import from_starts, from_starts_everywhere
from optland.train.experiments.claims.verdicts import Band

SHARP = 100.0


def effect(evidence: Evidence, dial: Dial) -> Found:
    """Share of runs that were not trained, of sharp starts less that of the others."""
    points = []

    def one(data: str, seed: int) -> float:
        failed: dict[bool, list[float]] = {True: [], False: []}
        for run in from_starts(dial, data, seed):
            start = evidence.number(run, "start", "point", "lambda_max")
            if start == start and trained(evidence, run) == trained(evidence, run):
                failed[start > SHARP].append(1.0 - trained(evidence, run))
                points.append((max(start, 1e-6), 1.0 - trained(evidence, run)))
        return mean(failed[True]) - mean(failed[False])

    values = by_data(dial, one)
    sharp = [y for x, y in points if x > SHARP]
    beside = {
        "failed of the sharp": mean(sharp),
        "failed of the others": mean(y for x, y in points if x <= SHARP),
        "sharp starts": float(len(sharp)),
        "others": float(len(points) - len(sharp)),
    }
    return Found(
        values, beside, {"runs": points}, ("lambda_max at the start", "not trained (1) or trained (0)")
    )


CLAIM = Claim(
    name="H1",
    text="Nets with lambda_max above 100 at the start train unstably and need their rate tuned with care",
    source="third document, hypothesis 1",
    measured="share of (start, rate) pairs that do not train: starts above 100 less the others",
    band=Band(low=0.3, high=1.0, null=0.0, resolution=1 / 6),
    effect=effect,
    runs=from_starts_everywhere,
    look="spectra",
)
