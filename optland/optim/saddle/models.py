r"""Steps from a quadratic or cubic model of the loss in a small space, in its eigenvectors.

With eigenvalues lambda_i and gradient coefficients c_i of the space:

==============  ==========================================================================================
model           step s_i
==============  ==========================================================================================
saddle-free     -c_i / (|lambda_i| + delta)
cubic           argmin  c's + s'Ls/2 + (sigma/3) ||s||^3:  s_i = -c_i / (lambda_i + sigma ||s||)
trust region    argmin  c's + s'Ls/2,  ||s|| <= Delta:      s_i = -c_i / (lambda_i + nu)
==============  ==========================================================================================

**The hard case.** Where c has no part along the most negative curvature, the equations for the cubic and the
trust-region step have no solution of the right length with nu >= -lambda_1; the exact minimiser then adds as much of
the first eigenvector as is missing, in either direction.

References: Dauphin et al. 2014, arXiv:1406.2572; Nesterov and Polyak 2006; Cartis, Gould and Toint 2011; Moré and
Sorensen 1983; Gould et al. 1999.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cubic_step", "model_change", "saddle_free_step", "trust_region_step"]

TINY = 1e-12


def saddle_free_step(values: Tensor, slope: Tensor, damping: float) -> Tensor:
    """-(|L| + damping)^-1 c.

    Args:
        values: Eigenvalues L of the compressed Hessian, (k,).
        slope: The gradient c in their eigenvectors, (k,).
        damping: Above 0 where an eigenvalue may be 0.

    Returns:
        (k,).

    Example:
        >>> t = torch.tensor
        >>> saddle_free_step(t([-2.0, 4.0]).double(), t([2.0, 4.0]).double(), 0.0).tolist()
        [-1.0, -1.0]
    """
    return -slope / (values.abs() + damping).clamp_min(1e-300)


def cubic_step(values: Tensor, slope: Tensor, sigma: float) -> Tensor:
    """The global minimiser of c's + s'Ls/2 + (sigma/3) ||s||^3.

    Args:
        values: Eigenvalues L, ascending, (k,).
        slope: The gradient c in their eigenvectors, (k,).
        sigma: Weight of the cubic term, above 0.

    Returns:
        (k,); in the hard case, c across the lowest eigenvector, one of the two minimisers.

    Example:
        >>> cubic_step(torch.tensor([-2.0]).double(), torch.tensor([0.0]).double(), 3.0).abs().tolist()
        [0.6666666666666666]
    """

    def length_at(nu: float) -> float:
        return nu / sigma

    return _secular(values, slope, length_at)


def trust_region_step(values: Tensor, slope: Tensor, radius: float) -> Tensor:
    """The global minimiser of c's + s'Ls/2 in the ball of this radius.

    Args:
        values: Eigenvalues L, ascending, (k,).
        slope: The gradient c in their eigenvectors, (k,).
        radius: Of the ball.

    Returns:
        (k,); in the hard case, c across the lowest eigenvector, one of the two minimisers.

    Example:
        >>> trust_region_step(torch.tensor([4.0]).double(), torch.tensor([2.0]).double(), 1.0).tolist()
        [-0.5]
    """
    if float(values[0]) > 0:
        newton = -slope / values
        if float(newton.norm()) <= radius:
            return newton
    return _secular(values, slope, lambda nu: radius)


def _secular(values: Tensor, slope: Tensor, length_at) -> Tensor:  # type: ignore[no-untyped-def]
    """s(nu) = -c / (L + nu) with ||s(nu)|| = length_at(nu) and nu >= max(0, -lambda_1), by bisection."""
    lowest = max(0.0, -float(values[0]))
    scale = max(float(values.abs().max()), float(slope.norm()), 1e-300)

    def step(nu: float) -> Tensor:
        return -slope / (values + nu).clamp_min(TINY * scale)

    floor = lowest + TINY * scale
    edge = values + lowest < TINY * 10 * scale
    soft = torch.where(edge, torch.zeros_like(slope), -slope / (values + lowest).clamp_min(TINY * scale))
    flat_slope = float(slope[edge].norm()) if bool(edge.any()) else 0.0
    wanted = length_at(lowest)
    if flat_slope <= 1e-10 * max(float(slope.norm()), 1e-300) and float(soft.norm()) <= wanted:
        return _hard_case(soft, wanted) if float(values[0]) < 0 else soft
    low, high = floor, lowest + scale
    while float(step(high).norm()) > length_at(high):
        high = lowest + 4.0 * (high - lowest)
    for _ in range(200):
        middle = 0.5 * (low + high)
        if float(step(middle).norm()) > length_at(middle):
            low = middle
        else:
            high = middle
        if high - low < 1e-15 * max(high, 1e-300):
            break
    return step(high)


def _hard_case(soft: Tensor, wanted: float) -> Tensor:
    """``soft`` and as much of the first eigenvector as makes the length right."""
    s = soft.clone()
    missing = max(wanted**2 - float(soft.square().sum()), 0.0) ** 0.5
    s[0] = s[0] + missing
    return s


def model_change(values: Tensor, slope: Tensor, s: Tensor, sigma: float = 0.0) -> float:
    """The change c's + s'Ls/2 + (sigma/3) ||s||^3 that the model predicts.

    Args:
        values: Eigenvalues L, (k,).
        slope: The gradient c in their eigenvectors, (k,).
        s: The step, (k,).
        sigma: Weight of the cubic term; 0 for the quadratic model.

    Returns:
        Negative where the model falls.

    Example:
        >>> t = torch.tensor
        >>> model_change(t([4.0]).double(), t([2.0]).double(), t([-0.5]).double())
        -0.5
    """
    return float(slope @ s + 0.5 * (values * s * s).sum() + sigma / 3.0 * s.norm() ** 3)
