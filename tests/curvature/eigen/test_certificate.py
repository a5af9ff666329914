"""What a random start certifies about the eigenvalues that no product has seen."""

from __future__ import annotations

import math

import pytest
import torch
from tiers import slow

from optland.curvature import hessian, lanczos
from optland.curvature.eigen.spectrum import random_start_certificate
from optland.problems import function_objective

D = torch.float64


@pytest.mark.parametrize("starts", [60, *slow(200)])
def test_certificate_holds_over_random_starts(starts: int) -> None:
    """Diagonal A keeps a product cheap; a start uniform on the sphere does not see the basis."""
    d, m = 400, 11
    eigenvalues = torch.cat([torch.linspace(-1, 1, d - 2, dtype=D), torch.tensor([-1.05, 1.1], dtype=D)])
    H = hessian(function_objective(lambda w: 0.5 * (eigenvalues * w * w).sum(), torch.ones(d, dtype=D)))
    width, epsilon = 2.15, random_start_certificate(d, m)
    assert epsilon < 0.5
    missed, worst = [], 0.0
    for seed in range(starts):
        found = lanczos(H, rtol=1e-12, max_matvecs=m, seed=seed)
        assert found.certificate == epsilon
        shortfall = max(1.1 - found.top.value, found.bottom.value + 1.05) / width
        worst = max(worst, shortfall)
        missed.append(shortfall > epsilon or (found.tau is not None and -found.tau > -1.05))
    assert sum(missed) == 0
    assert worst > epsilon / 100  # the bound is not vacuous here


def test_certificate_formula() -> None:
    # per-end failure 0.5 %: ln(1.648 sqrt(d) / 0.005) / (2k - 1), squared
    assert random_start_certificate(10**7, 100) == pytest.approx(
        (math.log(1.648 * math.sqrt(1e7) / 0.005) / 199) ** 2
    )
    assert random_start_certificate(10**7, 1) == 1.0


def test_a_small_budget_says_unknown_and_not_none() -> None:
    d = 500
    eigenvalues = torch.arange(0, d, dtype=D)
    eigenvalues[0] = -1.0
    H = hessian(function_objective(lambda w: 0.5 * (eigenvalues * w * w).sum(), torch.ones(d, dtype=D)))
    few = lanczos(H, max_matvecs=5)
    assert few.bottom.value > 0  # the negative direction was missed
    assert (few.negative_curvature, few.tau) == ("unknown", None)
    more = lanczos(H, max_matvecs=20)
    assert more.negative_curvature == "certified" or (more.tau is not None and more.tau >= 1.0)
