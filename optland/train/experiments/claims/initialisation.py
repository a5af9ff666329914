"""The start decides whether a net trains, and the early spectrum tells."""

from __future__ import annotations

import math

from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean, rank_correlation, trained
from optland.train.experiments.claims.starts import INITS, RATES, from_starts, from_starts_everywhere
from optland.train.experiments.claims.verdicts import Band

GOOD, POOR = "kaiming_normal", "normal:0.02"


def decides(evidence: Evidence, dial: Dial) -> Found:
    """Share of rates that train from the scaled start less that from weights that are too small."""
    shares: dict[str, list[float]] = {init: [] for init in INITS}

    def one(data: str, seed: int) -> float:
        share = {
            init: mean(trained(evidence, run) for run in from_starts(dial, data, seed, (init,)))
            for init in INITS
        }
        for init, value in share.items():
            shares[init].append(value)
        return share[GOOD] - share[POOR]

    values = by_data(dial, one)
    beside = {f"trained from {init}": mean(found) for init, found in shares.items()}
    series = {"starts": [(float(k), mean(shares[init])) for k, init in enumerate(INITS)]}
    return Found(values, beside, series, (f"start: {', '.join(INITS)}", "share of rates that train"))


def early(evidence: Evidence, dial: Dial) -> Found:
    """Rank correlation, over the runs of a seed, of the early lambda_max with the loss at the end."""
    points = []

    def one(data: str, seed: int) -> float:
        x, y = [], []
        for run in from_starts(dial, data, seed):
            if not (line := evidence.line(run)):
                return math.nan
            sharp, loss = evidence.watched(run, "early", "lambda_max"), math.inf
            if not line["dead"]:
                loss = line["facts"]["train_loss"]
            # A run that died before a tenth of its length counts as sharper than all that lived.
            x.append(math.inf if math.isnan(sharp) and line["dead"] else sharp)
            y.append(loss)
            if math.isfinite(x[-1]) and math.isfinite(loss):
                points.append((max(x[-1], 1e-6), loss))
        return rank_correlation(x, y)

    values = by_data(dial, one)
    return Found(
        values,
        {},
        {"runs that lived": points},
        ("lambda_max after a tenth of the run", "training loss at the end"),
    )


CLAIMS = (
    Claim(
        name="initialisation decides",
        text="Proper initialisation decides whether a net trains",
        source="first document, training strategies",
        measured=f"share of rates that train: {GOOD} less {POOR}, six hidden layers",
        band=Band(low=0.3, high=1.0, null=0.0, resolution=1 / len(RATES)),
        effect=decides,
        runs=from_starts_everywhere,
        look="spectra",
    ),
    Claim(
        name="early spectrum",
        text="Large eigenvalues early in training signal difficulty",
        source="third document, 2.6",
        measured="rank correlation of lambda_max after a tenth of the run with the training loss at its end",
        band=Band(low=0.3, high=1.0, null=0.0),
        effect=early,
        runs=from_starts_everywhere,
        look="spectra",
    ),
)
