"""The loss landscape: directions, slices, rays, sharpness, connectivity and effective dimension.

Every result is a frozen dataclass with its objective, directions, seeds and cost; ``save`` and ``load`` keep it, and
``optland.plots.plot`` draws it.
"""

from optland.landscape.alignment import Alignment, align
from optland.landscape.curves import Connection, connect
from optland.landscape.dimension import EffectiveDimension, GradientSketch, effective_dimension, overlap
from optland.landscape.directions import (
    Direction,
    cosine,
    difference,
    filter_normalised,
    gradient_direction,
    layer_normalised,
    random_direction,
)
from optland.landscape.paths import PathLoss, linear_path, recalibrated
from optland.landscape.rays import GradientSmoothness, Rays, gradient_smoothness, rays
from optland.landscape.settings import CurveConfig
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
    "Alignment",
    "Connection",
    "CurveConfig",
    "Direction",
    "EffectiveDimension",
    "GradientSketch",
    "GradientSmoothness",
    "PathLoss",
    "Rays",
    "Ruggedness",
    "Sharpness",
    "Slice",
    "TrajectoryPlane",
    "align",
    "average_sharpness",
    "checkpoint_plane",
    "connect",
    "cosine",
    "difference",
    "effective_dimension",
    "filter_normalised",
    "gradient_direction",
    "gradient_smoothness",
    "layer_normalised",
    "line",
    "linear_path",
    "overlap",
    "plane",
    "random_direction",
    "random_sharpness",
    "rays",
    "recalibrated",
    "ruggedness",
    "sam_sharpness",
    "trajectory_plane",
    "worst_sharpness",
]
