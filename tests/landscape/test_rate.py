"""The loss after one step over learning rates, on quadratics, where it is a parabola."""

from __future__ import annotations

import math

import pytest
import torch

from optland.landscape import rate_sensitivity
from optland.problems import quadratic

D = torch.float64


def test_on_a_quadratic_the_best_rate_is_half_of_the_critical_one() -> None:
    L = quadratic(torch.diag(torch.tensor([1.0, 4.0], dtype=D)))
    (g,) = L.gradient()
    best = float(g @ g / (g @ torch.tensor([1.0, 4.0], dtype=D).mul(g)))
    found = rate_sensitivity(L, num_points=601)
    assert found.best == pytest.approx(best, rel=0.01)
    assert found.critical.value == pytest.approx(2 * best, rel=0.06)
    exact = found.centre - found.rates * float(g @ g) + found.rates**2 / 2 * float(g @ g) / best
    assert torch.allclose(found.losses, exact, rtol=1e-9, atol=1e-9 * found.centre)
    # A parabola keeps half of its gain between 1 - 1 / sqrt(2) and 1 + 1 / sqrt(2) times the best rate.
    assert found.width == pytest.approx((1 + math.sqrt(0.5)) / (1 - math.sqrt(0.5)), rel=0.05)
    assert found.status == "resolved"


def test_a_direction_that_leads_up_has_no_best_rate() -> None:
    L = quadratic(torch.eye(2, dtype=D))
    found = rate_sensitivity(L, L.gradient())
    assert math.isnan(found.best)
    assert math.isnan(found.width)


def test_what_is_no_direction_is_refused() -> None:
    L = quadratic(torch.eye(2, dtype=D))
    with pytest.raises(ValueError, match=r"direction has the norm 0\.0"):
        rate_sensitivity(L, [torch.zeros(2, dtype=D)])
    with pytest.raises(ValueError, match="num_points 2 draws no curve"):
        rate_sensitivity(L, num_points=2)
