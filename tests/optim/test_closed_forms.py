"""Facts that hold exactly on functions whose Hessian is known."""

import pytest
import torch
from torch import nn

from optland.optim import ASAM, SAM


def test_sam_gradient_on_a_quadratic_is_g_plus_rho_H_ghat(quadratic):
    optimizer = SAM(torch.optim.SGD(quadratic.groups(), lr=0.1), rho=0.3)
    w, H = quadratic.w, quadratic.H
    g = H @ w
    loss = optimizer.step(quadratic.closure(optimizer))
    torch.testing.assert_close(quadratic.w, w - 0.1 * H @ (w + 0.3 * g / g.norm()), rtol=1e-13, atol=0)
    torch.testing.assert_close(loss.detach(), 0.5 * w @ H @ w)


def test_groups_may_have_their_own_rho_under_one_global_norm(quadratic):
    groups = quadratic.groups()
    groups[1]["rho"] = 0.7
    optimizer = SAM(torch.optim.SGD(groups, lr=0.1), rho=0.2)
    w, H = quadratic.w, quadratic.H
    g = H @ w
    rho = torch.tensor([0.2] * 4 + [0.7] * 3, dtype=torch.float64)
    optimizer.step(quadratic.closure(optimizer))
    torch.testing.assert_close(quadratic.w, w - 0.1 * H @ (w + rho * g / g.norm()), rtol=1e-13, atol=0)


def test_sam_ends_in_a_two_cycle_of_known_amplitude():
    # eta lam rho / (2 - eta lam) on the top eigenvector: 0.1 * 4 * 0.05 / (2 - 0.4) = 0.0125
    lam = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    w = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = SAM(torch.optim.SGD([w], lr=0.1), rho=0.05)

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (lam * w.square()).sum()
        loss.backward()
        return loss

    for _ in range(800):
        optimizer.step(closure)
    before = w.detach().clone()
    optimizer.step(closure)
    assert w.detach().abs().max().item() == pytest.approx(0.0125, rel=1e-9)
    torch.testing.assert_close(w.detach(), -before, rtol=0, atol=1e-9)


def scalar_product(w1, w2):
    return (w1 * w2 - 1).square().sum()


@pytest.mark.parametrize("c", [0.01, 1.0, 30.0])
def test_asam_sharpness_does_not_see_a_rescaling_of_two_layers(c):
    # f = (w1 w2 - 1)^2 is the same function of (c w1, w2 / c), and so is L(w + eps) with eta = 0.
    w1 = nn.Parameter(torch.tensor([[1.5 * c]], dtype=torch.float64))
    w2 = nn.Parameter(torch.tensor([[0.4 / c]], dtype=torch.float64))
    w = torch.cat([w1, w2]).detach().flatten()
    optimizer = ASAM(torch.optim.SGD([w1, w2], lr=0.1), rho=0.1, eta=0.0)
    scalar_product(w1, w2).backward()
    with optimizer.perturbed():
        raised = scalar_product(w1, w2).item()
        eps = torch.cat([w1, w2]).detach().flatten() - w
    # T g = (|w1| w2, w1 |w2|) 2 (w1 w2 - 1) = -0.8 (0.6, 0.6), so each weight shrinks by the factor 1 - 0.1/sqrt(2)
    assert raised == pytest.approx((0.6 * (1 - 0.1 / 2**0.5) ** 2 - 1) ** 2, rel=1e-12)
    assert (eps / w).square().sum().item() == pytest.approx(0.1**2, rel=1e-10)  # eps' T^-2 eps = rho^2


def test_asam_takes_the_identity_on_vectors_and_the_floor_on_matrices():
    matrix = nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))
    bias = nn.Parameter(torch.tensor([5.0], dtype=torch.float64))
    optimizer = ASAM(torch.optim.SGD([matrix, bias], lr=0.1), rho=1.0, eta=0.5)
    (matrix.sum() * 2 + bias.sum()).backward()
    with optimizer.perturbed():
        # T g = (0.5 * 2, 0.5 * 2, 1), of length sqrt(3); eps = T (T g) / sqrt(3)
        eps = torch.cat([matrix.detach().flatten(), bias.detach() - 5.0])
    torch.testing.assert_close(eps, torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64) / 3**0.5)


def test_the_scale_of_the_loss_changes_neither_eps_nor_direction(quadratic):
    w = quadratic.w
    points = []
    for scale in (1.0, 1024.0, 1e-6):
        optimizer = SAM(torch.optim.SGD(quadratic.params, lr=0.1), rho=0.3)
        optimizer.zero_grad()
        (scale * quadratic.loss()).backward()
        with optimizer.perturbed():
            points.append(quadratic.w)
    assert not torch.equal(points[0], w)
    for point in points[1:]:
        torch.testing.assert_close(point, points[0], rtol=1e-14, atol=1e-15)


def test_a_zero_gradient_gives_a_zero_perturbation(quadratic):
    with torch.no_grad():
        for p in quadratic.params:
            p.zero_()
    optimizer = SAM(torch.optim.SGD(quadratic.params, lr=0.1), rho=0.3)
    optimizer.step(quadratic.closure(optimizer))
    assert torch.equal(quadratic.w, torch.zeros(7, dtype=torch.float64))


def test_half_precision_keeps_the_radius():
    # In float16 the factor rho / ||g|| would underflow to zero, and in bfloat16 lose two digits.
    for dtype, value in ((torch.float16, 3e4), (torch.bfloat16, 3e7)):
        w = nn.Parameter(torch.zeros(64, dtype=dtype))
        optimizer = SAM(torch.optim.SGD([w], lr=0.1), rho=1e-3)
        w.grad = torch.full_like(w, value)
        with optimizer.perturbed():
            assert w.detach().double().norm().item() == pytest.approx(1e-3, rel=4e-3)
