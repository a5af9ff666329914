"""Momentum and adaptive methods leave saddles sooner than plain gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from optland.objective import Objective
from optland.problems import octopus
from optland.problems.networks import matrix_factorisation
from optland.problems.octopus import Octopus
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import mean, ratio
from optland.train.experiments.claims.trials import Trial
from optland.train.experiments.claims.verdicts import Band

PLACES = ("octopus", "factorisation")
RATES = (0.01, 0.03, 0.1, 0.3, 0.9)
STEPS = 1000
NEAR = 1e-3
"""Size of the random move off the saddle."""

Make = Callable[[list[nn.Parameter], float], Optimizer]

METHODS: Mapping[str, Make] = {
    "SGD": lambda params, lr: torch.optim.SGD(params, lr=lr),
    "momentum": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9),
    "Adam": lambda params, lr: torch.optim.Adam(params, lr=lr),
}


def places() -> dict[str, tuple[Objective, float]]:
    """Saddles of known shape with the least loss there is: three in a row, and the origin of a matrix factorisation."""
    generator = torch.Generator().manual_seed(0)
    M = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    return {
        "octopus": (octopus(3), Octopus(3).minimum),
        "factorisation": (matrix_factorisation(M @ M.T / 4, 3), 0.0),
    }


def race(dial: Dial, place: str, seed: int) -> Trial:
    """Steps of all methods from one start."""
    return Trial("saddle race", place, seed, dial, raced)


def races(dial: Dial) -> list[Trial]:
    """Those of all places and seeds."""
    return [race(dial, place, seed) for seed in range(dial.seeds) for place in PLACES]


def raced(trial: Trial) -> dict[str, Any]:
    """For each method, the fewest steps over its rates until half of the way down from the saddle to the minimum."""
    found: dict[str, Any] = {}
    for name, make in METHODS.items():
        best = STEPS + 1
        for lr in RATES[::-1]:  # the fastest first: a slower one need not be followed for longer
            best = min(best, steps_of(trial, make, lr, best))
        found[name] = float(best) if best <= STEPS else math.nan
    return found


def steps_of(trial: Trial, make: Make, lr: float, limit: int) -> int:
    """Steps until half way down; ``limit`` where it takes as many, or the loss is not finite.

    Args:
        trial: Says at which saddle, and from which random move off it.
        make: Makes the optimizer from parameters and rate.
        lr: Its rate.
        limit: Steps after which there is nothing to be learned: another rate was faster.
    """
    objective, bottom = places()[trial.data]
    generator = torch.Generator().manual_seed(trial.seed)
    with torch.no_grad():
        for p in objective.params:
            p.copy_(NEAR * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    top = objective.value([torch.zeros_like(p) for p in objective.params])
    optimizer = make(list(objective.model.parameters()), lr)
    for step in range(1, limit):
        loss, gradient = objective.value_and_gradient()
        if not math.isfinite(loss):
            break
        if loss < 0.5 * (top + bottom):
            return step
        for p, g in zip(objective.params, gradient, strict=True):
            p.grad = g
        optimizer.step()
    return limit


def against(method: str) -> Callable[[Evidence, Dial], Found]:
    """Steps of SGD over those of the method."""

    def effect(evidence: Evidence, dial: Dial) -> Found:
        values: dict[str, list[float]] = {}
        series: dict[str, list[tuple[float, float]]] = {}
        for place in PLACES:
            trials = [race(dial, place, seed) for seed in range(dial.seeds)]
            series[place] = [(evidence.trial(t, "SGD"), evidence.trial(t, method)) for t in trials]
            values[place] = [ratio(a, b) for a, b in series[place]]
        every = [pair for found in series.values() for pair in found]
        beside = {"steps of SGD": mean(a for a, _ in every), f"steps of {method}": mean(b for _, b in every)}
        note = f"Each method at the best of the rates {RATES}."
        return Found(values, beside, series, ("steps of SGD", f"steps of {method}"), note)

    return effect


CLAIMS = tuple(
    Claim(
        name=f"saddles: {method}",
        text=f"{what} through the flat parts around saddles",
        source="second document",
        measured=f"steps from a saddle to half the way down, SGD over {method}, each at its best rate; 10 % at least",
        band=Band(low=1.1, null=1.0, is_ratio=True),
        effect=against(method),
        trials=races,
    )
    for method, what in (("momentum", "Momentum rolls"), ("Adam", "Adaptive rates carry"))
)
