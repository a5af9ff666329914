"""The runs that the claims share: a plain net trained plainly, and what is changed of it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from optland.train.data import DataConfig
from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.dial import Dial
from optland.train.models import ModelConfig
from optland.train.runs.settings import OptimizerConfig

__all__ = ["adam", "each", "plain", "residual", "sam", "sgd", "small_net", "stacked"]

BATCH = 32
RATE = 0.1
INIT = "kaiming_normal"


def each(dial: Dial, seeds: int | None = None) -> Iterator[tuple[str, int]]:
    """Data set and seed of every cell; all data sets of a seed before the next seed."""
    for seed, data in itertools.product(range(seeds or dial.seeds), dial.data):
        yield data, seed


@functools.cache  # each is tried out when it is made, and a dial asks for thousands
def sgd(lr: float = RATE, momentum: float = 0.9) -> OptimizerConfig:
    """SGD, with momentum where nothing else is said."""
    return OptimizerConfig("sgd", lr=lr, momentum=momentum)


@functools.cache
def adam(lr: float = 1e-3) -> OptimizerConfig:
    """Adam at its own default rate."""
    return OptimizerConfig("adam", lr=lr)


@functools.cache
def sam(rho: float = 0.1) -> OptimizerConfig:
    """SAM around the SGD of the plain run."""
    return OptimizerConfig("sam", lr=RATE, momentum=0.9, rho=rho)


def small_net(dial: Dial) -> ModelConfig:
    """The net of the claims that name none: two hidden layers, or three convolutions of 8 to 16 channels."""
    return (
        ModelConfig("mlp", width=dial.units, depth=2, init=INIT)
        if dial.net == "mlp"
        else ModelConfig("cnn", width=8, init=INIT)
    )


def plain(dial: Dial, data: str, seed: int, *, times: float = 1.0, **changes: Any) -> BankRun:
    """The plain run: small net, SGD with momentum, batch 32, constant rate.

    Args:
        dial: Sizes.
        data: Data set.
        seed: Of weights and order.
        times: Passes over the data, as a multiple of the dial's.
        changes: Settings of the run that are other.
    """
    given: dict[str, Any] = {
        "budget": round(times * dial.epochs * dial.samples),
        "seed": seed,
        "batch_size": BATCH,
        "schedule": "none",
        "data": DataConfig(data, subset=dial.samples),
        "net": small_net(dial),
        "optimizer": sgd(),
    }
    run = BankRun(**(given | changes))
    return replace(run, budget=round(run.budget * run.cost))  # SAM gets as many steps, at twice the cost


def residual(dial: Dial, data: str, seed: int, *, lr: float = RATE, **net: Any) -> BankRun:
    """A run of a net of blocks: ``skips``, ``norm`` and ``depth`` of :class:`ModelConfig` as given."""
    chosen: dict[str, Any] = {"name": "resnet", "width": 4, "depth": 8, "init": INIT} | net
    times = dial.deep_epochs / dial.epochs
    return plain(dial, data, seed, times=times, net=ModelConfig(**chosen), optimizer=sgd(lr))


def stacked(width: int, depth: int, init: str = INIT) -> ModelConfig:
    """A multilayer perceptron."""
    return ModelConfig("mlp", width=width, depth=depth, init=init)


def everywhere(
    make: Callable[[Dial, str, int], list[BankRun]], seeds: str = "seeds"
) -> Callable[[Dial], list[BankRun]]:
    """The runs of a claim from those of one data set and seed."""
    return lambda dial: [
        run for data, seed in each(dial, getattr(dial, seeds)) for run in make(dial, data, seed)
    ]
