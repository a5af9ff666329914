"""Without filter normalisation, slices of two nets cannot be compared: a rescaling without effect changes them."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import nn

from optland.landscape import random_direction
from optland.landscape.directions import Normalisation
from optland.objective import Objective
from optland.train.experiments.claims.cells import each, plain, stacked
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean, ratio
from optland.train.experiments.claims.measures import objective_of
from optland.train.experiments.claims.trained_net import trained_net
from optland.train.experiments.claims.trials import Trial
from optland.train.experiments.claims.verdicts import Band

FACTOR, DRAWS = 4.0, 20
"""What the first layer is multiplied by and the next divided by; random directions."""

REACH: dict[Normalisation, float] = {"none": 0.05, "filter": 0.3}
"""How far each kind of direction is walked: deviation of a weight, and share of its filter's norm."""


def slices(dial: Dial, data: str, seed: int) -> Trial:
    """The slices of one seed."""
    return Trial("rescaled slices", data, seed, dial, sliced, ("samples", "epochs", "probed"))


def sliced(trial: Trial) -> dict[str, Any]:
    """Rise of the loss along random directions of each kind, before and after the rescaling."""
    net, splits, cost = trained_net(plain(trial.dial, trial.data, trial.seed, times=0.5, net=stacked(64, 2)))
    objective = objective_of(net, splits, trial.dial.probed)
    found: dict[str, Any] = {}
    for when in ("before", "after"):
        if when == "after":
            rescale(net)
        for kind in REACH:
            found[f"{kind} {when}"] = rise(objective, kind, trial.seed)
        found[f"loss {when}"] = objective.value()
    return {**found, "ge": cost + objective.cost_ge}


@torch.no_grad()
def rescale(net: nn.Module) -> None:
    """Positive homogeneity: the function stays as it is."""
    first, second = [m for m in net.modules() if isinstance(m, nn.Linear)][:2]
    first.weight.mul_(FACTOR)
    first.bias.mul_(FACTOR)
    second.weight.div_(FACTOR)


def rise(objective: Objective, kind: Normalisation, seed: int) -> float:
    """Mean rise of the loss, over both ways along each direction, so that the slope drops out."""
    base, rises = objective.value(), []
    for k in range(DRAWS):
        d = random_direction(objective, normalise=kind, seed=1000 * seed + k)
        ends = [objective.value(objective.displaced(list(d.tensors), t)) for t in (REACH[kind], -REACH[kind])]
        rises.append(sum(ends) / 2 - base)
    return statistics.fmean(rises)


def effect(evidence: Evidence, dial: Dial) -> Found:
    """How much more the rise changes under the rescaling along raw directions than along filter-normalised ones."""
    points: dict[str, list[tuple[float, float]]] = {kind: [] for kind in REACH}

    def one(data: str, seed: int) -> float:
        trial, changed = slices(dial, data, seed), {}
        for kind, seen in points.items():
            before, after = (evidence.trial(trial, f"{kind} {when}") for when in ("before", "after"))
            seen.append((before, after))
            found = ratio(after, before)
            changed[kind] = max(found, 1 / found) if found == found else math.nan
        return ratio(changed["none"], changed["filter"])

    values = by_data(dial, one)
    beside = {
        f"rise {when}, {'raw' if kind == 'none' else 'filter-normalised'}": mean(
            pair[k] for pair in points[kind]
        )
        for kind in REACH
        for k, when in enumerate(("before", "after"))
    }
    note = "The rescaling multiplies one layer by 4 and divides the next by 4: the function is the same."
    return Found(values, beside, points, ("rise of the loss before", "rise of the loss after"), note)


CLAIM = Claim(
    name="filter normalisation",
    text="Filter normalisation is needed to compare slices of nets whose weights differ in size",
    source="first and third document; Li et al. 2018, arXiv:1712.09913",
    measured="change of a random slice under a rescaling without effect, raw over filter-normalised; twice at least",
    band=Band(low=2.0, null=1.0, is_ratio=True),
    effect=effect,
    trials=lambda dial: [slices(dial, data, seed) for data, seed in each(dial)],
)
