"""Every public probe of ``optland.curvature`` declares its cost, and none spends more than that."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optland.curvature
from optland.curvature import (
    batch_sharpness,
    certify,
    classify,
    critical_step,
    density,
    diagonal,
    find_critical_points,
    frobenius,
    gradient_noise,
    hessian,
    lanczos,
    noise_scale,
    portrait,
    power_iteration,
    spectral_summary,
    stability_ratio,
    stable_rate,
    trace,
    trace_per_layer,
)
from optland.objective import Objective

NO_PROBES = {
    "hessian", "ggn", "fisher", "preconditioned", "in_metric", "subset", "per_layer", "stability_threshold",
}  # fmt: skip
"""Functions that make an operator, or work on what was measured."""


def small_net(seed: int = 0, num_batches: int = 2) -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (24,), generator=generator)

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    size = 24 // num_batches
    return Objective(model, loss_fn, list(zip(x.split(size), y.split(size), strict=True)))


def downhill(L: Objective) -> list[Tensor]:
    return [-0.1 * g for g in L.gradient()]


def sgd(L: Objective) -> torch.optim.Optimizer:
    return torch.optim.SGD(L.params, lr=0.1)


Cost = Callable[[Objective], float]
CASES: list[tuple[Any, Callable[[Objective, list[Tensor]], Any], Cost]] = [
    (batch_sharpness, lambda L, d: batch_sharpness(L), batch_sharpness.cost),
    (certify, lambda L, d: certify(d, L), certify.cost),
    (classify, lambda L, d: classify(L, is_sample=True), lambda L: classify.cost(L, is_sample=True)),
    (critical_step, lambda L, d: critical_step(L, d), critical_step.cost),
    (density, lambda L, d: density(hessian(L), num_steps=5), lambda L: density.cost(L, 5)),
    (diagonal, lambda L, d: diagonal(hessian(L)), diagonal.cost),
    (frobenius, lambda L, d: frobenius(hessian(L)), frobenius.cost),
    (gradient_noise, lambda L, d: gradient_noise(L), gradient_noise.cost),
    (lanczos, lambda L, d: lanczos(hessian(L), k=3), lanczos.cost),
    (noise_scale, lambda L, d: noise_scale(L), noise_scale.cost),
    (portrait, lambda L, d: portrait(L, max_matvecs=12), lambda L: portrait.cost(L, max_matvecs=12)),
    (power_iteration, lambda L, d: power_iteration(hessian(L)), power_iteration.cost),
    (spectral_summary, lambda L, d: spectral_summary(hessian(L)), spectral_summary.cost),
    (stability_ratio, lambda L, d: stability_ratio(L, sgd(L)), stability_ratio.cost),
    (stable_rate, lambda L, d: stable_rate(L, sgd(L), {"now": 0.1}), stable_rate.cost),
    (trace, lambda L, d: trace(hessian(L)), trace.cost),
    (trace_per_layer, lambda L, d: trace_per_layer(hessian(L)), trace_per_layer.cost),
    (
        find_critical_points,
        lambda L, d: find_critical_points(L, [L.params], max_steps=3),
        lambda L: find_critical_points.cost(L, max_steps=3),
    ),
]
PROBES = {probe.__name__: (run, declared) for probe, run, declared in CASES}


def test_every_public_function_is_a_probe_with_a_cost_or_listed_as_none() -> None:
    public = {n: getattr(optland.curvature, n) for n in optland.curvature.__all__}
    functions = {name: value for name, value in public.items() if inspect.isfunction(value)}
    assert {name for name, value in functions.items() if hasattr(value, "cost")} == set(PROBES)
    assert set(functions) == set(PROBES) | NO_PROBES
    assert callable(optland.curvature.SpectrumTracker.cost)


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_spends_no_more_than_it_declares(name: str) -> None:
    run, declared = PROBES[name]
    L = small_net(num_batches=2)
    most = declared(L)
    assert L.cost_ge == 0  # declaring costs nothing
    direction = downhill(L)
    given = L.cost_ge
    run(L, direction)
    assert 0 < L.cost_ge - given <= most


@pytest.mark.parametrize(("num_batches", "num_parts"), [(8, 1), (4, 8), (1, 8), (2, 3)])
def test_the_noise_scale_declares_the_products_of_all_its_parts(num_batches: int, num_parts: int) -> None:
    L = small_net(num_batches=num_batches)
    most = noise_scale.cost(L, num_parts=num_parts)
    found = noise_scale(L, num_parts=num_parts)
    assert 0 < found.cost_ge <= most
