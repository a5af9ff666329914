"""Batch 512 against 32: sharpness and accuracy."""

from __future__ import annotations

from collections.abc import Callable

from optland.train.experiments.claims.cells import everywhere, plain
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean, ratio
from optland.train.experiments.claims.methods import large_batch
from optland.train.experiments.claims.verdicts import Band


def compared(name: str, how: Callable[[float, float], float]) -> Callable[[Evidence, Dial], Found]:
    """An effect of the large batch against the small one at equal training loss; ``how(large, small)``."""

    def effect(evidence: Evidence, dial: Dial) -> Found:
        pairs = []

        def one(data: str, seed: int) -> float:
            small, large = plain(dial, data, seed), large_batch(dial, data, seed)
            pairs.append((small, large))
            return how(evidence.at_level(large, name), evidence.at_level(small, name))

        values = by_data(dial, one)
        beside = {}
        for what, k in (("batch 32", 0), ("large batch", 1)):
            for read in (name, "norm", "epochs"):
                beside[f"{what}: {read}"] = mean(evidence.at_level(pair[k], read) for pair in pairs)
            beside[f"{what}: {name} at the end"] = mean(evidence.at_end(pair[k], name) for pair in pairs)
        points = [(evidence.at_level(a, name), evidence.at_level(b, name)) for a, b in pairs]
        return Found(values, beside, {"seeds": points}, (f"{name}, batch 32", f"{name}, large batch"))

    return effect


RUNS = everywhere(lambda dial, data, seed: [plain(dial, data, seed), large_batch(dial, data, seed)])

CLAIMS = (
    Claim(
        name="batch: sharpness",
        text="Batch 512 ends 3 to 5 times as sharp as batch 32",
        source="third document, 2.3.2",
        measured="lambda_max at equal training loss, large batch over 32 (same rate, eight times the epochs)",
        band=Band(low=3.0, high=5.0, null=1.0, is_ratio=True),
        effect=compared("lambda_max", ratio),
        runs=RUNS,
    ),
    Claim(
        name="batch: accuracy",
        text="Batch 512 has 2 to 4 % worse test accuracy than batch 32",
        source="third document, 2.3.2",
        measured="test accuracy in points at equal training loss, batch 32 less large batch",
        band=Band(low=2.0, high=4.0, null=0.0),
        effect=compared("test_acc", lambda large, small: small - large),
        runs=RUNS,
    ),
    Claim(
        name="batch: flatness",
        text="Small batches end in flatter minima, also where flatness cannot be had by rescaling",
        source="first and second document",
        measured="adaptive sharpness at equal training loss, large batch over 32; no size claimed, 10 % is the least",
        band=Band(low=1.1, null=1.0, is_ratio=True),
        effect=compared("adaptive", ratio),
        runs=RUNS,
    ),
)
