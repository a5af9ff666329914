"""The runs of the claims about initialisation: a deep perceptron from five starts at three rates."""

from __future__ import annotations

import itertools

from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.cells import everywhere, plain, sgd, stacked
from optland.train.experiments.claims.dial import Dial

__all__ = ["INITS", "RATES", "from_starts", "from_starts_everywhere"]

INITS = ("normal:0.02", "default", "kaiming_normal", "normal:0.5", "normal:1.0")
RATES = (0.003, 0.03, 0.3)


def from_starts(dial: Dial, data: str, seed: int, inits: tuple[str, ...] = INITS) -> list[BankRun]:
    """The runs of one data set and seed.

    Args:
        dial: Sizes.
        data: Data set.
        seed: Of weights and order.
        inits: Schemes of the initial weights, of :data:`INITS`.

    Returns:
        For each start a run at each of :data:`RATES`.
    """
    return [
        plain(dial, data, seed, times=0.5, net=stacked(32, 6, init), optimizer=sgd(lr))
        for init, lr in itertools.product(inits, RATES)
    ]


from_starts_everywhere = everywhere(from_starts)
