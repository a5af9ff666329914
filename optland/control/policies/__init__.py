"""Policies: pure functions of signals and their own small state, giving values with reasons."""

from typing import Any

from optland.control.policies.auto_lr import AutoLR
from optland.control.policies.gi_adam import GIAdam
from optland.control.policies.monitors import EdgeMonitor, NoiseMonitor
from optland.control.policies.noise_batch import NoiseBatch
from optland.control.policies.plateau import Plateau
from optland.control.policies.relative_step import RelativeStep
from optland.control.policies.safe_lr import SafeLR
from optland.control.policies.sam_policies import LateSAM, Rho
from optland.control.policies.seesaw import Seesaw
from optland.control.policies.spike_guard import SpikeGuard

__all__ = [
    "POLICIES",
    "AutoLR",
    "EdgeMonitor",
    "GIAdam",
    "LateSAM",
    "NoiseBatch",
    "NoiseMonitor",
    "Plateau",
    "RelativeStep",
    "Rho",
    "SafeLR",
    "Seesaw",
    "SpikeGuard",
]

_KINDS: tuple[Any, ...] = (
    AutoLR, RelativeStep, SafeLR, EdgeMonitor, NoiseMonitor, NoiseBatch, Seesaw, Plateau, LateSAM, Rho, SpikeGuard,
    GIAdam,
)  # fmt: skip
POLICIES: dict[str, Any] = {kind.name: kind for kind in _KINDS}
"""Policy classes by the name users give."""
