"""SAM ends flatter than SGD, and Adam elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from optland.train.experiments.claims.cells import everywhere
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean, ratio
from optland.train.experiments.claims.methods import methods
from optland.train.experiments.claims.verdicts import Band


def against_sgd(method: str) -> Callable[[Evidence, Dial], Found]:
    """Adaptive sharpness at equal training loss, SGD over the method."""

    def effect(evidence: Evidence, dial: Dial) -> Found:
        pairs = []

        def one(data: str, seed: int) -> float:
            found = methods(dial, data, seed)
            pairs.append((found["plain"], found[method]))
            return ratio(*(evidence.at_level(run, "adaptive") for run in pairs[-1]))

        values = by_data(dial, one)
        beside = {}
        for k, what in enumerate(("SGD", method)):
            for read in ("adaptive", "lambda_max", "relative", "norm", "test_acc", "epochs"):
                beside[f"{what}: {read}"] = mean(evidence.at_level(pair[k], read) for pair in pairs)
        a, b = ([evidence.at_level(pair[k], "adaptive") for pair in pairs] for k in (0, 1))
        points = list(zip(a, b, strict=True))
        return Found(
            values, beside, {"seeds": points}, ("adaptive sharpness, SGD", f"adaptive sharpness, {method}")
        )

    return effect


CLAIMS = (
    Claim(
        name="SAM: flatter",
        text="SAM ends in flatter minima than SGD",
        source="first document",
        measured="adaptive sharpness at equal training loss, SGD over SAM; no size is claimed, 10 % is the least",
        band=Band(low=1.1, null=1.0, is_ratio=True),
        effect=against_sgd("SAM"),
        runs=everywhere(
            lambda dial, data, seed: [methods(dial, data, seed)[name] for name in ("plain", "SAM")]
        ),
    ),
    Claim(
        name="Adam: sharper",
        text="Adaptive methods like Adam end in other minima than SGD; mostly said to be sharper",
        source="second document",
        measured="adaptive sharpness at equal training loss, SGD over Adam; no size is claimed, 10 % is the least",
        band=Band(low=0.0, high=1 / 1.1, null=1.0, is_ratio=True),
        effect=against_sgd("Adam"),
        runs=everywhere(
            lambda dial, data, seed: [methods(dial, data, seed)[name] for name in ("plain", "Adam")]
        ),
    ),
)
