"""Batch normalisation: the largest rate, the time, and very deep nets."""

from __future__ import annotations

import math

from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.cells import everywhere, residual
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import HALF, accuracy, ratio, two_sides
from optland.train.experiments.claims.verdicts import Band

RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
DEEP_RATES = (0.01, 0.1)
NORMS = ("none", "batch")


def shallow(dial: Dial, data: str, seed: int, norm: str) -> list[BankRun]:
    """Plain nets of 8 layers at every rate."""
    return [residual(dial, data, seed, depth=8, skips=False, norm=norm, lr=lr) for lr in RATES]


def far(dial: Dial, data: str, seed: int, norm: str) -> list[BankRun]:
    """Plain nets of the greatest depth."""
    return [residual(dial, data, seed, depth=dial.depth, skips=False, norm=norm, lr=lr) for lr in DEEP_RATES]


def largest(evidence: Evidence, runs: list[BankRun]) -> float:
    """Largest rate at which half of the training samples are right at the end; NaN where a run is missing.

    Returns:
        NaN also where no rate trains: there is no ratio then, whatever the other side does.
    """
    found = [(run.optimizer.lr, accuracy(evidence, run)) for run in runs]
    if any(math.isnan(acc) for _, acc in found):
        return math.nan
    return max((lr for lr, acc in found if acc >= HALF), default=math.nan)


def rate(evidence: Evidence, dial: Dial) -> Found:
    """Largest rate with normalisation over the largest without."""

    def side(data: str, seed: int, norm: str) -> float:
        return largest(evidence, shallow(dial, data, seed, norm))

    names = ("largest rate, norm none", "largest rate, norm batch")
    note = f"Rates of the grid {RATES}: a factor of three apart."
    return two_sides(dial, side, NORMS, lambda none, batch: ratio(batch, none), names, note=note)


def time(evidence: Evidence, dial: Dial) -> Found:
    """Share of the epochs saved, each at its own best rate; one that never arrives counts with the whole run.

    So the saving is a lower bound where the net without normalisation never arrived.
    """

    def fewest(data: str, seed: int, norm: str) -> float:
        runs = shallow(dial, data, seed, norm)
        if any(math.isnan(accuracy(evidence, run)) for run in runs):
            return math.nan
        epochs = [evidence.at_level(run, "epochs") for run in runs]
        return min((e for e in epochs if math.isfinite(e)), default=float(dial.deep_epochs))

    names = ("epochs to the loss, norm none", "epochs to the loss, norm batch")
    return two_sides(dial, fewest, NORMS, lambda none, batch: 100.0 * (1.0 - batch / none), names)


def depth(evidence: Evidence, dial: Dial) -> Found:
    """Best training accuracy with normalisation less that without, at the greatest depth."""

    def best(data: str, seed: int, norm: str) -> float:
        reached = [accuracy(evidence, run) for run in far(dial, data, seed, norm)]
        return math.nan if any(map(math.isnan, reached)) else max(reached)

    names = ("training accuracy, norm none", "training accuracy, norm batch")
    return two_sides(dial, best, NORMS, lambda none, batch: batch - none, names, seeds=dial.deep_seeds)


GRID = everywhere(lambda dial, data, seed: [run for norm in NORMS for run in shallow(dial, data, seed, norm)])

CLAIMS = (
    Claim(
        name="normalisation: rate",
        text="Normalisation allows 5 to 10 times the learning rate",
        source="third document, 2.4.2",
        measured="largest rate that trains a plain net of 8 layers, with batch normalisation over without",
        band=Band(low=5.0, high=10.0, null=1.0, is_ratio=True, resolution=math.log(3.0)),
        effect=rate,
        runs=GRID,
        look="scores",
    ),
    Claim(
        name="normalisation: time",
        text="Normalisation reduces the training time by 40 to 60 %",
        source="third document, 2.4.2",
        measured="epochs to the level of the training loss saved, each at its best rate, in per cent",
        band=Band(low=40.0, high=60.0, null=0.0, resolution=5.0),
        effect=time,
        runs=GRID,
        look="scores",
    ),
    Claim(
        name="normalisation: depth",
        text="Normalisation enables very deep nets",
        source="third document, 2.4.2",
        measured="training accuracy in points at the greatest depth of the dial without skips, with less without",
        band=Band(low=30.0, high=100.0, null=0.0),
        effect=depth,
        runs=everywhere(
            lambda dial, data, seed: [run for norm in NORMS for run in far(dial, data, seed, norm)],
            "deep_seeds",
        ),
        look="scores",
    ),
)
