"""Nets with many more weights than samples reach zero training loss, whatever the labels."""

from __future__ import annotations

from dataclasses import replace

from optland.train.data import DataConfig
from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.cells import everywhere, plain, sgd, stacked
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean
from optland.train.experiments.claims.verdicts import Band

LABELLED = 128
WIDTHS = (4, 128)
EPOCHS = 200


def random_labels(dial: Dial, data: str, seed: int, width: int) -> BankRun:
    """128 samples whose labels are all drawn at random; width 128 has about 25 000 weights, width 4 some 300."""
    samples = min(LABELLED, dial.samples // 2)
    drawn = DataConfig(data, subset=samples, label_noise=1.0, noise_seed=seed)
    budget = round(EPOCHS * samples * min(1.0, dial.epochs / 30))
    run = plain(dial, data, seed, net=stacked(width, 2), optimizer=sgd(0.05))
    return replace(run, budget=budget, data=drawn)


def effect(evidence: Evidence, dial: Dial) -> Found:
    """Training accuracy on the random labels."""
    found: dict[int, list[float]] = {width: [] for width in WIDTHS}
    losses = []

    def one(data: str, seed: int) -> float:
        for width in WIDTHS:
            found[width].append(evidence.at_end(random_labels(dial, data, seed, width), "train_acc"))
        losses.append(evidence.at_end(random_labels(dial, data, seed, WIDTHS[-1]), "train_loss"))
        return found[WIDTHS[-1]][-1]

    values = by_data(dial, one)
    beside = {f"training accuracy, width {width}": mean(accs) for width, accs in found.items()}
    beside["training loss of the wide net"] = mean(losses)
    series = {"seeds": list(zip(found[WIDTHS[0]], found[WIDTHS[-1]], strict=True))}
    return Found(values, beside, series, (f"training accuracy, width {WIDTHS[0]}", f"width {WIDTHS[-1]}"))


CLAIM = Claim(
    name="over-parameterised",
    text="Nets with many more parameters than samples reach zero training loss",
    source="first and third document",
    measured="training accuracy in per cent on labels drawn at random, a hundred weights for each sample",
    band=Band(low=99.5, high=100.0, null=90.0, resolution=100 / LABELLED),
    effect=effect,
    runs=everywhere(lambda dial, data, seed: [random_labels(dial, data, seed, width) for width in WIDTHS]),
    look="scores",
)
