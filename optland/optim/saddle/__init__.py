"""Optimizers that leave saddles: wrappers around any optimizer, and second-order solvers.

Strict saddles are left also from an exactly zero gradient, and no point is called a minimum without a certificate.
"""

from optland.optim.saddle.leave import leave_saddle
from optland.optim.saddle.negative_curvature import NegativeCurvature
from optland.optim.saddle.perturbed import NoisyGradient, PerturbedGradient
from optland.optim.saddle.solvers import CubicNewton, SaddleFreeNewton, TrustRegionNewton
from optland.optim.saddle.trigger import Trigger

__all__ = [
    "CubicNewton",
    "NegativeCurvature",
    "NoisyGradient",
    "PerturbedGradient",
    "SaddleFreeNewton",
    "Trigger",
    "TrustRegionNewton",
    "leave_saddle",
]
