"""B_noise and its learning rates on linear regression with Gaussian inputs, where every term has a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from optland.curvature.noise.gradient_noise import gradient_noise
from optland.curvature.noise.noise_scale import NoiseScale, noise_scale
from optland.objective import Objective
from optland.problems import linear_regression
from optland.problems.points import Point

D = torch.float64
S = torch.tensor([2.0, 1.0, 0.5], dtype=D)  # variances of the inputs
E = torch.tensor([1.0, -1.0, 2.0], dtype=D)  # distance to the solution
LABEL_NOISE = 0.5  # variance

# Loss (x'e - xi)^2 with x ~ N(0, diag S): G = 2 S e, H = 2 S, and by Gaussian fourth moments
# Sigma = 4 [(e'Se + s^2) S + S e e' S].
G = 2 * S * E
CURVATURE = float(G @ (2 * S * G))
NOISE = 4 * ((float(E @ (S * E)) + LABEL_NOISE) * torch.diag(S) + torch.outer(S * E, S * E))
TRUTH = {
    "grad_sq": float(G @ G),
    "trace_cov": float(NOISE.trace()),
    "curvature": CURVATURE,
    "noise_curvature": float((2 * torch.diag(S) @ NOISE).trace()),
}


def regression(samples: int, generator: torch.Generator, sizes: list[int] | None = None) -> Objective:
    x = S.sqrt() * torch.randn(samples, 3, generator=generator, dtype=D)
    y = -(x @ E) + math.sqrt(LABEL_NOISE) * torch.randn(samples, generator=generator, dtype=D)
    return linear_regression(x, y[:, None], sizes=sizes)


@pytest.fixture(scope="module")
def draws() -> list[NoiseScale]:
    generator = torch.Generator().manual_seed(0)
    return [noise_scale(regression(30, generator), num_parts=5) for _ in range(60)]


@pytest.mark.parametrize("term", list(TRUTH))
def test_every_term_is_unbiased_and_its_error_honest(term: str, draws: list[NoiseScale]) -> None:
    values = torch.tensor([getattr(noise, term).value for noise in draws])
    error = float(values.std()) / math.sqrt(len(draws))
    assert abs(float(values.mean()) - TRUTH[term]) < 3.5 * error
    assert error < 0.25 * TRUTH[term]  # so that the line above can fail
    reported = torch.tensor([getattr(noise, term).error for noise in draws]).square().mean().sqrt()
    assert 0.7 < float(reported) / float(values.std()) < 1.6  # leaving one out is on the safe side


def test_scales_and_rates_on_much_data() -> None:
    noise = noise_scale(regression(30_000, torch.Generator().manual_seed(1)), num_parts=12)
    assert noise.resolved
    b_noise = TRUTH["noise_curvature"] / CURVATURE
    b_simple = TRUTH["trace_cov"] / TRUTH["grad_sq"]
    step_max = TRUTH["grad_sq"] / CURVATURE
    for found, expected in (
        (noise.b_noise, b_noise),
        (noise.b_simple, b_simple),
        (noise.step_max, step_max),
        (noise.step_at(16), step_max / (1 + b_noise / 16)),
    ):
        assert abs(found.value - expected) < 4 * found.error
        assert found.error_kind == "standard_error"
    assert noise.step_max.value == pytest.approx(step_max, rel=0.03)
    assert noise.step_at(1e12).value == pytest.approx(noise.step_max.value)


def test_the_best_rate_is_best_for_the_true_loss() -> None:
    """One noisy step from the population: the expected loss over batches is lowest at eta_opt(B)."""
    B, generator = 8, torch.Generator().manual_seed(2)
    x = S.sqrt() * torch.randn(20_000, B, 3, generator=generator, dtype=D)
    xi = math.sqrt(LABEL_NOISE) * torch.randn(20_000, B, generator=generator, dtype=D)
    g = 2 * (x * (x @ E - xi)[..., None]).mean(dim=1)

    def loss(eta: float) -> float:
        return float(((E - eta * g).square() * S).sum(dim=1).mean())

    best = TRUTH["grad_sq"] / (CURVATURE + TRUTH["noise_curvature"] / B)
    found = noise_scale(regression(30_000, generator), num_parts=10).step_at(B)
    assert found.value == pytest.approx(best, rel=0.1)
    assert loss(found.value) < min(loss(0.7 * best), loss(1.4 * best))


def test_simple_terms_are_those_of_gradient_noise() -> None:
    objective = regression(24, torch.Generator().manual_seed(3), sizes=[12, 12])
    noise, plain = noise_scale(objective, num_parts=3), gradient_noise(objective, num_parts=3)
    assert noise.num_parts == 6
    for term in ("grad_sq", "trace_cov"):
        assert getattr(noise, term).value == pytest.approx(getattr(plain, term).value)
        assert getattr(noise, term).error == pytest.approx(getattr(plain, term).error)


def test_the_literal_averages_over_different_parts() -> None:
    objective = regression(17, torch.Generator().manual_seed(4), sizes=[10, 7])
    found = noise_scale(objective, num_parts=2)
    parts = [
        (x, y)
        for X, Y in objective.batches
        for x, y in zip(X.tensor_split(2), Y.tensor_split(2), strict=True)
    ]
    g = [(-2 * x.T @ y / len(x)).flatten() for x, y in parts]
    H = [2 * x.T @ x / len(x) for x, _ in parts]
    k = range(4)
    different = [float(g[i] @ H[m] @ g[j]) for i in k for j in k for m in k if len({i, j, m}) == 3]
    curvature = sum(different) / len(different)
    own = [len(parts[i][0]) * (float(g[i] @ H[m] @ g[i]) - curvature) for i in k for m in k if i != m]
    assert found.curvature.value == pytest.approx(curvature)
    assert found.noise_curvature.value == pytest.approx(sum(own) / len(own))


def test_a_preconditioner_is_a_change_of_coordinates() -> None:
    P = torch.tensor([[4.0, 0.25, 1.0]], dtype=D)
    objective = regression(24, torch.Generator().manual_seed(5))
    X, Y = objective.batches[0]
    scaled = linear_regression(X * P.rsqrt(), Y)
    found, expected = noise_scale(objective, preconditioner=[P]), noise_scale(scaled)
    for term in TRUTH:
        assert getattr(found, term).value == pytest.approx(getattr(expected, term).value)
    assert gradient_noise(objective, preconditioner=[P]).trace_cov.value == pytest.approx(
        gradient_noise(scaled).trace_cov.value
    )


@pytest.mark.parametrize(("curvature", "slope"), [(1.0, 0.0), (-1.0, 10.0)])
def test_at_a_minimum_and_along_negative_curvature_it_is_unresolved(curvature: float, slope: float) -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return 0.5 * curvature * model().square().sum() + (batch @ model()).mean()

    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(6), dtype=D)
    noise = noise_scale(Objective(Point(torch.zeros(3, dtype=D)), loss, [x - x.mean(dim=0) + slope]))
    assert not noise.resolved
    assert math.isnan(noise.b_noise.value)
    assert math.isnan(noise.step_at(8).value)
    assert not noise.b_noise.converged
    assert "unresolved" in str(noise)


def test_cost_is_charged_and_declared() -> None:
    objective = regression(24, torch.Generator().manual_seed(7))
    noise = noise_scale(objective, num_parts=4)
    assert 0 < noise.cost_ge == objective.cost_ge <= noise_scale.cost(objective, num_parts=4)


def test_wrong_usage_names_the_fix() -> None:
    objective = regression(3, torch.Generator().manual_seed(8))
    with pytest.raises(ValueError, match="at least 4"):
        noise_scale(objective)
    with pytest.raises(ValueError, match="num_parts=0"):
        noise_scale(objective, num_parts=0)
    with pytest.raises(ValueError, match="other shapes"):
        noise_scale(objective, preconditioner=[torch.ones(2)])
    with pytest.raises(ValueError, match="batch_size=0"):
        noise_scale(regression(8, torch.Generator())).step_at(0)
