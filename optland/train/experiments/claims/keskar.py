"""Keskar et al. repeated: a large batch of Adam ends where a small box holds a much larger loss."""

from __future__ import annotations

from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.cells import adam, everywhere, plain
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean, ratio
from optland.train.experiments.claims.verdicts import Band

TIMES = {0.004: 1.0, 0.1: 4.0}
"""Passes by the batch as a share of the data, theirs 256 of 60 000 and 10 %; both to the end of training."""


def batch_of(dial: Dial, data: str, seed: int, share: float) -> BankRun:
    """Adam at its default rate with a batch of this share of the data."""
    size = max(2, round(share * dial.samples))
    return plain(dial, data, seed, times=TIMES[share], batch_size=size, optimizer=adam())


def effect(evidence: Evidence, dial: Dial) -> Found:
    """Their sharpness at the end, large over small."""
    pairs, accuracies, losses = [], [], []

    def one(data: str, seed: int) -> float:
        runs = [batch_of(dial, data, seed, share) for share in TIMES]
        pairs.append(tuple(evidence.number(run, "end", "box", "sharpness") for run in runs))
        accuracies.append([evidence.at_end(run, "test_acc") for run in runs])
        losses.append([evidence.at_end(run, "train_loss") for run in runs])
        return ratio(pairs[-1][1], pairs[-1][0])

    values = by_data(dial, one)
    beside = {}
    for k, what in enumerate(("small", "large")):
        beside[f"{what} batch: sharpness"] = mean(pair[k] for pair in pairs)
        beside[f"{what} batch: test accuracy"] = mean(acc[k] for acc in accuracies)
        beside[f"{what} batch: training loss"] = mean(loss[k] for loss in losses)
    series = {"seeds": [(pair[0], pair[1]) for pair in pairs]}
    return Found(values, beside, series, ("sharpness, small batch", "sharpness, large batch"))


CLAIM = Claim(
    name="Keskar: sharpness",
    text="Large-batch Adam ends sharper than small-batch Adam in the sense of Keskar et al.",
    source="Keskar et al. 2017, arXiv:1609.04836",
    measured="100 (max over a box of 5e-4 - L) / (1 + L) at the end, batch of 10 % over 0.4 % of the data",
    band=Band(low=2.0, null=1.0, is_ratio=True),
    effect=effect,
    runs=everywhere(lambda dial, data, seed: [batch_of(dial, data, seed, share) for share in TIMES]),
    published="one to two orders of magnitude, on six nets",
)
