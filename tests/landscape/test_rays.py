"""Rays: trace and variance in closed form, and a flag that fires on kinks and stays silent on smooth nets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optland.landscape import gradient_smoothness, rays
from optland.objective import Objective
from optland.problems import quadratic


def net(activation: type[nn.Module], seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(8, 24), activation(), nn.Linear(24, 24), activation(), nn.Linear(24, 3)
    ).double()
    x, y = torch.randn(48, 8).double(), torch.randint(0, 3, (48,))
    return Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x, y)])


def test_mean_and_variance_of_unit_rays() -> None:
    """E[u'Au] = tr(A)/d; Var = 2 (||A||_F^2 - tr^2/d) / (d (d + 2))."""
    torch.manual_seed(0)
    d = 12
    B = torch.randn(d, d, dtype=torch.float64)
    A = B + B.T
    found = rays(quadratic(A, torch.randn(d, dtype=torch.float64)), num_rays=300)
    mean, trace = found.mean, float(A.trace())
    variance = 2 * (float(A.square().sum()) - trace**2 / d) / (d * (d + 2))
    assert abs(mean.value - trace / d) < 4 * mean.error
    assert found.spread == pytest.approx(math.sqrt(variance), rel=0.15)
    assert not found.kinks
    for wide, narrow, exact in found.per_ray[:10]:
        assert wide == pytest.approx(exact, rel=1e-6, abs=1e-6)
        assert narrow == pytest.approx(exact, rel=1e-5, abs=1e-5)


def test_the_share_of_rays_that_bend_down() -> None:
    found = rays(quadratic(torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))), num_rays=200)
    assert abs(found.negative.value - 0.5) < 4 * found.negative.error
    up = rays(quadratic(torch.eye(3, dtype=torch.float64)), num_rays=10)
    assert up.negative.value == 0.0
    assert up.negative.error > 0  # ten rays cannot say that no ray bends down


@pytest.mark.parametrize("seed", range(3))
def test_kinks_are_flagged_in_relu_nets_and_not_in_smooth_ones(seed: int) -> None:
    assert rays(net(nn.ReLU, seed)).kinks
    assert not rays(net(nn.GELU, seed)).kinks
    assert not rays(net(nn.Tanh, seed)).kinks


def test_a_bare_kink_is_flagged() -> None:
    """f(t) = |t| has second difference 2/h at 0, at every h, and no curvature."""

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    found = rays(Objective(Point(), lambda m, b: m.w.abs().sum(), [torch.zeros(1)]), distance=0.1, num_rays=4)
    assert found.mean.value == pytest.approx(20.0)
    assert found.mean_half.value == pytest.approx(40.0)
    assert found.kinks
    assert "KINKS" in str(found)


def test_smooth_nets_in_single_precision_are_not_flagged_for_rounding() -> None:
    L = net(nn.GELU)
    assert not rays(L.cast(torch.float32)).kinks


def test_second_differences_have_the_error_of_the_next_order() -> None:
    """exp: (2 cosh h - 2) / h^2 = 1 + h^2/12 + ..."""

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    found = rays(Objective(Point(), lambda m, b: m.w.exp().sum(), [torch.zeros(1)]), distance=0.2, num_rays=2)
    assert found.mean.value == pytest.approx((2 * math.cosh(0.2) - 2) / 0.04)
    assert found.mean_hessian.value == pytest.approx(1.0)


def test_smoothness_along_the_gradient_is_its_curvature_on_a_quadratic() -> None:
    """||A(w - t g) - A w|| / (t ||g||) = ||A g|| / ||g||, and the loss follows the parabola."""
    A = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    w = torch.tensor([1.0, 1.0], dtype=torch.float64)
    found = gradient_smoothness(quadratic(A, w), [0.1, 0.3])
    g = A @ w
    assert found.smoothness == pytest.approx(float((A @ g).norm() / g.norm()))
    assert found.predictiveness == pytest.approx([t * float((A @ g).norm()) for t in (0.1, 0.3)])
    assert found.losses[0] == pytest.approx(float(0.5 * (w - 0.1 * g) @ A @ (w - 0.1 * g)))


def test_bad_values_are_refused() -> None:
    L = quadratic(torch.eye(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="num_rays 1"):
        rays(L, num_rays=1)
    with pytest.raises(ValueError, match="distance -1"):
        rays(L, distance=-1.0)
    with pytest.raises(ValueError, match="distances"):
        gradient_smoothness(L, [])
