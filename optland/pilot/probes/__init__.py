"""Probes: measurements of the landscape in the loop, each with its declared cost."""

from collections.abc import Callable, Sequence

from optland.pilot.probes.adam_edge import AdamEdgeProbe
from optland.pilot.probes.base import Probe
from optland.pilot.probes.curvature import CurvatureProbe
from optland.pilot.probes.edge import EdgeProbe
from optland.pilot.probes.noise import CurvatureNoiseProbe, NoiseProbe

__all__ = ["AdamEdgeProbe"]

PROBES: tuple[Callable[[int], Probe], ...] = (
    EdgeProbe, NoiseProbe, CurvatureProbe, CurvatureNoiseProbe, AdamEdgeProbe,
)  # fmt: skip
"""Probe classes, made with the seed of their randomness."""

SHOWN = frozenset({"edge", "noise", "curvature"})
"""Probes that monitor and shadow mode run though no policy reads them."""


def standard_probes(seed: int) -> Sequence[Probe]:
    """The probes that the pilot knows."""
    return [kind(seed) for kind in PROBES]
