"""The runs of the deep nets: plain, with skips, and dense, at the greatest depth of the dial."""

from __future__ import annotations

from collections.abc import Callable

from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.cells import residual
from optland.train.experiments.claims.claim import Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import at_equal_loss, ratio

__all__ = ["compared", "of_kinds"]

READ = ("lambda_max", "adaptive", "relative", "kappa", "norm", "test_acc", "epochs")


def deep(dial: Dial, data: str, seed: int) -> dict[str, BankRun]:
    """The three kinds of net at the greatest depth, with batch normalisation.

    Returns:
        Runs by kind: ``plain``, ``ResNet`` and ``DenseNet``. Plain and ResNet differ in the skips alone.
    """
    return {
        "plain": residual(dial, data, seed, depth=dial.depth, skips=False),
        "ResNet": residual(dial, data, seed, depth=dial.depth, skips=True),
        "DenseNet": residual(dial, data, seed, depth=dial.depth, name="densenet", width=4),
    }


def of_kinds(*kinds: str) -> Callable[[Dial, str, int], list[BankRun]]:
    """The runs of :func:`deep` of these kinds, in their order."""

    def runs(dial: Dial, data: str, seed: int) -> list[BankRun]:
        nets = deep(dial, data, seed)
        return [nets[kind] for kind in kinds]

    return runs


def compared(one: str, other: str, name: str) -> Callable[[Evidence, Dial], Found]:
    """``name`` at equal training loss, of one kind of net over that of another.

    Args:
        one: Kind whose value is above the line.
        other: Kind below it.
        name: What is read at the level of the loss.

    Returns:
        An effect: the ratio for each of ``deep_seeds``, NaN where a net never came to the level.
    """
    runs, at_end = of_kinds(one, other), ("dim", name)
    return at_equal_loss(runs, (one, other), name, ratio, READ, at_end, seeds="deep_seeds")
