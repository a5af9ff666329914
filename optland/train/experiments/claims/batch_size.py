"""Batch 512 against 32: sharpness and accuracy."""

from __future__ import annotations

from collections.abc import Callable

from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.cells import everywhere, plain
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import at_equal_loss, ratio
from optland.train.experiments.claims.methods import large_batch
from optland.train.experiments.claims.verdicts import Band


def compared(name: str, how: Callable[[float, float], float]) -> Callable[[Evidence, Dial], Found]:
    """An effect of the large batch against the small one at equal training loss; ``how(small, large)``."""
    kinds = ("batch 32", "large batch")
    return at_equal_loss(small_and_large, kinds, name, how, ("norm", "epochs"), at_end=(name,))


def larger(small: float, large: float) -> float:
    """The value of the large batch over that of the small one."""
    return ratio(large, small)


def small_and_large(dial: Dial, data: str, seed: int) -> list[BankRun]:
    """The plain run and that of the large batch."""
    return [plain(dial, data, seed), large_batch(dial, data, seed)]


RUNS = everywhere(small_and_large)

CLAIMS = (
    Claim(
        name="batch: sharpness",
        text="Batch 512 ends 3 to 5 times as sharp as batch 32",
        source="third document, 2.3.2",
        measured="lambda_max at equal training loss, large batch over 32 (same rate, eight times the epochs)",
        band=Band(low=3.0, high=5.0, null=1.0, is_ratio=True),
        effect=compared("lambda_max", larger),
        runs=RUNS,
    ),
    Claim(
        name="batch: accuracy",
        text="Batch 512 has 2 to 4 % worse test accuracy than batch 32",
        source="third document, 2.3.2",
        measured="test accuracy in points at equal training loss, batch 32 less large batch",
        band=Band(low=2.0, high=4.0, null=0.0),
        effect=compared("test_acc", lambda small, large: small - large),
        runs=RUNS,
    ),
    Claim(
        name="batch: flatness",
        text="Small batches end in flatter minima, also where flatness cannot be had by rescaling",
        source="first and second document",
        measured="adaptive sharpness at equal training loss, large batch over 32; no size claimed, 10 % is the least",
        band=Band(low=1.1, null=1.0, is_ratio=True),
        effect=compared("adaptive", larger),
        runs=RUNS,
    ),
)
