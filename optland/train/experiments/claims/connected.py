"""The trials behind the claims on connectivity: two nets of other seeds, the line and a trained curve between them."""

from __future__ import annotations

from typing import Any

from optland.landscape import connect
from optland.train.experiments.bank import score
from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.cells import each, plain, sgd, stacked
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.measures import objective_of, shift
from optland.train.experiments.claims.trained_net import trained_net
from optland.train.experiments.claims.trials import Trial

__all__ = ["WIDTHS", "pair", "pairs"]

WIDTHS = (8, 64, 256)
OTHER = 1000
"""Added to the seed for the second net."""


def pair(dial: Dial, data: str, seed: int, width: int) -> Trial:
    """The trial of one width.

    Args:
        dial: Sizes.
        data: Data set.
        seed: Of the first net; the second has :data:`OTHER` more.
        width: Units of both hidden layers.
    """
    uses = ("samples", "epochs", "probed", "curve_steps")
    return Trial("connection", data, seed, dial, between, uses, width)


def pairs(dial: Dial) -> list[Trial]:
    """Of all widths, data sets and seeds."""
    return [pair(dial, data, seed, width) for data, seed in each(dial) for width in WIDTHS]


def between(trial: Trial) -> dict[str, Any]:
    """Barriers over the larger end, and how good both ends are.

    Returns:
        ``line`` and ``curve``, the barriers in nats; ``ends``, the larger training loss; ``worst_acc`` and ``drop`` in
        points; the losses along both ways; ``ge``. Without a trained curve the line stands for it.
    """
    dial = trial.dial
    first, splits, cost = trained_net(half(trial, trial.seed))
    second, _, more = trained_net(half(trial, trial.seed + OTHER))
    objective = objective_of(first, splits, dial.probed)
    found = connect(objective, second, num_steps=dial.curve_steps, seed=trial.seed)
    line, curve = found.linear, found.curve or found.linear
    test = score("test")
    accs = [test(net, splits)["acc"] for net in (first, second)]
    drops = [shift(net, splits)["drop"] for net in (first, second)]
    return {
        "line": line.above,
        "curve": curve.above,
        "ends": max(line.ends),
        "worst_acc": min(accs),
        "drop": sum(drops) / 2,
        "t": line.t.tolist(),
        "line_loss": line.loss.tolist(),
        "curve_t": curve.t.tolist(),
        "curve_loss": curve.loss.tolist(),
        "ge": cost + more + found.cost_ge,
    }


def half(trial: Trial, seed: int) -> BankRun:
    """One of the two runs, of half the plain length."""
    net = stacked(trial.width, 2)
    return plain(trial.dial, trial.data, seed, times=0.5, net=net, optimizer=sgd(0.05))
