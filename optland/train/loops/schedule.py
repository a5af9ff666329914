"""Learning-rate schedules by name, over the share of the samples consumed instead of steps.

A schedule so defined ends where the data end, whatever the batch size does. Every shape starts with a linear warm-up
from 0 and has its peak, the optimizer's own learning rate, at 1.

=============  ====================================================  ============================================
name           after the warm-up                                     as in
=============  ====================================================  ============================================
none           no scheduler at all                                   a fixed rate, or the shape of ``auto_lr``
constant       1                                                     ``ConstantLR(factor=1)``
linear         straight to 0                                         ``LinearLR``
cosine         half a cosine to 0                                    ``CosineAnnealingLR``
step           x 0.1 at 50 % and at 75 % of the run                  ``MultiStepLR`` (He et al. 2016)
exponential    geometrically to 0.01                                 ``ExponentialLR``
inverse_sqrt   sqrt(end of the warm-up / progress)                   Vaswani et al. 2017, arXiv:1706.03762
one_cycle      1/25 up to 1 and down to 1/250000 on cosines          ``OneCycleLR`` (Smith & Topin 2018)
wsd            1, then straight to 0 over the last 20 %              Hu et al. 2024, arXiv:2404.06395
=============  ====================================================  ============================================

Cost: none. When: a learning rate is given, or ``safe_lr`` caps one. ``auto_lr`` finds the height itself and takes the
shape of the schedule, as it does in a loop of one's own; with ``none`` it brings a shape, which is what was measured.
Default: a warm-up of 5 % of the run (30 % for ``one_cycle``, whose rise is half of its idea).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from optland.config import did_you_mean

__all__ = [
    "SHAPES",
    "Consumption",
    "ScheduleName",
    "check_schedule",
    "schedule_by_name",
]

ScheduleName = Literal[
    "none", "constant", "linear", "cosine", "step", "exponential", "inverse_sqrt", "one_cycle", "wsd"
]
"""Annotation of a config field that names a schedule."""

WARMUP = 0.05
ONE_CYCLE_RISE = 0.3


class Consumption(Protocol):
    """The part of a loader that a schedule reads: how much of the run's data is consumed."""

    batch_size: int

    @property
    def total_samples(self) -> int:
        """Samples the whole run serves."""

    @property
    def samples_served(self) -> int:
        """Samples served so far."""


def _constant(progress: float, warmup: float) -> float:
    return 1.0


def _linear(progress: float, warmup: float) -> float:
    return 1.0 - _share_after(progress, warmup)


def _cosine(progress: float, warmup: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * _share_after(progress, warmup)))


def _step(progress: float, warmup: float) -> float:
    return 0.1 ** ((progress >= 0.5) + (progress >= 0.75))


def _exponential(progress: float, warmup: float) -> float:
    return float(0.01 ** _share_after(progress, warmup))


def _inverse_sqrt(progress: float, warmup: float) -> float:
    return math.sqrt(warmup / progress)


def _one_cycle(progress: float, warmup: float) -> float:
    low, end = 1 / 25, 1 / 25e4
    if progress < warmup:
        return low + (1 - low) * 0.5 * (1 - math.cos(math.pi * progress / warmup))
    return end + (1 - end) * _cosine(progress, warmup)


def _wsd(progress: float, warmup: float) -> float:
    return min(1.0, (1.0 - progress) / 0.2)


SHAPES: dict[str, Callable[[float, float], float]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "step": _step,
    "exponential": _exponential,
    "inverse_sqrt": _inverse_sqrt,
    "one_cycle": _one_cycle,
    "wsd": _wsd,
}
"""Functions ``(progress, warmup) -> factor`` by name, for progress in [warmup, 1] (``one_cycle``: [0, 1])."""


def _share_after(progress: float, warmup: float) -> float:
    """Share of the time after the warm-up that has passed."""
    return (progress - warmup) / (1.0 - warmup)


def shape(name: str, progress: float, warmup: float) -> float:
    """The factor of a schedule at a share ``progress`` of the run; beyond its ends that of the ends.

    Args:
        name: A name of the table but ``none``.
        progress: Share of the run's samples that are consumed.
        warmup: Share of the run over which the factor rises from 0 on a straight line; ``one_cycle`` rises on its own
            curve.

    Returns:
        The factor on the peak rate, from 0 to 1.

    Raises:
        KeyError: The name is not known.

    Example:
        >>> [round(shape("wsd", p, warmup=0.1), 3) for p in (0.05, 0.1, 0.8, 0.9, 1.0)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup and name != "one_cycle":
        return progress / warmup
    return SHAPES[name](progress, warmup)


def check_schedule(name: str) -> None:
    """Check a config's ``schedule`` field.

    Args:
        name: What the config says.

    Raises:
        ValueError: The name is not known.
    """
    if name != "none" and name not in SHAPES:
        known = ["none", *SHAPES]
        raise ValueError(f"schedule: {name!r} is not known; choose from {known}.{did_you_mean(name, known)}")


def schedule_by_name(
    name: str, optimizer: Optimizer, loader: Consumption, warmup: float | None = None
) -> LambdaLR | None:
    """A scheduler that reads its progress off the loader, at the middle of the batch to come.

    Args:
        name: A name of the table above.
        optimizer: Its learning rates are the peak.
        loader: What is consumed; a :class:`optland.train.BatchLoader`.
        warmup: Share of the run over which the rate rises, in [0, 1). None takes 0.05 (``one_cycle``: 0.3).
            ``inverse_sqrt`` needs one above 0, because that is where its decay is measured from.

    Returns:
        The scheduler, to be stepped once after every optimizer step; None for ``none``.

    Raises:
        ValueError: An unknown name or a warm-up out of range.

    Example:
        >>> import torch
        >>> from optland.train.loops.loader import BatchLoader
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
        >>> loader = BatchLoader([torch.arange(8)], batch_size=2, epochs=1)
        >>> scheduler, rates = schedule_by_name("linear", optimizer, loader, warmup=0.0), []
        >>> for _ in loader:
        ...     rates.append(optimizer.param_groups[0]["lr"])
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [1.75, 1.25, 0.75, 0.25]
    """
    check_schedule(name)
    if name == "none":
        return None
    if warmup is None:
        warmup = ONE_CYCLE_RISE if name == "one_cycle" else WARMUP
    if not 0.0 <= warmup < 1.0:
        raise ValueError(f"warmup: {warmup} is not a share of the run; use a number from 0 to 0.9")
    if warmup == 0.0 and name == "inverse_sqrt":
        raise ValueError("warmup: inverse_sqrt decays from the end of its warm-up; use a share above 0")

    def factor(_: int) -> float:
        return shape(name, (loader.samples_served + 0.5 * loader.batch_size) / loader.total_samples, warmup)

    return LambdaLR(optimizer, factor)
