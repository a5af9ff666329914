"""The largest stable learning rate: PyTorch's optimizers converge just below it and diverge just above."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from optland.curvature import hessian, lanczos
from optland.curvature.stability.stable_rate import stable_rate
from optland.objective import Objective
from optland.optim import SAM
from optland.problems import quadratic, with_spectrum

D = torch.float64
Make = Callable[[list[Tensor], float], Optimizer]

DESCENT: dict[str, tuple[Make, float]] = {
    "gradient descent": (lambda p, lr: SGD(p, lr=lr), 2 / 10),
    "weight decay": (lambda p, lr: SGD(p, lr=lr, weight_decay=0.5), 2 / 10.5),
    "heavy ball": (lambda p, lr: SGD(p, lr=lr, momentum=0.9, weight_decay=0.5), 3.8 / 10.5),
    "dampened": (lambda p, lr: SGD(p, lr=lr, momentum=0.9, dampening=0.5), 3.8 / 5),
    "nesterov": (lambda p, lr: SGD(p, lr=lr, momentum=0.9, nesterov=True), 3.8 / 28),
}


EIGENVALUES = [10.0, 3.0, 1.0]


def bowl() -> Objective:
    return quadratic(with_spectrum(EIGENVALUES).to(D))


def grows(make: Make, lr: float) -> bool:
    """Whether the optimizer runs away on w'Hw / 2, whose gradient is Hw."""
    H = with_spectrum(EIGENVALUES).to(D)
    w = torch.nn.Parameter(1e-6 * torch.ones(3, dtype=D))
    optimizer = make([w], lr)
    for _ in range(2000):
        w.grad = H @ w.detach()
        optimizer.step()
    return not float(w.detach().norm()) < 1e-6


@pytest.mark.parametrize("name", DESCENT)
def test_descent_turns_at_the_largest_stable_rate(name: str) -> None:
    make, closed_form = DESCENT[name]
    L = bowl()
    found = stable_rate(L, make(L.params, 0.01), {}, rtol=1e-8)
    assert found.largest.converged
    assert found.largest.value == pytest.approx(closed_form, rel=1e-6)
    assert not grows(make, 0.99 * found.largest.value)
    assert grows(make, 1.01 * found.largest.value)


def test_a_given_spectrum_costs_gradients_alone_and_its_error_is_carried_over() -> None:
    L = bowl()
    spectrum = lanczos(hessian(L), max_matvecs=2)
    assert not spectrum.top.converged
    spent = L.cost_ge
    found = stable_rate(L, SGD(L.params, lr=7.0), {"last": 0.05}, spectrum=spectrum)
    assert L.cost_ge - spent == L.num_samples
    lam, error = spectrum.top.value, spectrum.top.error
    assert found.largest.value == pytest.approx(2 / lam)
    assert found.largest.error == pytest.approx(abs(2 / (lam - error) - 2 / (lam + error)) / 2)
    assert not found.largest.converged
    assert "upper bound" in found.largest.note
    assert found.ratios["last"].ratio.value == pytest.approx(0.05 * lam / 2)


def test_adam_s_edge_is_that_of_the_preconditioned_hessian() -> None:
    L, root = bowl(), torch.tensor([4.0, 1.0, 0.25], dtype=D)
    for kind, decay in ((Adam, 0.0), (AdamW, 0.1)):
        optimizer = kind(L.params, lr=0.5, betas=(0.9, 0.9), eps=0.0, weight_decay=decay)
        (p,) = L.params
        optimizer.state[p] = {
            "step": torch.tensor(1e4),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": root.square().reshape(p.shape),
        }
        H = hessian(L).to_dense()
        P = root.rsqrt()
        top = float(torch.linalg.eigvalsh(P[:, None] * H * P[None, :])[-1])
        found = stable_rate(L, optimizer, {"peak": 0.5}, rtol=1e-8)
        # top = (2 / lr - decay) (1 + b1) / (1 - b1), solved for lr.
        assert found.largest.value == pytest.approx(2 / (top / 19 + decay), rel=1e-6)
        assert found.adaptive
        assert found.ratios["peak"].ratio.value == pytest.approx(top / (19 * (2 / 0.5 - decay)), rel=1e-6)


def test_sam_s_edge_solves_its_equation() -> None:
    L = bowl()
    with torch.no_grad():
        L.params[0].fill_(0.3)
    size = float(L.gradient()[0].norm())
    optimizer = SAM(SGD(L.params, lr=0.1, momentum=0.9, weight_decay=0.5), rho=0.05)
    found = stable_rate(L, optimizer, {"last": 0.0, "peak": 0.2}, rtol=1e-8)
    assert found.largest.value == pytest.approx(3.8 / (10 * (1 + 0.05 * 10 / size) + 0.5), rel=1e-6)
    assert found.ratios["last"].ratio.value == 0.0
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]


def test_groups_that_differ_are_measured_rate_by_rate() -> None:
    net = torch.nn.ParameterList([torch.ones(1, dtype=D), torch.ones(1, dtype=D)])
    L = Objective(net, lambda w, _: (5 * w[0] ** 2 + 0.5 * w[1] ** 2).sum(), [torch.zeros(1)])
    first, second = L.params
    optimizer = SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.4}], lr=0.1)
    found = stable_rate(L, optimizer, {"median": 0.05, "peak": 0.15}, rtol=1e-8)
    assert math.isnan(found.largest.value)
    assert not found.largest.converged
    # The second group keeps four times the rate of the first: 10 * 0.15 / 2 against 1 * 0.6 / 2.
    assert found.ratios["peak"].ratio.value == pytest.approx(0.75)
    assert found.ratios["median"].ratio.value == pytest.approx(0.25)


@pytest.mark.parametrize("top", [1e-3, 0.5, 1.0])
def test_the_edge_of_a_gentle_bowl_is_two_over_its_curvature(top: float) -> None:
    L = quadratic(with_spectrum([top, top / 2]).to(D))
    assert stable_rate(L, SGD(L.params, lr=0.1), {}, rtol=1e-8).largest.value == pytest.approx(2 / top)


def test_what_curves_downwards_alone_is_stable_at_any_rate() -> None:
    L = quadratic(with_spectrum([-1.0, -2.0]).to(D))
    assert stable_rate(L, SGD(L.params, lr=0.1), {}).largest.value == math.inf


def test_the_cost_is_declared() -> None:
    L = bowl()
    declared = stable_rate.cost(L, 3)
    stable_rate(L, SAM(SGD(L.params, lr=0.1), rho=0.05), {"a": 0.1, "b": 0.2, "c": 0.3})
    assert L.cost_ge <= declared


def test_what_cannot_be_held_against_an_edge_is_refused() -> None:
    L = bowl()
    with pytest.raises(ValueError, match="last learning rate -1"):
        stable_rate(L, SGD(L.params, lr=0.1), {"last": -1.0})
    with pytest.raises(TypeError, match="Adagrad is not known"):
        stable_rate(L, Adagrad(L.params, lr=0.1), {})
    optimizer = Adam(L.params, lr=0.1)
    with pytest.raises(ValueError, match="has not made a step"):
        stable_rate(L, optimizer, {})
    assert optimizer.param_groups[0]["lr"] == 0.1
