"""Every probe leaves the model, its gradients and the random state bit for bit as it found them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optland import vectors
from optland.context.rng import rng_state
from optland.curvature import (
    batch_sharpness,
    certify,
    classify,
    critical_step,
    density,
    diagonal,
    find_critical_points,
    fisher,
    ggn,
    gradient_noise,
    hessian,
    lanczos,
    noise_scale,
    power_iteration,
    spectral_summary,
    stability_ratio,
    trace,
)
from optland.objective import Objective

PROBES: dict[str, Callable[[Objective], Any]] = {
    "value elsewhere": lambda L: L.value(L.displaced(vectors.random_unit(L.params, 0), 1.0)),
    "gradient elsewhere": lambda L: L.gradient(L.displaced(vectors.random_unit(L.params, 0), 1.0)),
    "lanczos, kept graph": lambda L: lanczos(hessian(L, method="kept_graph"), max_matvecs=4),
    "lanczos, double backward": lambda L: lanczos(hessian(L, method="double_backward"), max_matvecs=3),
    "lanczos, finite difference": lambda L: lanczos(hessian(L, method="finite_difference"), max_matvecs=3),
    "lanczos, forward over reverse": lambda L: lanczos(
        hessian(L, method="forward_over_reverse"), max_matvecs=3
    ),
    "gauss-newton": lambda L: lanczos(ggn(L, method="double_backward"), max_matvecs=3),
    "fisher": lambda L: lanczos(fisher(L, "gaussian", num_draws=2, method="double_backward"), max_matvecs=3),
    "check of an operator": lambda L: hessian(L, method="double_backward").check(),
    "float64 copy": lambda L: L.double().gradient(L.displaced(vectors.random_unit(L.params, 0), 1.0)),
    "critical step": lambda L: critical_step(L, vectors.scaled(-0.1, L.gradient())),
    "critical step from elsewhere": lambda L: critical_step(
        L, vectors.random_unit(L.params, 1), origin=L.displaced(vectors.random_unit(L.params, 0), 0.5)
    ),
    "gradient noise": lambda L: gradient_noise(L, num_parts=3),
    "noise scale": lambda L: noise_scale(L, num_parts=4, method="double_backward"),
    "batch sharpness": lambda L: batch_sharpness(L, method="double_backward"),
    "certificate": lambda L: certify(vectors.random_unit(L.params, 0), L, method="double_backward"),
    "trace": lambda L: trace(hessian(L, method="double_backward"), max_matvecs=12),
    "diagonal": lambda L: diagonal(hessian(L, method="double_backward"), max_matvecs=12),
    "density": lambda L: density(hessian(L, method="double_backward"), num_steps=4, num_starts=2),
    "power iteration": lambda L: power_iteration(hessian(L, method="double_backward"), 3),
    "spectral summary": lambda L: spectral_summary(hessian(L, method="double_backward"), max_matvecs=6),
    "verdict": lambda L: classify(L, max_matvecs=6, method="double_backward"),
    "search for critical points": lambda L: find_critical_points(
        L, [L.params], atol=1e-3, max_steps=1, max_matvecs=4, method="double_backward"
    ),
    "stability ratio": lambda L: stability_ratio(
        L, torch.optim.SGD(L.model.parameters(), lr=0.1), max_matvecs=4, method="double_backward"
    ),
}

PARTS = ("gradient noise", "noise scale")
"""Probes of parts of a batch, which batch statistics would make another function."""


def model_in_use(batch_norm: bool = True) -> nn.Module:
    """Mixed modes, a frozen layer, dropout, running statistics that are not at their start, gradients set."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6) if batch_norm else nn.LayerNorm(6)
    model = nn.Sequential(nn.Linear(4, 6), norm, nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 6), nn.Linear(6, 2))
    model(torch.randn(20, 4)).square().mean().backward()
    model[4].weight.requires_grad_(False)
    model.train()
    model[1].eval()
    return model


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "weights": [p.detach().clone() for p in model.parameters()],
        "addresses": [p.data_ptr() for p in model.parameters()],
        "versions": [p._version for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "gradient objects": [id(p.grad) for p in model.parameters()],
        "buffers": [b.clone() for b in model.buffers()],
        "buffer objects": [id(b) for b in model.buffers()],
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "random state": copy.deepcopy(rng_state()),
        "autocast": torch.is_autocast_enabled("cpu"),
        "float32": torch.get_float32_matmul_precision(),
        "kernels": torch.backends.cuda.flash_sdp_enabled(),
        "grad mode": torch.is_grad_enabled(),
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return all(same(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
        return bool(a == b)

    return [name for name in before if not same(before[name], after[name])]


def noisy_loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Draws from all three global generators, as augmentation inside a loss may."""
    jitter = random.random() + float(np.random.rand()) + float(torch.rand(()))  # noqa: NPY002
    return (model(batch) * (1 + 0.01 * jitter)).square().mean()


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("probe", sorted(PROBES))
def test_probe_leaves_no_trace(probe: str, mode: Any) -> None:
    model = model_in_use(batch_norm=mode != "train" or probe not in PARTS)
    data = torch.randn(11, 4, generator=torch.Generator().manual_seed(1))
    before = snapshot(model)
    PROBES[probe](Objective(model, noisy_loss, [data[:7], data[7:]], mode=mode))
    assert differences(before, snapshot(model)) == []


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("failing_call", [1, 2, 4])
@pytest.mark.parametrize("probe", sorted(PROBES))
def test_probe_leaves_no_trace_when_the_loss_raises(probe: str, failing_call: int, mode: Any) -> None:
    model = model_in_use(batch_norm=mode != "train" or probe not in PARTS)
    data = torch.randn(11, 4, generator=torch.Generator().manual_seed(1))
    calls = 0

    def failing(model: nn.Module, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        loss = noisy_loss(model, batch)
        if calls >= failing_call:
            raise RuntimeError("out of luck")
        return loss

    objective = Objective(model, failing, [data[:7], data[7:]], mode=mode)
    before = snapshot(model)
    # Two batches: these read the loss of each batch once, and are done before the third call.
    done_early = probe in ("value elsewhere", "gradient elsewhere", "float64 copy")
    expected = (
        nullcontext() if done_early and failing_call > 2 else pytest.raises(RuntimeError, match="out of luck")
    )
    with expected:
        PROBES[probe](objective)
    assert differences(before, snapshot(model)) == []


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("probe", sorted(PROBES))
def test_a_graph_of_the_users_stays_usable(probe: str, mode: Any) -> None:
    def gradients(probing: bool) -> list[Tensor]:
        model = model_in_use(batch_norm=mode != "train" or probe not in PARTS)
        data = torch.randn(11, 4, generator=torch.Generator().manual_seed(1))
        model.zero_grad()
        loss = model(data).square().mean()
        if probing:
            PROBES[probe](Objective(model, noisy_loss, [data], mode=mode))
        loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for plain, probed in zip(gradients(probing=False), gradients(probing=True), strict=True):
        assert torch.equal(plain, probed)
