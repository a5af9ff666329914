"""Flat minima bear a shift of the input."""

from __future__ import annotations

from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean, rank_correlation
from optland.train.experiments.claims.methods import methods, methods_everywhere
from optland.train.experiments.claims.verdicts import Band


def effect(evidence: Evidence, dial: Dial) -> Found:
    """Rank correlation of adaptive sharpness with the accuracy that a shift costs, over the seven methods of a seed."""
    points: dict[str, list[tuple[float, float]]] = {data: [] for data in dial.data}
    raw = []

    def one(data: str, seed: int) -> float:
        runs = list(methods(dial, data, seed).values())
        drop = [evidence.number(run, "end", "shift", "drop") for run in runs]
        sharp = [evidence.at_end(run, "adaptive") for run in runs]
        points[data] += zip(sharp, drop, strict=True)
        raw.append(rank_correlation([evidence.at_end(run, "lambda_max") for run in runs], drop))
        return rank_correlation(sharp, drop)

    values = by_data(dial, one)
    beside = {"the same with raw lambda_max": mean(raw)}
    return Found(
        values, beside, points, ("adaptive sharpness at the end", "accuracy lost under shift, points")
    )


CLAIM = Claim(
    name="input shift",
    text="Flat minima bear a shift of the input better",
    source="first and second document",
    measured="rank correlation of adaptive sharpness with the accuracy lost to noise, a move and half the contrast",
    band=Band(low=0.3, high=1.0, null=0.0),
    effect=effect,
    runs=methods_everywhere,
)
