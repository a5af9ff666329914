"""The noise estimator against the known noise of a mean, and the ways in which noise scales go wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiers import slow
from torch import Tensor, nn

from optland import vectors
from optland.batches import split
from optland.curvature import GradientNoise, gradient_noise
from optland.objective import Objective
from optland.problems import linear_regression
from optland.problems.points import Point

D = torch.float64
SCALES = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=D)
TRACE = float(SCALES.square().sum())  # of Sigma = diag(SCALES^2)


def mean_of_samples(x: Tensor, mean: float, sizes: list[int]) -> Objective:
    """L(w) = mean |w - x_i|^2 / 2 at w = 0: sample gradients -x_i, so G = -mean and Sigma = cov(x)."""

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return 0.5 * (model() - batch).square().sum(dim=1).mean()

    return Objective(Point(torch.zeros(4, dtype=D)), loss, list(x.split(sizes)))


def draws(count: int, sizes: list[int], mean: float, parts: int) -> list[GradientNoise]:
    generator = torch.Generator().manual_seed(0)
    noises = []
    for _ in range(count):
        x = mean + SCALES * torch.randn(sum(sizes), 4, generator=generator, dtype=D)
        noises.append(gradient_noise(mean_of_samples(x, mean, sizes), num_parts=parts))
    return noises


@pytest.mark.parametrize(
    ("sizes", "parts"), [([7, 10], 3), ([8], 2), *slow(([32], 8), ([16, 16], 4), ([11], 11))]
)
def test_both_terms_are_unbiased(sizes: list[int], parts: int) -> None:
    noises = draws(120, sizes, mean=1.0, parts=parts)
    for values, truth in (
        (torch.tensor([n.trace_cov.value for n in noises]), TRACE),
        (torch.tensor([n.grad_sq.value for n in noises]), 4.0),
    ):
        standard_error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - truth) < 3.5 * standard_error
        assert standard_error < 0.2 * truth  # so that the line above can fail


def test_reported_standard_errors_match_the_spread() -> None:
    noises = draws(150, [32], mean=1.0, parts=8)
    for kind in ("trace_cov", "grad_sq"):
        spread = float(torch.tensor([getattr(n, kind).value for n in noises]).std())
        reported = float(torch.tensor([getattr(n, kind).error for n in noises]).square().mean().sqrt())
        assert reported == pytest.approx(spread, rel=0.25)


def test_equal_parts_give_the_two_batch_size_formula() -> None:
    torch.manual_seed(0)
    x = 1.0 + torch.randn(32, 4, dtype=D)
    objective = mean_of_samples(x, 1.0, [32])
    noise = gradient_noise(objective, num_parts=8)
    small = [
        float(vectors.norm(Objective(objective.model, objective.loss_fn, [part]).gradient())) ** 2
        for part in split(x, 8)
    ]
    large, b, B = float(vectors.norm(objective.gradient())) ** 2, 4, 32
    mean_small = sum(small) / 8
    assert noise.trace_cov.value == pytest.approx((mean_small - large) / (1 / b - 1 / B))
    assert noise.grad_sq.value == pytest.approx((B * large - b * mean_small) / (B - b))
    assert (noise.micro_batch, noise.large_batch) == (4.0, 32.0)


def test_at_a_minimum_the_scale_is_unresolved_and_never_infinite() -> None:
    noises = draws(50, [32], mean=0.0, parts=8)
    assert any(n.grad_sq.value < 0 for n in noises)
    for noise in noises:
        assert noise.resolved == (noise.b_simple is not None)
        assert noise.b_simple is None or math.isfinite(noise.b_simple)
    assert sum(n.resolved for n in noises) < 10
    assert any("unresolved" in str(n) for n in noises)


def test_batches_as_they_are_can_be_the_parts() -> None:
    """Gradients -2, -4, -6, -4 of single samples: variance 8/3, and 16 less a quarter of it."""
    X, Y = (
        torch.ones(4, 1, dtype=torch.float64),
        torch.tensor([[1.0], [2.0], [3.0], [2.0]], dtype=torch.float64),
    )
    noise = gradient_noise(linear_regression(X, Y, sizes=[1, 1, 1, 1]), num_parts=1)
    assert noise.trace_cov.value == pytest.approx(8 / 3)
    assert noise.grad_sq.value == pytest.approx(16 - 2 / 3)
    with pytest.raises(ValueError, match="num_parts=0 must be at least 1"):
        gradient_noise(linear_regression(X, Y), num_parts=0)


def test_two_parts_have_no_standard_error_and_stay_unresolved() -> None:
    (noise,) = draws(1, [32], mean=10.0, parts=2)
    assert math.isnan(noise.grad_sq.error)
    assert not noise.grad_sq.converged
    assert (noise.b_simple, noise.resolved) == (None, False)


def test_no_noise_at_all() -> None:
    noise = gradient_noise(mean_of_samples(torch.ones(8, 4, dtype=D), 1.0, [8]), num_parts=4)
    assert noise.trace_cov.value == pytest.approx(0.0, abs=1e-12)
    assert noise.b_simple == pytest.approx(0.0, abs=1e-12)


def test_small_and_ragged_batches_are_cut_as_far_as_they_go() -> None:
    noise = draws(1, [8, 3, 1], mean=1.0, parts=4)[0]
    assert noise.micro_batch == 12 / 8
    assert noise.trace_cov.provenance.method == "gradients of 8 parts"


def test_token_weighted_losses_are_in_units_of_samples() -> None:
    """Every sample carries 5 equal tokens: the noise per sample must not depend on counting by tokens."""
    torch.manual_seed(0)
    x = 1.0 + torch.randn(24, 4, dtype=D)

    def by_tokens(model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        return 5 * 0.5 * (model() - batch).square().sum(), 5 * len(batch)

    tokens = gradient_noise(Objective(Point(torch.zeros(4, dtype=D)), by_tokens, [x]))
    samples = gradient_noise(mean_of_samples(x, 1.0, [24]))
    assert tokens.trace_cov.value == pytest.approx(samples.trace_cov.value)
    assert tokens.b_simple == pytest.approx(samples.b_simple)


def test_a_gradient_of_the_whole_is_the_weighted_mean_of_the_parts() -> None:
    torch.manual_seed(1)
    X, Y = torch.randn(10, 3, dtype=D), torch.randn(10, 1, dtype=D)
    objective = linear_regression(X, Y, sizes=[7, 3])
    noise = gradient_noise(objective, num_parts=3)
    large = noise.grad_sq.value + noise.trace_cov.value / 10
    assert large == pytest.approx(float(vectors.norm(objective.gradient())) ** 2)


def test_batch_statistics_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def objective(mode: Any) -> Objective:
        return Objective(model, lambda m, x: m(x).square().mean(), [torch.randn(16, 3)], mode=mode)

    with pytest.raises(ValueError, match=r"BatchNorm1d .* mode='eval'"):
        gradient_noise(objective("train"))
    assert gradient_noise(objective("eval")).trace_cov.value > 0


def test_cost_is_one_gradient_and_declared() -> None:
    objective = mean_of_samples(torch.ones(12, 4, dtype=D), 1.0, [12])
    noise = gradient_noise(objective)
    assert noise.cost_ge == objective.cost_ge == gradient_noise.cost(objective) == 12


def test_wrong_usage_names_the_fix() -> None:
    with pytest.raises(ValueError, match="single part"):
        gradient_noise(mean_of_samples(torch.ones(1, 4, dtype=D), 1.0, [1]))
    with pytest.raises(ValueError, match="num_parts=0"):
        gradient_noise(mean_of_samples(torch.ones(4, 4, dtype=D), 1.0, [4]), num_parts=0)
