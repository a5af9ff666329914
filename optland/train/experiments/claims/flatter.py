"""SAM ends flatter than SGD, and Adam elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable

from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.cells import everywhere
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import at_equal_loss, ratio
from optland.train.experiments.claims.methods import methods
from optland.train.experiments.claims.verdicts import Band


def against_sgd(method: str) -> Callable[[Evidence, Dial], Found]:
    """Adaptive sharpness at equal training loss, SGD over the method."""
    told = ("lambda_max", "relative", "norm", "test_acc", "epochs")
    return at_equal_loss(functools.partial(both, method), ("SGD", method), "adaptive", ratio, told)


def both(method: str, dial: Dial, data: str, seed: int) -> list[BankRun]:
    """The plain run and that of the method."""
    found = methods(dial, data, seed)
    return [found["plain"], found[method]]


CLAIMS = (
    Claim(
        name="SAM: flatter",
        text="SAM ends in flatter minima than SGD",
        source="first document",
        measured="adaptive sharpness at equal training loss, SGD over SAM; no size is claimed, 10 % is the least",
        band=Band(low=1.1, null=1.0, is_ratio=True),
        effect=against_sgd("SAM"),
        runs=everywhere(functools.partial(both, "SAM")),
    ),
    Claim(
        name="Adam: sharper",
        text="Adaptive methods like Adam end in other minima than SGD; mostly said to be sharper",
        source="second document",
        measured="adaptive sharpness at equal training loss, SGD over Adam; no size is claimed, 10 % is the least",
        band=Band(low=0.0, high=1 / 1.1, null=1.0, is_ratio=True),
        effect=against_sgd("Adam"),
        runs=everywhere(functools.partial(both, "Adam")),
    ),
)
