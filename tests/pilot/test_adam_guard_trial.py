"""The trial of ``benchmarks/spikes_adam.py``: its probe, its action and its count of spikes against what they say."""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from pages import ROOT
from torch import Tensor, nn
from torch.nn import functional as F

from optland.pilot import Pilot
from optland.pilot.contract import check_policy


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("spikes_adam")


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def problem() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(24, 5, dtype=torch.float64)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double(), (x, x[:, :3].argmax(1))


def test_r_is_the_formula_with_the_whole_hessian(trial: ModuleType) -> None:
    """eta (1 - b1) / (2 (1 + b1)) g'P^-1 H g / |g|^2, H row by row by autograd, P by hand from Adam's state."""
    model, batch = problem()
    adam = torch.optim.Adam(model.parameters(), 0.03, betas=(0.8, 0.99))
    made: dict[str, Any] = {"policies": [trial.AdamGuard()], "probes": [trial.GradientEdge(part=1.0)]}
    with Pilot(adam, model, loss_fn, mode="control", budget=1.0, open_ended=True, **made) as pilot:
        for _ in range(40):
            adam.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            adam.step()
            pilot.after_step(batch, loss)
            found = pilot.history.last("edge/gradient_ratio")
            if found is not None and found.step == pilot.step:
                break
    assert found is not None
    t = pilot.step
    params = dict(model.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in params.values()])

    def at(w: Tensor) -> Tensor:
        pieces = torch.split(w, [p.numel() for p in params.values()])
        named = {n: u.reshape(p.shape) for (n, p), u in zip(params.items(), pieces, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, named, (batch[0],)), batch[1])

    H, g = torch.autograd.functional.hessian(at, flat), torch.autograd.functional.jacobian(at, flat)
    v = torch.cat([adam.state[p]["exp_avg_sq"].flatten() for p in params.values()])
    P = (1 - 0.8**t) * ((v / (1 - 0.99**t)).sqrt() + 1e-8)
    r = 0.03 * 0.2 / (2 * 1.8) * (g / P) @ H @ g / (g @ g)
    assert found.value == pytest.approx(float(r), rel=1e-6)


def test_the_action_leaves_out_what_a_new_beta2_would_do_to_early_steps(trial: ModuleType) -> None:
    """Against Adam written out, whose v is divided by the sum of the weights that it holds."""
    model, batch = problem()
    adam = torch.optim.Adam(model.parameters(), 0.01)
    w = [p.detach().clone() for p in model.parameters()]
    m, v = [torch.zeros_like(p) for p in w], [torch.zeros_like(p) for p in w]
    guard, weight = trial.RandomGuard([30]), 0.0
    with Pilot(adam, model, loss_fn, policies=[guard], total_steps=80, budget=0.0) as pilot:
        for t in range(1, 81):
            adam.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            g = [p.grad.clone() for p in model.parameters()]
            adam.step()
            pilot.after_step(batch, loss)
            b = 0.9 if 30 < t <= 60 else 0.999
            weight = b * weight + 1 - b
            for i, x in enumerate(g):
                m[i] = 0.9 * m[i] + 0.1 * x
                v[i] = b * v[i] + (1 - b) * x * x
                # PyTorch adds eps to the root of v over its own correction; so does this.
                root = (v[i] / (1 - b**t)).sqrt() + 1e-8
                w[i] -= 0.01 * math.sqrt(weight / (1 - b**t)) * m[i] / (1 - 0.9**t) / root
            if t < 60:  # where beta2 comes back the factor may only double per update
                for p, q in zip(model.parameters(), w, strict=True):
                    torch.testing.assert_close(p.detach(), q, rtol=1e-6, atol=1e-9)
    assert guard.alarms == [30]
    assert guard.beta2 == 0.999
    assert adam.param_groups[0]["betas"] == (0.9, 0.999)


def test_spikes_are_counted_once_each(trial: ModuleType) -> None:
    losses = [1.0] * 5 + [4.0, 5.0, 4.0, 1.0, 3.5, 2.0] + [0.5] * 30 + [1.4, math.nan]
    assert trial.spikes(losses, 3.0) == [6, 10, len(losses)]


@pytest.mark.parametrize("name", ["AdamGuard", "NormGuard", "RandomGuard"])
def test_its_policies_keep_the_contract(trial: ModuleType, name: str) -> None:
    made: dict[str, Any] = {
        "AdamGuard": trial.AdamGuard, "NormGuard": lambda: trial.NormGuard(2.0),
        "RandomGuard": lambda: trial.RandomGuard([3]),
    }  # fmt: skip
    check_policy(made[name])


def test_it_passes_only_with_fewer_spikes_than_all_and_no_higher_loss(trial: ModuleType) -> None:
    def rows(ours: float, norm: float, end: float | None) -> dict[str, dict[str, Any]]:
        row = {"spikes": 5.0, "end": 0.1}
        return {
            "none": dict(row), "gradient norm": {**row, "spikes": norm}, "random": dict(row),
            "adam_guard": {"spikes": ours, "end": end},
        }  # fmt: skip

    assert trial.passes(rows(2.0, 3.0, 0.1))
    assert not trial.passes(rows(2.0, 2.0, 0.1))
    assert not trial.passes(rows(2.0, 3.0, 0.11))
    assert not trial.passes(rows(2.0, 3.0, None))
