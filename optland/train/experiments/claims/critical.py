"""Nearly all critical points met are saddles, with an index that falls with the loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from optland.curvature import find_critical_points
from optland.curvature.points.search import starts_around
from optland.curvature.points.verdict import PointKind
from optland.objective import Objective
from optland.train.experiments.bank_run import cross_entropy, load_splits
from optland.train.experiments.claims.cells import each, plain
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean, rank_correlation
from optland.train.experiments.claims.trials import Trial
from optland.train.experiments.claims.verdicts import Band

POINTS, INPUTS, UNITS, STEPS = 64, 4, 2, 600
"""Samples, means of pixels that go in, tanh units, and steps of gradient descent."""

DECAY = 0.01
"""Of |w|^2 / 2 in the loss: without it the minima of a cross-entropy lie at infinity."""


def search(dial: Dial, data: str, seed: int) -> Trial:
    """The search of one seed."""
    return Trial("critical points", data, seed, dial, searched, ("samples", "searches"))


def searches(dial: Dial) -> list[Trial]:
    """Those of all data sets and seeds."""
    return [search(dial, data, seed) for data, seed in each(dial)]


def searched(trial: Trial) -> dict[str, Any]:
    """Where minimising |g| ends from points of a training path and around them: loss, index and kind.

    Returns:
        Lists over the points that are critical: ``loss``, ``index`` (share of negative eigenvalues) and ``kinds``; the
        share ``saddles``, NaN without a point; ``not_critical``, searches that ended elsewhere; ``ge``.
    """
    splits = load_splits(plain(trial.dial, trial.data, trial.seed))
    x, y = (t[:POINTS] for t in splits.train)
    torch.manual_seed(trial.seed)
    net = nn.Sequential(
        nn.Flatten(), nn.AdaptiveAvgPool1d(INPUTS), nn.Linear(INPUTS, UNITS), nn.Tanh(),
        nn.Linear(UNITS, splits.num_outputs),
    ).double()  # fmt: skip
    objective = Objective(net, decayed, [(x.double(), y)], data="training")
    path = descended(objective, max(1, trial.dial.searches // 2))
    starts = starts_around(path, radii=(0.0, 0.5), seed=trial.seed)[: trial.dial.searches]
    found = [
        f.critical_point for f in find_critical_points(objective, starts, max_steps=100, seed=trial.seed)
    ]
    kept = [p for p in found if p.critical and math.isfinite(p.index_fraction)]
    saddles = (PointKind.STRICT_SADDLE, PointKind.LOCAL_MAXIMUM)
    return {
        "loss": [p.loss for p in kept],
        "index": [p.index_fraction for p in kept],
        "kinds": [str(p.verdict) for p in kept],
        "saddles": sum(p.verdict in saddles for p in kept) / len(kept) if kept else math.nan,
        "not_critical": len(found) - len(kept),
        "ge": objective.cost_ge,
    }


def decayed(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    r"""Cross-entropy with weight decay.

    .. math:: L(w) + \tfrac12 \, 0.01 \, \lVert w \rVert^2
    """
    return cross_entropy(model, batch) + 0.5 * DECAY * sum(p.square().sum() for p in model.parameters())


def descended(objective: Objective, count: int) -> list[list[torch.Tensor]]:
    """Points of a path of gradient descent, evenly spaced, the start among them.

    Args:
        objective: The loss, whose weights stay where they are.
        count: Points, of :data:`STEPS` steps at the rate 0.5.

    Returns:
        For each point a tensor for each parameter.
    """
    w, path = [p.detach().clone() for p in objective.params], []
    for step in range(STEPS):
        if step % (STEPS // count) == 0:
            path.append([t.clone() for t in w])
        w = [t - 0.5 * g for t, g in zip(w, objective.gradient(w), strict=True)]
    return path[:count]


def share(evidence: Evidence, dial: Dial) -> Found:
    """Share of strict saddles among the critical points."""
    return seen(evidence, dial, lambda trial: evidence.trial(trial, "saddles"))


def index(evidence: Evidence, dial: Dial) -> Found:
    """Rank correlation of loss and index."""
    return seen(
        evidence,
        dial,
        lambda trial: rank_correlation(evidence.listed(trial, "loss"), evidence.listed(trial, "index")),
    )


def seen(evidence: Evidence, dial: Dial, what: Any) -> Found:
    """The effect with what both rows show."""
    points: dict[str, list[tuple[float, float]]] = {data: [] for data in dial.data}
    left, kinds = [], []

    def one(data: str, seed: int) -> float:
        trial = search(dial, data, seed)
        loss, fractions = evidence.listed(trial, "loss"), evidence.listed(trial, "index")
        points[data] += zip(loss, fractions, strict=True)
        left.append(evidence.trial(trial, "not_critical"))
        kinds.extend(evidence.listed(trial, "kinds"))
        return float(what(trial))

    values = by_data(dial, one)
    beside = {"critical points": float(len(kinds)), "searches that ended elsewhere, per seed": mean(left)}
    beside |= {str(kind): float(kinds.count(str(kind))) for kind in PointKind if str(kind) in kinds}
    note = f"Nets of {UNITS} tanh units on {INPUTS} means of pixels, with weight decay {DECAY}; Hessians in float64."
    return Found(values, beside, points, ("loss", "share of negative eigenvalues"), note)


CLAIMS = (
    Claim(
        name="saddles",
        text="Nearly all critical points that are met are saddles",
        source="first and second document",
        measured="share of strict saddles among the critical points found from and around a training path",
        band=Band(low=0.9, high=1.0, null=0.5, resolution=1 / 8),
        effect=share,
        trials=searches,
    ),
    Claim(
        name="index falls",
        text="The index of a critical point falls with its loss",
        source="Dauphin et al. 2014, cited by the third document",
        measured="rank correlation of loss and share of negative eigenvalues over the critical points of a seed",
        band=Band(low=0.5, high=1.0, null=0.0),
        effect=index,
        trials=searches,
    ),
)
