r"""A random Gaussian landscape, and how its critical points divide into minima, saddles and maxima.

.. math:: f(x) = \sqrt{2 / M} \sum_{m=1}^{M} \cos(k_m \cdot x + \varphi_m), \qquad k_m \sim N(0, I),\;
          \varphi_m \sim U(0, 2\pi)

With many waves M this is a Gaussian field with covariance :math:`e^{-r^2/2}` (Rahimi and Recht 2007), whose gradient is
N(0, I) and whose Hessian is Gaussian with

.. math:: E[H_{ij} H_{kl}] = \delta_{ij}\delta_{kl} + \delta_{ik}\delta_{jl} + \delta_{il}\delta_{jk},

independent of the gradient. By Kac and Rice the share of the critical points of index k is

.. math:: p_k = E\bigl[\,|\det H|\; 1\{k \text{ eigenvalues} < 0\}\bigr] \,/\, E\,|\det H| .

It is 1/2, 1/4 and :math:`(29 - 6\sqrt 6)/116` for the minima in one, two and three dimensions (Longuet-Higgins 1957;
Bardeen et al. 1986). Isotropy alone fixes the covariance of the Hessian up to its scale, so the shares are the same for
every smooth isotropic Gaussian field. A coin for each eigenvalue would give :math:`2^{-d}`.

References: Kac 1943, Rice 1944 (the formula); Vogel and Moehring 2007, arXiv:0707.0457 (saddles in three dimensions).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optland.objective import Objective
from optland.problems.points import function_objective

__all__ = ["gaussian_hessians", "gaussian_landscape", "index_shares"]


def gaussian_landscape(
    d: int, *, num_waves: int = 500, seed: int = 0, start: Tensor | None = None
) -> Objective:
    """One random landscape, at ``start`` (default: the origin, which is a point like any other).

    Args:
        d: Dimensions.
        num_waves: M; the field is Gaussian up to terms of order 1/M.
        seed: Of the waves.
        start: Where to stand.

    Raises:
        ValueError: Fewer than one dimension or wave.

    Example:
        >>> L = gaussian_landscape(3, seed=1)
        >>> [round(x, 3) for x in L.gradient()[0].tolist()] == [0.0, 0.0, 0.0]
        False
    """
    if d < 1 or num_waves < 1:
        raise ValueError(f"d {d} and num_waves {num_waves} must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    k = torch.randn(num_waves, d, generator=generator, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(num_waves, generator=generator, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return math.sqrt(2 / num_waves) * torch.cos(k @ x + phase).sum()

    return function_objective(f, torch.zeros(d, dtype=torch.float64) if start is None else start)


def gaussian_hessians(d: int, num_draws: int, *, seed: int = 0) -> Tensor:
    """Hessians of the field at a given point, (num_draws, d, d).

    Args:
        d: Dimensions.
        num_draws: How many.
        seed: Of the draws.

    Returns:
        Independent draws in float64, not conditioned on a critical point: the gradient is independent of them.

    Example:
        >>> H = gaussian_hessians(2, 100_000)
        >>> [round(float((H[:, 0, 0] * H[:, i, i]).mean()), 1) for i in (0, 1)]  # 3 and 1
        [3.0, 1.0]
    """
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(num_draws, d, d, generator=generator, dtype=torch.float64)
    common = torch.randn(num_draws, 1, 1, generator=generator, dtype=torch.float64)
    return (G + G.mT) / math.sqrt(2) + common * torch.eye(d, dtype=torch.float64)


def index_shares(d: int, num_draws: int, *, seed: int = 0) -> Tensor:
    """Shares of the critical points by index, from 0 (minima) to d (maxima), by the formula of the module.

    Args:
        d: Dimensions.
        num_draws: Random Hessians; the relative error of a share p is about 1 / sqrt(p num_draws).
        seed: Of the draws.

    Returns:
        (d + 1,) in float64, which sum to 1.

    Raises:
        ValueError: Fewer than one dimension or draw.

    Example:
        In two dimensions a saddle is as likely as both extrema together, by topology alone.

        >>> [round(share, 2) for share in index_shares(2, 200_000).tolist()]
        [0.25, 0.5, 0.25]
    """
    if d < 1 or num_draws < 1:
        raise ValueError(f"d {d} and num_draws {num_draws} must be at least 1")
    values = torch.linalg.eigvalsh(gaussian_hessians(d, num_draws, seed=seed))
    weight = values.abs().prod(dim=1)
    index = (values < 0).sum(dim=1)
    shares = torch.zeros(d + 1, dtype=torch.float64).index_add_(0, index, weight)
    return shares / shares.sum()
