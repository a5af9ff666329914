"""Curvature of an objective: Hessian products, extreme eigenvalues, critical step, gradient noise.

Each probe has a ``declared_cost`` in gradient evaluations beside it, known before it runs: import it from the probe's
module, ``from optland.curvature.lanczos import declared_cost``.
"""

from __future__ import annotations

from optland.curvature.critical_step import CriticalStep, critical_step
from optland.curvature.gradient_noise import GradientNoise, from_norms, gradient_noise, pooled
from optland.curvature.lanczos import lanczos
from optland.curvature.operators import CurvatureOperator, hessian
from optland.curvature.products import HVP_GE
from optland.curvature.spectrum import Spectrum

__all__ = [
    "HVP_GE",
    "CriticalStep",
    "CurvatureOperator",
    "GradientNoise",
    "Spectrum",
    "critical_step",
    "from_norms",
    "gradient_noise",
    "hessian",
    "lanczos",
    "pooled",
]
