"""The random Gaussian landscape against closed forms: moments, shares of minima, and a count of all critical points."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from optland.curvature import hessian
from optland.problems import gaussian_landscape
from optland.problems.gaussian import gaussian_hessians, index_shares

MINIMA = {1: 1 / 2, 2: 1 / 4, 3: (29 - 6 * math.sqrt(6)) / 116}


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_share_of_minima_is_the_closed_form(d: int) -> None:
    draws, wanted = 200_000, MINIMA[d]
    shares = index_shares(d, draws, seed=3)
    assert float(shares.sum()) == pytest.approx(1.0)
    # A ratio of means: its error is that of weights of this spread, with a margin of five.
    assert abs(float(shares[0]) - wanted) < 5 * 2 * math.sqrt(wanted / draws)
    assert abs(float(shares[0] - shares[-1])) < 5 * 2 * math.sqrt(2 * wanted / draws)  # f and -f are alike


def test_the_hessians_have_the_moments_of_the_field() -> None:
    H = gaussian_hessians(3, 200_000, seed=1)
    flat = H.reshape(len(H), -1)
    found = flat.T @ flat / len(H)
    eye = torch.eye(3, dtype=torch.float64)
    wanted = (
        torch.einsum("ij,kl->ijkl", eye, eye)
        + torch.einsum("ik,jl->ijkl", eye, eye)
        + torch.einsum("il,jk->ijkl", eye, eye)
    )
    assert torch.allclose(found, wanted.reshape(9, 9), atol=0.06)


def test_one_landscape_has_the_gradients_and_hessians_of_the_formula() -> None:
    """At many points of a field of many waves, which are far apart and so nearly independent."""
    L = gaussian_landscape(2, num_waves=2000, seed=5)
    generator = torch.Generator().manual_seed(0)
    gradients, hessians = [], []
    for _ in range(300):
        x = 1000 * torch.randn(2, generator=generator, dtype=torch.float64)
        gradients.append(L.gradient([x])[0])
        with torch.no_grad():
            L.params[0].copy_(x)
        hessians.append(hessian(L).to_dense())
    g, H = torch.stack(gradients), torch.stack(hessians)
    assert torch.allclose(g.T @ g / len(g), torch.eye(2, dtype=torch.float64), atol=0.35)
    for wanted, found in ((3.0, H[:, 0, 0] ** 2), (1.0, H[:, 0, 0] * H[:, 1, 1]), (1.0, H[:, 0, 1] ** 2)):
        error = float(found.std()) / math.sqrt(len(found))
        assert abs(float(found.mean()) - wanted) < 5 * error


def test_every_second_critical_point_on_a_line_is_a_minimum() -> None:
    """All of them on a stretch of one dimension, as roots of the derivative: minima and maxima take turns."""
    L = gaussian_landscape(1, num_waves=50, seed=2)

    def slope(x: float) -> float:
        return float(L.gradient([torch.tensor([x], dtype=torch.float64)])[0])

    grid = np.linspace(0, 60, 1201)
    values = [slope(x) for x in grid]
    roots = [
        brentq(slope, a, b)
        for a, b, u, v in zip(grid, grid[1:], values, values[1:], strict=False)
        if u * v < 0
    ]
    bends = [slope(x + 1e-4) - slope(x - 1e-4) for x in roots]
    # Kac and Rice: sqrt(E f''^2 / E f'^2) / pi = sqrt(3) / pi for each unit of length.
    assert abs(len(roots) - 60 * math.sqrt(3) / math.pi) < 5 * math.sqrt(len(roots))
    assert all(a * b < 0 for a, b in itertools.pairwise(bends))


@pytest.mark.parametrize(("d", "waves"), [(0, 10), (2, 0)])
def test_a_landscape_without_dimensions_or_waves_is_refused(d: int, waves: int) -> None:
    with pytest.raises(ValueError, match=f"d {d} and num_waves {waves}"):
        gaussian_landscape(d, num_waves=waves)
