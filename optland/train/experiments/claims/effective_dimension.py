"""H4: nets whose gradients span few directions converge faster."""

from __future__ import annotations

from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean, ratio
from optland.train.experiments.claims.verdicts import Band
from optland.train.experiments.claims.widths import WIDTHS, of_width, widths_everywhere

LOW, HIGH = 0.001, 0.01


def effect(evidence: Evidence, dial: Dial) -> Found:
    """Epochs to the level of the loss, of nets with a share above 0.01 over those below 0.001."""
    points: dict[str, list[tuple[float, float]]] = {data: [] for data in dial.data}
    counted: dict[int, list[float]] = {width: [] for width in WIDTHS}

    def one(data: str, seed: int) -> float:
        found = []
        for width in WIDTHS:
            run = of_width(dial, data, seed, width)
            share = evidence.watched(run, "dimension", "share")
            found.append((share, evidence.at_level(run, "epochs")))
            counted[width].append(evidence.watched(run, "dimension", "k90"))
        points[data] += found
        return ratio(mean(y for x, y in found if x > HIGH), mean(y for x, y in found if x < LOW))

    values = by_data(dial, one)
    beside = {f"k90 of width {width}": mean(found) for width, found in counted.items()}
    note = (
        f"k90 of {dial.gradients} gradients cannot exceed {dial.gradients}, so its share of d is mostly 1/d: a net is "
        "in the low class because it is wide. A net that never reached the loss is left out."
    )
    return Found(values, beside, points, ("k90 / d", "epochs to the level of the loss"), note)


CLAIM = Claim(
    name="H4",
    text="Nets with d_eff below 0.001 d converge 2 to 3 times as fast as those above 0.01 d",
    source="third document, hypothesis 4",
    measured="epochs to the level of the training loss, k90 above 0.01 d over k90 below 0.001 d",
    band=Band(low=2.0, high=3.0, null=1.0, is_ratio=True),
    effect=effect,
    runs=widths_everywhere,
)
