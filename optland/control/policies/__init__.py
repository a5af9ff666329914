"""Policies: pure functions of signals and their own small state, giving values with reasons."""

from optland.control.policies.auto_lr import AutoLR
from optland.control.policies.noise_batch import NoiseBatch
from optland.control.policies.safe_lr import SafeLR

__all__ = ["POLICIES", "AutoLR", "NoiseBatch", "SafeLR"]

POLICIES: dict[str, type[AutoLR] | type[SafeLR] | type[NoiseBatch]] = {
    "auto_lr": AutoLR,
    "safe_lr": SafeLR,
    "noise_batch": NoiseBatch,
}
"""Policy classes by the name users give."""
