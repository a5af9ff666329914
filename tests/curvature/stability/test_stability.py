"""Thresholds against PyTorch's own optimizers: just above they diverge on lam x^2 / 2, just below they converge."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from optland.curvature import hessian, lanczos
from optland.curvature.operators.preconditioner import preconditioner
from optland.curvature.operators.transforms import preconditioned
from optland.curvature.stability.ratio import stability_ratio
from optland.curvature.stability.thresholds import stability_threshold
from optland.objective import Objective
from optland.optim import ASAM, SAM
from optland.problems import function_objective, quadratic, with_spectrum

D = torch.float64
STEPS = 600
START = 1e-8

Make = Callable[[list[Tensor]], Optimizer]

FROZEN_BETA2 = 1 - 1e-15
"""Moves a second moment by 1e-15 a step; at step 10^9 the correction for the start is 1e-6, and rests."""


def weight(value: float = 1.0) -> Tensor:
    return torch.nn.Parameter(torch.full((1,), value, dtype=D))


def frozen_adam(optimizer: Optimizer, root: float = 0.5) -> Optimizer:
    """Adam whose second moment stays at root^2, with its first moment's correction over."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {
                "step": torch.tensor(1e9),  # in float32 adding 1 changes nothing
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.full_like(p, root**2 * (1 - FROZEN_BETA2**1e9)),
            }
    return optimizer


def frozen_rmsprop(optimizer: Optimizer, root: float = 0.5) -> Optimizer:
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {"step": torch.tensor(1.0), "square_avg": torch.full_like(p, root**2)}
            if group["momentum"]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


MAKERS: dict[str, Make] = {
    "gradient descent": lambda p: SGD(p, lr=0.1),
    "with weight decay": lambda p: SGD(p, lr=0.1, weight_decay=3.0),
    "heavy ball": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "heavy ball, .5": lambda p: SGD(p, lr=0.1, momentum=0.5),
    "dampening": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.7),
    "dampening, no momentum": lambda p: SGD(p, lr=0.1, dampening=0.7),
    "dampening and decay": lambda p: SGD(p, lr=0.1, momentum=0.8, dampening=0.3, weight_decay=5.0),
    "Nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Nesterov with decay": lambda p: SGD(p, lr=0.1, momentum=0.5, nesterov=True, weight_decay=2.0),
    "Adam": lambda p: frozen_adam(Adam(p, lr=0.1, betas=(0.9, FROZEN_BETA2), eps=0.0)),
    "Adam with eps": lambda p: frozen_adam(Adam(p, lr=0.1, betas=(0.5, FROZEN_BETA2), eps=0.2)),
    "AdamW": lambda p: frozen_adam(AdamW(p, lr=0.1, betas=(0.9, FROZEN_BETA2), weight_decay=4.0)),
    "RMSprop": lambda p: frozen_rmsprop(RMSprop(p, lr=0.1, alpha=1.0)),
    "RMSprop with momentum": lambda p: frozen_rmsprop(RMSprop(p, lr=0.1, alpha=1.0, momentum=0.8, eps=0.1)),
}


def growth(optimizer: Optimizer, w: Tensor, lam: Tensor) -> float:
    """|w| over its start after many steps on lam w^2 / 2, or as soon as that is a hundred.

    The start is small, so that gradients leave a frozen second moment alone.
    """
    for _ in range(STEPS):
        w.grad = lam * w.detach()
        optimizer.step()
        if w.detach().abs() > 100 * START:
            break
    return float(w.detach().abs()) / START


@pytest.mark.parametrize("name", list(MAKERS))
def test_diverges_just_above_and_converges_just_below(name: str) -> None:
    grown = []
    for factor in (0.97, 1.03):
        w = weight(START)
        optimizer = MAKERS[name]([w])
        (threshold,) = stability_threshold(optimizer)
        P = preconditioner(optimizer, objective_of(w))[0] if threshold.adaptive else torch.ones(1, dtype=D)
        grown.append(growth(optimizer, w, factor * threshold.sharpness * P))
    assert grown[0] < 0.5
    assert grown[1] > 2.0


def objective_of(w: Tensor) -> Objective:
    """An objective that holds this very parameter."""
    module = torch.nn.Module()
    module.register_parameter("w", w)
    return Objective(module, lambda m, x: m.w.square().sum(), [torch.zeros(1)])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: SGD(p, lr=0.1), 20.0),
        (lambda p: SGD(p, lr=0.1, momentum=0.9), 38.0),
        (lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True), 3.8 / 2.8 / 0.1),
        (lambda p: Adam(p, lr=0.1), 380.0),
        (lambda p: RMSprop(p, lr=0.1), 20.0),
        (lambda p: SGD(p, lr=0.0), math.inf),
        (lambda p: SGD(p, lr=torch.tensor(0.1)), 20.0),
    ],
)
def test_published_thresholds(make: Make, expected: float) -> None:
    (found,) = stability_threshold(make([weight()]))
    assert found.sharpness == pytest.approx(expected)


def test_small_batch_edges() -> None:
    """2 (1 - b) / lr with momentum of any kind (arXiv:2604.14108), and the same with the step that a gradient gets."""
    for make, expected in (
        (lambda p: SGD(p, lr=0.1), 20.0),
        (lambda p: SGD(p, lr=0.1, momentum=0.9), 2.0),
        (lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True), 2.0),
        (lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.9), 20.0),
        (lambda p: Adam(p, lr=0.1), 20.0),
    ):
        w = weight(0.0)
        optimizer = make([w])
        assert stability_threshold(optimizer)[0].batch_sharpness == pytest.approx(expected)
        if isinstance(optimizer, SGD):  # one unit of gradient moves the weight by 2 / edge in all
            w.grad = torch.zeros(1, dtype=D)
            optimizer.step()  # past the first step, which ignores dampening
            for g in [1.0] + [0.0] * 200:
                w.grad = torch.full((1,), g, dtype=D)
                optimizer.step()
            assert float(w.detach()) == pytest.approx(-2 / expected)


@pytest.mark.parametrize("wd", [0.0, 2.0])
def test_sam_at_its_threshold_is_mirrored(wd: float) -> None:
    rho, grad_norm = 0.3, 2.0
    (threshold,) = stability_threshold(
        SAM(SGD([weight()], lr=0.1, weight_decay=wd), rho=rho), grad_norm=grad_norm
    )
    lam = threshold.sharpness
    assert lam < 20 - wd
    w = weight(grad_norm / lam)
    optimizer = SAM(SGD([w], lr=0.1, weight_decay=wd), rho=rho)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * lam * w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(w.detach()) == pytest.approx(-grad_norm / lam)
    if not wd:
        closed_form = grad_norm / (2 * rho) * (math.sqrt(1 + 8 * rho / (0.1 * grad_norm)) - 1)
        assert lam == pytest.approx(closed_form)


def test_sam_with_momentum_oscillates_forever_at_its_threshold() -> None:
    rho, grad_norm, b = 0.2, 1.5, 0.9
    make = lambda w: SAM(SGD([w], lr=0.05, momentum=b), rho=rho)  # noqa: E731
    lam = stability_threshold(make(weight()), grad_norm=grad_norm)[0].sharpness
    w = weight(grad_norm / lam)
    optimizer = make(w)
    # The buffer of the two-cycle: it alternates like the weight, so buf = -h / (1 + b) before a gradient h.
    h = grad_norm + lam * rho
    optimizer.state[w]["momentum_buffer"] = torch.full((1,), -h / (1 + b), dtype=D)
    for sign in (-1, 1, -1):
        optimizer.zero_grad()
        (0.5 * lam * w.square().sum()).backward()
        optimizer.perturb()
        (0.5 * lam * w.square().sum()).backward()
        optimizer.step()
        assert float(w.detach()) == pytest.approx(sign * grad_norm / lam)


def test_other_perturbations_are_left_out_aloud() -> None:
    for optimizer in (ASAM(SGD([weight()], lr=0.1)), SAM(Adam([weight()], lr=0.1))):
        (found,) = stability_threshold(optimizer)
        assert not found.exact
        assert "left out" in found.note
    (plain,) = stability_threshold(SAM(SGD([weight()], lr=0.1), rho=0.0))
    assert plain.exact


# Ratios --------------------------------------------------------------------------------------------


def test_ratio_of_descent_and_its_words() -> None:
    L = quadratic(with_spectrum([10.0, 3.0, -1.0]))
    for lr, ratio, verdict in (
        (0.1, 0.5, "below the edge"),
        (0.19, 0.95, "at the edge"),
        (0.3, 1.5, "beyond the edge"),
    ):
        found = stability_ratio(L, SGD(L.params, lr=lr))
        assert found.ratio.value == pytest.approx(ratio, rel=0.01)
        assert found.sharpness.value == pytest.approx(10.0, rel=0.01)
        assert (found.verdict, found.ratio.converged) == (verdict, True)
        assert verdict in str(found)


def test_a_given_spectrum_costs_nothing() -> None:
    L = quadratic(with_spectrum([10.0, 3.0, -1.0]))
    spectrum = lanczos(hessian(L))
    found = stability_ratio(L, SGD(L.params, lr=0.1, momentum=0.9), spectrum=spectrum)
    assert found.ratio.value == pytest.approx(10 / 38, rel=0.01)
    assert found.sharpness.value == pytest.approx(spectrum.top.value)
    assert found.ratio.cost_ge == 0.0


def test_an_unconverged_eigenvalue_decides_only_upwards() -> None:
    L = function_objective(
        lambda w: 0.5 * (torch.linspace(0.0, 10.0, 400, dtype=D) * w * w).sum(), torch.ones(400, dtype=D)
    )
    assert stability_ratio(L, SGD(L.params, lr=0.1), max_matvecs=3).verdict == "unknown"
    assert stability_ratio(L, SGD(L.params, lr=1.0), max_matvecs=3).verdict == "beyond the edge"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_groups_of_different_rates_and_decay_are_judged_together(momentum: float) -> None:
    """Coupled quadratic, two groups: the whole diverges or converges as the one ratio says."""
    A = with_spectrum([4.0, 2.0, 1.0, 0.5])
    start = [torch.ones(2, dtype=D), torch.ones(2, dtype=D)]

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (torch.nn.Parameter(s.clone()) for s in start)

    def run(scale: float, steps: int) -> tuple[float, float]:
        model = Two()
        loss = lambda m, x: 0.5 * scale * torch.cat([m.a, m.b]) @ A @ torch.cat([m.a, m.b])  # noqa: E731
        groups = [
            {"params": [model.a], "lr": 0.1, "weight_decay": 1.0},
            {"params": [model.b], "lr": 0.4, "weight_decay": 0.0},
        ]
        optimizer = SGD(groups, lr=0.1, momentum=momentum)
        ratio = stability_ratio(Objective(model, loss, [torch.zeros(1)]), optimizer, rtol=1e-8).ratio.value
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model, None).backward()
            optimizer.step()
        return ratio, float(torch.cat([model.a, model.b]).detach().norm())

    first, _ = run(1.0, steps=0)  # the ratio is linear in the loss, as the decay is part of the threshold
    ratio, length = run(0.97 / first, STEPS)
    assert ratio == pytest.approx(0.97)
    assert length < 0.5
    assert run(1.03 / first, STEPS)[1] > 2.0


@pytest.mark.parametrize("wd", [0.0, 0.5])
def test_adaptive_ratio_is_that_of_the_dense_preconditioned_matrix(wd: float) -> None:
    A = with_spectrum([9.0, 4.0, 1.0, -2.0])
    L = quadratic(A)
    adam = frozen_adam(Adam(L.params, lr=0.1, betas=(0.9, FROZEN_BETA2), weight_decay=wd))
    roots = torch.tensor([0.5, 1.0, 2.0, 0.3], dtype=D)
    adam.state[L.params[0]]["exp_avg_sq"] = roots.square() * (1 - FROZEN_BETA2**1e9)
    P = roots + 1e-8
    scaled = P.rsqrt()[:, None] * (A + wd * torch.eye(4, dtype=D)) * P.rsqrt()
    top = float(torch.linalg.eigvalsh(scaled)[-1])
    lr_edge = 3.8 / (0.1 * top)
    for lr, below in ((0.99 * lr_edge, True), (1.01 * lr_edge, False)):
        adam.param_groups[0]["lr"] = lr
        found = stability_ratio(L, adam, rtol=1e-6)
        assert (found.ratio.value < 1) == below
        if not wd:
            assert found.ratio.value == pytest.approx(lr / lr_edge, rel=1e-6)
            given = lanczos(preconditioned(hessian(L), adam), rtol=1e-6)
            assert stability_ratio(L, adam, spectrum=given).ratio.value == pytest.approx(found.ratio.value)


def test_sam_ratio_takes_the_gradient_norm_itself() -> None:
    L = quadratic(torch.diag(torch.tensor([10.0, 1.0], dtype=D)))
    optimizer = SAM(SGD(L.params, lr=0.1), rho=0.5)
    found = stability_ratio(L, optimizer)
    grad_norm = math.sqrt(101.0)
    expected = grad_norm * (math.sqrt(1 + 8 * 0.5 / (0.1 * grad_norm)) - 1)
    assert found.thresholds[0].sharpness == pytest.approx(expected)
    assert found.ratio.value == pytest.approx(10 / expected, rel=0.01)


def test_cost_is_charged_and_declared() -> None:
    L = quadratic(with_spectrum([10.0, 3.0, -1.0]))
    found = stability_ratio(L, SAM(SGD(L.params, lr=0.1), rho=0.1))
    assert 0 < found.ratio.cost_ge == L.cost_ge <= stability_ratio.cost(L)


def test_wrong_usage_names_the_fix() -> None:
    w = weight()
    with pytest.raises(TypeError, match="Adagrad"):
        stability_threshold(torch.optim.Adagrad([w]))
    with pytest.raises(ValueError, match="maximize=True"):
        stability_threshold(SGD([w], lr=0.1, maximize=True))
    with pytest.raises(ValueError, match="grad_norm=None"):
        stability_threshold(SAM(SGD([w], lr=0.1)))
    L = quadratic(torch.eye(2, dtype=D))
    with pytest.raises(ValueError, match="does not hold parameter 'weight'"):
        stability_ratio(L, SGD([w], lr=0.1))
    with pytest.raises(ValueError, match="decay alone is beyond"):
        stability_ratio(L, SGD(L.params, lr=0.1, weight_decay=30.0))
    with pytest.raises(ValueError, match="step"):
        stability_ratio(L, Adam(L.params))
    plain = lanczos(hessian(L))
    adam = frozen_adam(Adam(L.params, lr=0.1, betas=(0.9, FROZEN_BETA2)))
    with pytest.raises(ValueError, match="preconditioned"):
        stability_ratio(L, adam, spectrum=plain)
    adam.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(ValueError, match="leave spectrum out"):
        stability_ratio(L, adam, spectrum=plain)
