"""The temperature eta / B predicts how sharp the end is."""

from __future__ import annotations

from optland.train.experiments.claims.cells import everywhere
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean, rank_correlation, ratio
from optland.train.experiments.claims.methods import temperatures
from optland.train.experiments.claims.verdicts import Band


def effect(evidence: Evidence, dial: Dial) -> Found:
    """Rank correlation of eta / B with lambda_max over the five settings of a seed."""
    points: list[tuple[float, float]] = []
    same: list[float] = []

    def one(data: str, seed: int) -> float:
        runs = temperatures(dial, data, seed)
        x = [run.optimizer.lr / run.batch_size for run in runs]
        y = [evidence.at_level(run, "lambda_max") for run in runs]
        points.extend(zip(x, y, strict=True))
        same.append(ratio(y[1], y[2]))  # a quarter of the rate at 32 and the rate at 128: one temperature
        return rank_correlation(x, y)

    values = by_data(dial, one)
    beside = {"lambda_max at one temperature, a quarter of the rate over the rate": mean(same)}
    return Found(values, beside, {"runs": points}, ("eta / B", "lambda_max at equal training loss"))


CLAIM = Claim(
    name="temperature",
    text="The temperature eta / B predicts the sharpness reached: the hotter, the flatter",
    source="third document, 2.3.2",
    measured="rank correlation of eta / B with lambda_max at equal training loss, five settings of rate and batch",
    band=Band(low=-1.0, high=-0.5, null=0.0),
    effect=effect,
    runs=everywhere(temperatures),
)
