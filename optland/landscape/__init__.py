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
from optland.landscape.rays import GradientSmoothness, Rays, gradient_smoothness, rays
from optland.landscape.sharpness import (
    Sharpness,
    average_sharpness,
    random_sharpness,
    sam_sharpness,
    worst_sharpness,
)
from optland.landscape.slices import Ruggedness, Slice, checkpoint_plane, line, plane, ruggedness
from optland.landscape.trajectory import TrajectoryPlane, trajectory_plane

__all__ = [
    "Direction",
    "GradientSmoothness",
    "Rays",
    "Ruggedness",
    "Sharpness",
    "Slice",
    "TrajectoryPlane",
    "average_sharpness",
    "checkpoint_plane",
    "cosine",
    "difference",
    "filter_normalised",
    "gradient_direction",
    "gradient_smoothness",
    "layer_normalised",
    "line",
    "plane",
    "random_direction",
    "random_sharpness",
    "rays",
    "ruggedness",
    "sam_sharpness",
    "trajectory_plane",
    "worst_sharpness",
]
