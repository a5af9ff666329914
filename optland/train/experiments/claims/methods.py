"""The runs that differ in how they are trained: batch, rate, SAM, Adam. Several claims read them."""

from __future__ import annotations

from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.cells import RATE, adam, everywhere, plain, sam, sgd
from optland.train.experiments.claims.dial import Dial

__all__ = ["LARGE", "large_batch", "methods", "methods_everywhere", "temperatures"]

LARGE = 512
TIMES = 8
"""Passes of a large batch as a multiple of the small one's: it takes fewer steps in each, and has to arrive too."""


def large_batch(dial: Dial, data: str, seed: int) -> BankRun:
    """Batch 512, or half of the data where that is less, with eight times the passes."""
    return plain(dial, data, seed, times=TIMES, batch_size=min(LARGE, dial.samples // 2))


def temperatures(dial: Dial, data: str, seed: int) -> list[BankRun]:
    """Rate and batch, crossed: the usual rate or a quarter of it, 32 or 128, and the large batch.

    Returns:
        Five runs, with more passes where the steps are smaller or fewer: all have to come to the level of the loss.
    """
    return [
        plain(dial, data, seed),
        plain(dial, data, seed, times=4, optimizer=sgd(RATE / 4)),
        plain(dial, data, seed, times=4, batch_size=min(128, dial.samples // 2)),
        plain(dial, data, seed, times=8, batch_size=min(128, dial.samples // 2), optimizer=sgd(RATE / 4)),
        large_batch(dial, data, seed),
    ]


def methods(dial: Dial, data: str, seed: int) -> dict[str, BankRun]:
    """All of them, by name.

    Returns:
        The five of :func:`temperatures`, ``SAM`` and ``Adam``.
    """
    names = ("plain", "low rate", "batch 128", "batch 128, low rate", "large batch")
    found = dict(zip(names, temperatures(dial, data, seed), strict=True))
    found["SAM"] = plain(dial, data, seed, optimizer=sam())
    found["Adam"] = plain(dial, data, seed, optimizer=adam())
    return found


methods_everywhere = everywhere(lambda dial, data, seed: list(methods(dial, data, seed).values()))
