"""The loss landscape: directions, slices, rays, sharpness, connectivity and effective dimension.

Every result is a frozen dataclass with its objective, directions, seeds and cost; ``save`` and ``load`` keep it, and
``optland.plots.plot`` draws it.
"""

from optland.landscape.alignment import align
from optland.landscape.bits import bits_by_layer
from optland.landscape.correlation import rank_correlations
from optland.landscape.curves import Connection, connect
from optland.landscape.damage import Damage, damage
from optland.landscape.damage_spec import DamageSpec
from optland.landscape.damages import damaged, pruned, rounded, shaken
from optland.landscape.dimension import EffectiveDimension, GradientSketch, effective_dimension
from optland.landscape.directions import (
    Direction,
    difference,
    eigenvector_direction,
    random_direction,
)
from optland.landscape.minima import MinimaComparison, Minimum, compare_minima
from optland.landscape.paths import PathLoss, linear_path
from optland.landscape.rate import rate_sensitivity
from optland.landscape.rays import Rays, gradient_smoothness, rays
from optland.landscape.settings import CurveConfig
from optland.landscape.sharpness import (
    Sharpness,
    average_sharpness,
    random_sharpness,
    sam_sharpness,
    worst_sharpness,
)
from optland.landscape.slices import Slice, checkpoint_plane, line, plane, ruggedness
from optland.landscape.trajectory import TrajectoryPlane, trajectory_plane

__all__ = [
    "Connection",
    "CurveConfig",
    "Damage",
    "DamageSpec",
    "Direction",
    "EffectiveDimension",
    "GradientSketch",
    "MinimaComparison",
    "Minimum",
    "PathLoss",
    "Rays",
    "Sharpness",
    "Slice",
    "TrajectoryPlane",
    "align",
    "average_sharpness",
    "bits_by_layer",
    "checkpoint_plane",
    "compare_minima",
    "connect",
    "damage",
    "damaged",
    "difference",
    "effective_dimension",
    "eigenvector_direction",
    "gradient_smoothness",
    "line",
    "linear_path",
    "plane",
    "pruned",
    "random_direction",
    "random_sharpness",
    "rank_correlations",
    "rate_sensitivity",
    "rays",
    "rounded",
    "ruggedness",
    "sam_sharpness",
    "shaken",
    "trajectory_plane",
    "worst_sharpness",
]
