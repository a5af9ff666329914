"""The runs that differ in width alone: perceptrons of two hidden layers with 4, 8, 64 and 256 units each."""

from __future__ import annotations

from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.cells import everywhere, plain, stacked
from optland.train.experiments.claims.dial import Dial

__all__ = ["WIDTHS", "of_width", "widths_everywhere"]

WIDTHS = (4, 8, 64, 256)


def of_width(dial: Dial, data: str, seed: int, width: int) -> BankRun:
    """The run of a width.

    Args:
        dial: Sizes.
        data: Data set.
        seed: Of weights and order.
        width: Units of both hidden layers, of :data:`WIDTHS`.
    """
    return plain(dial, data, seed, net=stacked(width, 2))


widths_everywhere = everywhere(
    lambda dial, data, seed: [of_width(dial, data, seed, width) for width in WIDTHS]
)
