"""Curvature of an objective, each number with its error: operators, eigenvalues, traces, densities, noise, verdicts.

==================  ===============================================================================================
matrices            :func:`hessian`, :func:`ggn`, :func:`fisher`; of them :func:`preconditioned`,
                    :func:`in_metric`, :func:`subset`, :func:`per_layer`; one's own:
                    :class:`FunctionOperator`, or a subclass of :class:`SymmetricOperator`
eigenvalues         :func:`lanczos`, :class:`SpectrumTracker` in a training loop, :func:`power_iteration` as baseline
whole spectrum      :func:`trace`, :func:`trace_per_layer`, :func:`diagonal`, :func:`frobenius`, :func:`density`,
                    :func:`spectral_summary`
lines               :func:`critical_step`, :func:`batch_sharpness`
noise               :func:`gradient_noise`, :func:`noise_scale`
stability           :func:`stability_threshold`, :func:`stability_ratio`, :func:`stable_rate`
critical points     :func:`classify`, :func:`find_critical_points`, :func:`certify` on independent batches
all of it           :func:`portrait`
==================  ===============================================================================================

Each probe knows the most gradient evaluations that it can take, before it runs:
``lanczos.cost(objective, max_matvecs=40)``.
"""

from __future__ import annotations

from optland.curvature.eigen.lanczos import lanczos
from optland.curvature.eigen.power import power_iteration
from optland.curvature.eigen.spectrum import Spectrum
from optland.curvature.eigen.tracker import SpectrumTracker
from optland.curvature.lines.critical_step import CriticalStep, critical_step
from optland.curvature.lines.line import batch_sharpness
from optland.curvature.noise.gradient_noise import GradientNoise, gradient_noise
from optland.curvature.noise.noise_scale import NoiseScale, noise_scale
from optland.curvature.operators.fisher import fisher
from optland.curvature.operators.function import FunctionOperator
from optland.curvature.operators.ggn import ggn
from optland.curvature.operators.hessian import hessian
from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.curvature.operators.transforms import in_metric, per_layer, preconditioned, subset
from optland.curvature.points.classify import classify
from optland.curvature.points.portrait import Portrait, portrait
from optland.curvature.points.search import find_critical_points
from optland.curvature.points.two_batch import Certificate, certify
from optland.curvature.points.verdict import CriticalPoint
from optland.curvature.stability.ratio import StabilityRatio, stability_ratio
from optland.curvature.stability.stable_rate import StableRate, stable_rate
from optland.curvature.stability.thresholds import stability_threshold
from optland.curvature.stochastic.density import Density, density
from optland.curvature.stochastic.diagonal import Diagonal, diagonal
from optland.curvature.stochastic.spectral_summary import spectral_summary
from optland.curvature.stochastic.trace import Trace, frobenius, trace, trace_per_layer

__all__ = [
    "Certificate",
    "CriticalPoint",
    "CriticalStep",
    "Density",
    "Diagonal",
    "FunctionOperator",
    "GradientNoise",
    "NoiseScale",
    "Portrait",
    "Spectrum",
    "SpectrumTracker",
    "StabilityRatio",
    "StableRate",
    "SymmetricOperator",
    "Trace",
    "batch_sharpness",
    "certify",
    "classify",
    "critical_step",
    "density",
    "diagonal",
    "find_critical_points",
    "fisher",
    "frobenius",
    "ggn",
    "gradient_noise",
    "hessian",
    "in_metric",
    "lanczos",
    "noise_scale",
    "per_layer",
    "portrait",
    "power_iteration",
    "preconditioned",
    "spectral_summary",
    "stability_ratio",
    "stability_threshold",
    "stable_rate",
    "subset",
    "trace",
    "trace_per_layer",
]
