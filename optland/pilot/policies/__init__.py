"""Policies, which turn signals and a small state of their own into proposals. None of them uses torch."""

from typing import Any

from optland.pilot.policies.auto_lr import AutoLR
from optland.pilot.policies.monitors import CurvatureMonitor, EdgeMonitor, NoiseMonitor
from optland.pilot.policies.noise_batch import NoiseBatch
from optland.pilot.policies.plateau import Plateau
from optland.pilot.policies.safe_lr import SafeLR
from optland.pilot.policies.spike_guard import SpikeGuard

_KINDS: tuple[Any, ...] = (
    AutoLR, SafeLR, NoiseBatch, Plateau, SpikeGuard, EdgeMonitor, NoiseMonitor, CurvatureMonitor,
)  # fmt: skip
POLICIES: dict[str, Any] = {kind.name: kind for kind in _KINDS}
"""Policy classes by the name users give."""
