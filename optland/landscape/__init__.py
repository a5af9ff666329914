"""The loss landscape: directions, slices, rays, sharpness, connectivity and effective dimension.

Every result is a frozen dataclass with its objective, directions, seeds and cost; ``save`` and ``load`` keep it, and
``optland.plots.plot`` draws it.
"""

from optland.landscape.directions import (
    Direction,
    cosine,
    difference,
    filter_normalised,
    gradient_direction,
    layer_normalised,
    random_direction,
)
from optland.landscape.slices import Ruggedness, Slice, checkpoint_plane, line, plane, ruggedness
from optland.landscape.trajectory import TrajectoryPlane, trajectory_plane

__all__ = [
    "Direction",
    "Ruggedness",
    "Slice",
    "TrajectoryPlane",
    "checkpoint_plane",
    "cosine",
    "difference",
    "filter_normalised",
    "gradient_direction",
    "layer_normalised",
    "line",
    "plane",
    "random_direction",
    "ruggedness",
    "trajectory_plane",
]
