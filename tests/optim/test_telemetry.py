"""Telemetry against exact values on the coupled quadratic (two tensors, two groups)."""

import pytest
import torch
from torch import nn

from optland.optim import ASAM, SAM, Every


def test_all_values_on_a_quadratic(quadratic):
    groups = quadratic.groups()
    groups[1]["lr"] = 0.02
    optimizer = SAM(torch.optim.SGD(groups, lr=0.1), rho=0.3)
    w, H = quadratic.w, quadratic.H
    g = H @ w
    u = g / g.norm()
    h = H @ (w + 0.3 * u)
    lam = (u @ H @ u).item()
    optimizer.step(quadratic.closure(optimizer))
    assert optimizer.telemetry.read() == pytest.approx(
        {
            "sam/loss_gap": (0.3 * g.norm() + 0.5 * 0.09 * lam).item(),
            "sam/curvature": lam,
            "sam/cos": (g @ h / (g.norm() * h.norm())).item(),
            "sam/rho": 0.3,
            "sam/rho_realised": 0.3,
            "update/grad_norm": g.norm().item(),
            "sam/grad_norm": h.norm().item(),
            "sam/stability": 0.1 * lam * (1 + 0.3 * lam / g.norm().item()),
            "sam/skipped": 0.0,
            "probe/age_sam": 0.0,
        },
        rel=1e-10,
    )


def test_phase_form_knows_all_but_the_losses(quadratic):
    optimizer = SAM(torch.optim.SGD(quadratic.groups(), lr=0.1), rho=0.3)
    u = quadratic.H @ quadratic.w
    u = u / u.norm()
    lam = (u @ quadratic.H @ u).item()
    quadratic.loss().backward()
    optimizer.perturb()
    quadratic.loss().backward()
    optimizer.step()
    metrics = optimizer.telemetry.read()
    assert "sam/loss_gap" not in metrics
    assert metrics["sam/curvature"] == pytest.approx(lam, rel=1e-10)
    assert metrics["sam/stability"] > 0


def test_asam_curvature_is_the_rayleigh_quotient_along_its_own_eps(quadratic):
    optimizer = ASAM(torch.optim.SGD(quadratic.params, lr=0.1), rho=0.3, eta=0.1)
    w, H = quadratic.w, quadratic.H
    quadratic.loss().backward()
    with optimizer.perturbed():
        eps = quadratic.w - w
    optimizer.step(quadratic.closure(optimizer))
    metrics = optimizer.telemetry.read()
    assert metrics["sam/curvature"] == pytest.approx((eps @ H @ eps / (eps @ eps)).item(), rel=1e-9)
    assert metrics["sam/rho"] == pytest.approx(eps.norm().item(), rel=1e-12)


def test_negative_curvature_shows(quadratic):
    quadratic.H.neg_()
    optimizer = SAM(torch.optim.SGD(quadratic.params, lr=0.1), rho=0.3)
    optimizer.step(quadratic.closure(optimizer))
    assert optimizer.telemetry.read()["sam/curvature"] < 0


def test_adaptive_bases_have_no_stability_ratio(quadratic):
    optimizer = SAM(torch.optim.AdamW(quadratic.params, lr=0.1), rho=0.3)
    optimizer.step(quadratic.closure(optimizer))
    metrics = optimizer.telemetry.read()
    assert "sam/stability" not in metrics
    assert metrics["sam/curvature"] > 0


def test_learning_rates_may_be_tensors(quadratic):
    values, start = [], [p.detach().clone() for p in quadratic.params]
    for lr in (0.25, torch.tensor(0.25)):
        optimizer = SAM(torch.optim.SGD(quadratic.params, lr=lr), rho=0.3)
        optimizer.step(quadratic.closure(optimizer))
        values.append(optimizer.telemetry.read()["sam/stability"])
        with torch.no_grad():
            for p, w in zip(quadratic.params, start, strict=True):
                p.copy_(w)
    assert values[1] == pytest.approx(values[0], rel=1e-6)
    assert values[0] > 0


def test_what_was_not_measured_is_absent_and_nothing_is_ever_nan(quadratic):
    optimizer = SAM(torch.optim.SGD(quadratic.params, lr=0.1), rho=0.0, telemetry_every=1)
    assert optimizer.telemetry.read() == {}
    optimizer.step(quadratic.closure(optimizer))
    assert set(optimizer.telemetry.read()) == {"update/grad_norm", "sam/rho", "sam/skipped"}
    optimizer.param_groups[0]["sam_rho"] = 0.1

    def broken():
        optimizer.zero_grad()
        loss = quadratic.loss() * float("nan")
        loss.backward()
        return loss

    optimizer.step(broken)
    assert optimizer.telemetry.read() == {"sam/rho": 0.0, "sam/rho_realised": 0.0, "sam/skipped": 1.0}


def test_coarse_weights_realise_only_part_of_a_small_perturbation():
    # A step of bfloat16 at 1 is 2^-7 upwards: of eps = 0.001 on each weight nothing is left, of 0.01 almost all.
    for each, realised in ((0.001, 0.0), (0.01, 2**-7)):
        w = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        optimizer = SAM(torch.optim.SGD([w], lr=0.1), rho=2 * each)
        w.sum().backward()
        optimizer.perturb()
        w.sum().backward()
        optimizer.step()
        metrics = optimizer.telemetry.read()
        assert metrics["sam/rho"] == pytest.approx(2 * each, rel=1e-2)
        assert metrics["sam/rho_realised"] == pytest.approx(2 * realised, rel=1e-6)


def test_reading_is_lazy_and_repeatable(quadratic):
    optimizer = SAM(torch.optim.SGD(quadratic.params, lr=0.1), rho=0.3)
    optimizer.step(quadratic.closure(optimizer))
    first = optimizer.telemetry.read()
    assert first == optimizer.telemetry.read()
    optimizer.step(quadratic.closure(optimizer))
    assert optimizer.telemetry.read() != first


def test_curvature_is_measured_at_the_start_and_in_every_tenth_update_and_grows_older(quadratic):
    optimizer = SAM(torch.optim.SGD(quadratic.params, lr=0.01), rho=0.1, telemetry_every=10)
    ages, curvatures = [], []
    for _ in range(14):
        optimizer.step(quadratic.closure(optimizer))
        metrics = optimizer.telemetry.read()
        assert {"sam/loss_gap", "update/grad_norm", "sam/skipped"} <= set(metrics)
        ages.append(metrics["probe/age_sam"])
        curvatures.append(metrics["sam/curvature"])
    assert ages == [*range(9), *range(5)]  # updates 0 and 9, so that a log row of every tenth step is fresh
    assert len(set(curvatures[:9])) == len(set(curvatures[9:])) == 1
    assert curvatures[8] != curvatures[9]


def test_a_measurement_waits_for_a_step_that_looks(quadratic):
    optimizer = SAM(torch.optim.SGD(quadratic.params, lr=0.01), rho=0.1, gate=Every(4), telemetry_every=2)
    ages = []
    for _ in range(9):
        optimizer.step(quadratic.closure(optimizer))
        ages.append(optimizer.telemetry.read()["probe/age_sam"])
    assert ages == [0, 1, 2, 3, 0, 1, 2, 3, 0]


@pytest.mark.parametrize("every", [0, 1, 3])
def test_measuring_leaves_the_weights_alone(make_network, every):
    weights = []
    for telemetry_every in (every, 10):
        network = make_network(dtype=torch.float32)
        base = torch.optim.SGD(network.model.parameters(), lr=0.1)
        optimizer = SAM(base, rho=0.3, telemetry_every=telemetry_every)
        for _ in range(5):
            optimizer.step(network.closure(optimizer))
        weights.append(network.weights())
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
