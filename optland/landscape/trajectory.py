r"""The plane of a training trajectory: principal components of the checkpoints around the last one.

With rows :math:`x_t = w_t - w_T` the Gram matrix :math:`x_s^\top x_t` gives the components, in memory for T vectors
and nothing of size d x d. A random walk in high dimension also shows a first component with most of the variance
(Antognini and Sohl-Dickstein 2018, arXiv:1806.08805), so the explained variance says that the plane holds the path,
not that the path has a low dimension for a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from optland import vectors
from optland.archive import Archived
from optland.landscape.directions import Direction, made
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["TrajectoryPlane", "trajectory_plane"]


@dataclass(frozen=True, slots=True)
class TrajectoryPlane(Archived):
    """Two unit directions through a trajectory.

    Attributes:
        directions: The first two principal components, orthonormal.
        explained: Share of the variance along each of the two.
        coordinates: By checkpoint, its place (x, y) in the plane, the last one at the origin.
    """

    directions: tuple[Direction, Direction]
    explained: tuple[float, float]
    coordinates: tuple[tuple[float, float], ...]


def trajectory_plane(objective: Objective, checkpoints: Sequence[Vector]) -> TrajectoryPlane:
    """The plane of the first two principal components of checkpoints, around the last of them.

    Args:
        objective: The loss; its present weights do not matter, but their shapes do.
        checkpoints: At least three, in the order of training.

    Returns:
        The two directions, the share of the path's variance that they explain, and the path's coordinates in them.
        Even a random walk has most of its variance in two components, so a high share is no evidence of a simple path.

    Raises:
        ValueError: Fewer than three checkpoints, or they lie on a line.
    """
    if len(checkpoints) < 3:
        raise ValueError(f"a plane needs at least 3 checkpoints, got {len(checkpoints)}; save more of them")
    last = checkpoints[-1]
    rows = [
        [(a.detach() - b.detach()).double() for a, b in zip(w, last, strict=True)] for w in checkpoints[:-1]
    ]
    gram = torch.stack([torch.stack([vectors.dot(a, b).cpu() for b in rows]) for a in rows]).double()
    values, mixes = torch.linalg.eigh(gram)
    values, mixes = values.flip(0).clamp_min(0.0), mixes.flip(1)
    if not values[1] > 1e-12 * values[0]:
        raise ValueError("the checkpoints lie on a line; draw a line slice through two of them instead")
    found = []
    for i in range(2):
        weights = (mixes[:, i] / values[i].sqrt()).tolist()
        d = vectors.combine(weights, rows)
        cast = [t.to(p.dtype) for t, p in zip(d, objective.params, strict=True)]
        found.append(made(objective, cast, f"trajectory component {i + 1}"))
    places = [(float(x), float(y)) for x, y in (mixes[:, :2] * values[:2].sqrt())]
    total = float(values.sum())
    explained = (float(values[0]) / total, float(values[1]) / total)
    return TrajectoryPlane((found[0], found[1]), explained, (*places, (0.0, 0.0)))
