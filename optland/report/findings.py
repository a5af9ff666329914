"""The findings of a report: surveys of one or several checkpoints, and of what lies between them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optland.archive import Archived
from optland.landscape import (
    Connection,
    MinimaComparison,
    Slice,
    TrajectoryPlane,
    connect,
    plane,
    trajectory_plane,
)
from optland.landscape.slices import around
from optland.objective import Objective
from optland.report.store import Store, key_of
from optland.report.survey import Survey
from optland.vectors import Vector

__all__ = ["Findings", "Trajectory", "connections", "follow"]


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory(Archived):
    """The loss over the plane that holds most of a path of checkpoints.

    Attributes:
        path: The plane, the share of the variance in it, and the places of the checkpoints.
        surface: The loss over it.
        names: Of the checkpoints.
    """

    path: TrajectoryPlane
    surface: Slice
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Findings(Archived):
    """All that a report shows.

    Attributes:
        title: Of the report.
        about: Facts for its head: data, samples, versions.
        surveys: One for each checkpoint.
        connections: By ``"first to second"``: the paths between two checkpoints.
        trajectory: Of training, where its checkpoints were given.
        notes: Sentences about what is not as it should be.
        results: By checkpoint, what its training says of it: accuracy, optimizer, learning rate, verdict.
        training: By checkpoint and key, what its run logged on the way: pairs of update and value.
    """

    title: str
    about: dict[str, str]
    surveys: tuple[Survey, ...]
    connections: dict[str, Connection] = field(default_factory=dict)
    trajectory: Trajectory | None = None
    notes: tuple[str, ...] = ()
    results: dict[str, dict[str, str]] = field(default_factory=dict)
    training: dict[str, dict[str, tuple[tuple[float, float], ...]]] = field(default_factory=dict)

    @property
    def comparison(self) -> MinimaComparison:
        """The sharpness of every checkpoint in one table."""
        return MinimaComparison(tuple(s.minimum for s in self.surveys))


LR = 0.005
"""Learning rate of the curves between two checkpoints."""


def connections(
    objectives: Mapping[str, Objective],
    *,
    num_steps: int = 300,
    seed: int = 0,
    partial: str | Path | None = None,
) -> dict[str, Connection]:
    """The line and a trained curve between every two checkpoints that fit each other.

    Args:
        objectives: By name: the same loss at each checkpoint.
        num_steps: Training steps of each curve; 0 for lines alone.
        seed: Of the curves.
        partial: Folder for the paths that are done; an interrupted search goes on from there.

    Returns:
        By ``"first to second"``.

    Raises:
        ValueError: Two of them are of different architectures.
    """
    found: dict[str, Connection] = {}
    settings = {"steps": num_steps, "seed": seed}
    for (one, first), (two, second) in itertools.combinations(objectives.items(), 2):
        store = Store(partial, f"{one} to {two}", key_of(settings, first, second))
        make = functools.partial(connect, first, second.model, num_steps=num_steps, lr=LR, seed=seed)
        try:
            found[f"{one} to {two}"] = store.of("connection", Connection, make)
        except ValueError as error:
            raise ValueError(f"{one} and {two}: {error}") from error
    return found


def follow(objective: Objective, checkpoints: Mapping[str, Vector], *, num_points: int = 21) -> Trajectory:
    """The loss over the plane of a training path.

    Args:
        objective: The loss.
        checkpoints: Weights by name, at least three, in the order of training; the last is the origin of the plane.
        num_points: Of a side.

    Returns:
        The plane of the two principal components of the path, the loss over it, and the names.

    Raises:
        ValueError: Fewer than three checkpoints, or they lie on a line.
    """
    weights: Sequence[Vector] = list(checkpoints.values())
    path = trajectory_plane(objective, weights)
    with objective.at(list(weights[-1])):
        surface = plane(
            objective, *path.directions, ranges=around(path.coordinates, 0.2), num_points=num_points,
            markers=dict(zip(checkpoints, path.coordinates, strict=True)), with_curvature=False,
        )  # fmt: skip
    return Trajectory(path, surface, tuple(checkpoints))
