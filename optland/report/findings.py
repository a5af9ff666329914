"""The findings of a report: surveys of one or several checkpoints, and of what lies between them."""

from __future__ import annotations

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

__all__ = ["Findings", "Trajectory", "connection", "follow"]


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


def connection(
    name: str,
    first: Objective,
    second: Objective,
    *,
    num_steps: int,
    seed: int,
    partial: str | Path | None,
) -> Connection:
    """The line and a trained curve between two checkpoints.

    Args:
        name: Of the pair, ``"first to second"``.
        first: The loss at one of them.
        second: The same loss at the other.
        num_steps: Training steps of the curve; 0 for the line alone.
        seed: Of the curve.
        partial: Folder for what is done; an interrupted search goes on from there.

    Raises:
        ValueError: They are of different architectures.
    """
    store = Store(partial, name, key_of({"steps": num_steps, "seed": seed}, first, second))
    try:
        return store.of(
            "connection",
            Connection,
            lambda: connect(first, second.model, num_steps=num_steps, lr=LR, seed=seed),
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


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
