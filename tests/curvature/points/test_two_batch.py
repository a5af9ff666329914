"""Certificates against a population whose curvature is known: bounds cover, and noise is not certified."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from tiers import slow
from torch import Tensor, nn

from optland.curvature import hessian, lanczos
from optland.curvature.points.two_batch import Certificate, certify
from optland.objective import Objective
from optland.problems import linear_regression
from optland.problems.points import Point

D = torch.float64


def noisy_curvature(means: Tensor, draws: Tensor, size: int) -> Objective:
    """L = sum_j (means_j + noise_ij) w_j^2 / 2 over samples i: the whole loss has Hessian diag(means)."""

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return 0.5 * ((means + batch) * model().square()).sum(dim=1).mean()

    return Objective(Point(torch.ones(len(means), dtype=D)), loss, list(draws.split(size)))


@pytest.mark.parametrize("seeds", [150, *slow(300)])
def test_bounds_cover_as_often_as_they_say(seeds: int) -> None:
    """Gaussian curvatures make the interval exact, so the coverage over seeds is binomial."""
    truth, confidence = -0.3, 0.9
    generator = torch.Generator().manual_seed(0)
    below = above = 0
    for _ in range(seeds):
        draws = torch.randn(3, 1, generator=generator, dtype=D)
        objective = noisy_curvature(torch.tensor([truth], dtype=D), draws, 1)
        found = certify([torch.ones(1, dtype=D)], objective, confidence=confidence)
        below += found.lower < truth
        above += truth < found.upper
    slack = 3.5 * math.sqrt(confidence * (1 - confidence) / seeds)
    assert abs(below / seeds - confidence) < slack
    assert abs(above / seeds - confidence) < slack


def test_false_certificates_are_rare_where_a_minibatch_claims_negative_curvature() -> None:
    """The most negative direction of one batch of a convex loss: never negative on the whole."""
    means = torch.full((30,), 0.2, dtype=D)
    generator = torch.Generator().manual_seed(1)
    claims = certified = 0
    for seed in range(30):
        draws = torch.randn(8 * 9, 30, generator=generator, dtype=D)
        objective = noisy_curvature(means, draws, 8)
        own = Objective(objective.model, objective.loss_fn, objective.batches[:1])
        other = Objective(objective.model, objective.loss_fn, objective.batches[1:])
        with hessian(own) as H:
            bottom = lanczos(H, ends="bottom", seed=seed)
        claims += bottom.bottom.value + bottom.bottom.error < 0
        certified += certify(bottom.vectors[-1], other).certified
    assert claims > 25
    assert certified <= 2  # 1 % of 30, and then some


def test_true_negative_curvature_is_certified() -> None:
    draws = 0.5 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    objective = noisy_curvature(torch.tensor([-1.0, 1.0], dtype=D), draws, 8)
    down, up = torch.eye(2, dtype=D)
    found = certify([3.0 * down], objective)  # the length does not matter
    assert found.certified
    assert found.upper < 0
    assert found.curvature.value == pytest.approx(float(-1 + draws[:, 0].mean()))
    assert not certify([up], objective).certified
    assert certify([up], objective, sign="positive").certified


def test_numbers_are_those_of_the_t_test() -> None:
    draws = torch.randn(12, 1, generator=torch.Generator().manual_seed(3), dtype=D)
    found = certify(
        [torch.ones(1, dtype=D)], noisy_curvature(torch.zeros(1, dtype=D), draws, 2), confidence=0.9
    )
    q = draws.reshape(6, 2).mean(dim=1).numpy()
    assert found.curvature.error == pytest.approx(stats.sem(q))
    assert found.upper == pytest.approx(q.mean() + stats.t.ppf(0.9, 5) * stats.sem(q))
    assert found.values == pytest.approx(q.tolist())


def test_bounds_lie_inside_the_true_spectrum() -> None:
    X = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0), dtype=D)
    objective = linear_regression(X, torch.zeros(2000, 1, dtype=D), sizes=[50] * 40)
    eigenvalues, vectors = torch.linalg.eigh(2 * X.T @ X / 2000)
    top = certify([vectors[:, -1].reshape(1, 4)], objective)
    assert 0.8 * eigenvalues[-1] < top.lower < eigenvalues[-1]
    bottom = certify([vectors[:, 0].reshape(1, 4)], objective)
    assert eigenvalues[0] < bottom.upper < 1.2 * eigenvalues[0]


def test_too_few_batches_certify_nothing() -> None:
    draws = torch.zeros(2, 1, dtype=D)
    found = certify([torch.ones(1, dtype=D)], noisy_curvature(-torch.ones(1, dtype=D), draws, 1))
    assert (found.verdict, found.lower, found.upper) == ("too few", -math.inf, math.inf)
    assert not found.curvature.converged


def test_ragged_batches_are_weighted_by_count() -> None:
    X = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]], dtype=D)
    objective = linear_regression(X, torch.zeros_like(X), sizes=[3, 2, 1])
    found = certify([torch.ones(1, 1, dtype=D)], objective, sign="positive")
    assert found.curvature.value == pytest.approx(2 * float(X.square().mean()))
    assert found.curvature.provenance.num_samples == 6


def test_cost_is_charged_and_declared() -> None:
    X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    objective = linear_regression(X, torch.zeros(12, 1, dtype=D), sizes=[4, 4, 4])
    found = certify([torch.ones(1, 2, dtype=D)], objective)
    assert 0 < found.curvature.cost_ge == objective.cost_ge <= certify.cost(objective)
    parts = [Objective(objective.model, objective.loss_fn, [batch]) for batch in objective.batches]
    assert certify([torch.ones(1, 2, dtype=D)], parts).values == found.values


@pytest.mark.parametrize("method", ["kept_graph", "double_backward", "finite_difference"])
def test_one_product_is_declared_as_it_is_made(method: Any) -> None:
    """On a single batch, once the second derivatives of the net have been compared."""
    X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).to(D)
    objective = Objective(net, lambda m, x: m(x).square().mean(), [X])
    u = [torch.ones_like(p) for p in net.parameters()]
    first = certify.cost(objective, method=method)
    assert certify(u, objective, method=method).curvature.cost_ge <= first
    declared = certify.cost(objective, method=method)
    assert certify(u, objective, method=method).curvature.cost_ge == pytest.approx(declared)


def test_three_forward_passes_give_the_curvature_of_a_quadratic_and_the_mean_one_of_a_stretch() -> None:
    X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    objective = linear_regression(X, torch.ones(12, 1, dtype=D), sizes=[4, 4, 4])
    u = [torch.tensor([[0.6, -0.8]], dtype=D)]
    exact = certify(u, objective).values
    before = objective.cost_ge
    found = certify(u, objective, distance=0.3)
    assert found.values == pytest.approx(exact, rel=1e-9)  # also where the slope is not zero
    assert found.curvature.cost_ge == pytest.approx(12.0) == certify.cost(objective, distance=0.3)
    assert objective.cost_ge - before == pytest.approx(12.0)

    def quartic(model: nn.Module, batch: Tensor) -> Tensor:
        return (0.25 * model() ** 4 - 0.5 * model() ** 2 + batch * model()).mean()

    bent = Objective(
        Point(torch.zeros(1, dtype=D)), quartic, [torch.full((1, 1), b, dtype=D) for b in (1, -1, 2)]
    )
    for h in (0.1, 0.5):
        # (h^4 / 2 - h^2) / h^2, whatever the slope of the batch
        assert certify([torch.ones(1, dtype=D)], bent, distance=h).values == pytest.approx(
            [h * h / 2 - 1] * 3
        )


def test_wrong_usage_names_the_fix() -> None:
    objective = noisy_curvature(torch.zeros(1, dtype=D), torch.zeros(3, 1, dtype=D), 1)

    def attempt(vector: Tensor, **options: object) -> Certificate:
        return certify([vector], objective, **options)

    with pytest.raises(ValueError, match=r"distance=0\.0 is not one"):
        attempt(torch.ones(1, dtype=D), distance=0.0)

    one = torch.ones(1, dtype=D)
    with pytest.raises(ValueError, match="length of vector is 0"):
        attempt(torch.zeros(1, dtype=D))
    with pytest.raises(ValueError, match="other shapes"):
        attempt(torch.ones(2, dtype=D))
    with pytest.raises(ValueError, match="sign='down'"):
        attempt(one, sign="down")
    with pytest.raises(ValueError, match=r"confidence=0\.3"):
        attempt(one, confidence=0.3)
    with pytest.raises(ValueError, match="no batches"):
        certify([one], [])
