"""Preflight says what will not train, at a small cost, and takes everything back."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from optland import SAM
from optland.doctor import Symptom, before_run, preflight


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def task() -> tuple[nn.Sequential, DataLoader[tuple[Tensor, ...]]]:
    torch.manual_seed(0)
    y = torch.arange(512) % 3
    x = torch.randn(512, 8) + 2 * F.one_hot(y, 8)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
    generator = torch.Generator().manual_seed(3)
    return model, DataLoader(TensorDataset(x, y), 32, shuffle=True, generator=generator)


@pytest.mark.parametrize(
    ("lr", "symptom"),
    [(1e-6, Symptom.RATE_BELOW_EDGE), (3000.0, Symptom.RATE_ABOVE_EDGE)],
    ids=["far below", "far above"],
)
def test_a_rate_that_will_not_train(lr: float, symptom: Symptom) -> None:
    model, loader = task()
    found = preflight(model, loss_fn, loader, torch.optim.SGD(model.parameters(), lr))
    assert found.chance > 0.7
    assert symptom in [f.symptom for f in found.diagnosis.findings]


@pytest.mark.parametrize("kind", ["sgd", "adamw", "sam"])
def test_a_sound_configuration_costs_sixty_updates_at_most(kind: str) -> None:
    model, loader = task()
    base = (
        torch.optim.AdamW(model.parameters(), 5e-3)
        if kind == "adamw"
        else torch.optim.SGD(model.parameters(), 0.1)
    )
    optimizer = SAM(base, rho=0.05, model=model) if kind == "sam" else base
    found = preflight(model, loss_fn, loader, optimizer)
    assert found.chance < 0.5
    assert found.diagnosis.findings == ()
    passes = 2 if kind == "sam" else 1
    assert found.cost_ge <= 60 * 32 * passes


def test_a_critical_step_that_would_lead_beyond_the_cost_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loader = task()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with_all = preflight(model, loss_fn, loader, optimizer)
    monkeypatch.setattr(before_run, "BESIDE", 10.0)  # the spectrum alone has taken more
    without = preflight(model, loss_fn, loader, optimizer)
    assert math.isfinite(with_all.critical_lr)
    assert math.isnan(without.critical_lr)
    assert without.cost_ge < with_all.cost_ge


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    moments = {f"{i}.{k}": v for i, s in enumerate(optimizer.state.values()) for k, v in s.items()}
    return {**model.state_dict(), **moments, "rng": torch.get_rng_state()}


@pytest.mark.parametrize("trained", [False, True])
def test_everything_is_taken_back(trained: bool) -> None:
    model, loader = task()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    if trained:
        loss_fn(model, next(iter(loader))).backward()
        optimizer.step()
    model.eval()
    before, gradients = copy.deepcopy(state_of(model, optimizer)), [p.grad for p in model.parameters()]
    assert isinstance(loader.generator, torch.Generator)
    order = loader.generator.get_state()
    preflight(model, loss_fn, loader, optimizer)
    after = state_of(model, optimizer)
    assert before.keys() == after.keys()
    assert [
        name
        for name in before
        if not torch.equal(torch.as_tensor(before[name]), torch.as_tensor(after[name]))
    ] == []
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(order, loader.generator.get_state())
    assert not model.training


def test_what_cannot_be_tried_is_refused() -> None:
    model, loader = task()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="num_steps 3 is too few"):
        preflight(model, loss_fn, loader, optimizer, num_steps=3)
    with pytest.raises(ValueError, match="the loader gave no batch"):
        preflight(model, loss_fn, [], optimizer)


def test_batches_and_losses_may_be_mappings() -> None:
    """What the rest of the package takes, with the numbers and the cost of the same batches as tuples."""

    def named_loss(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(model(batch["x"]), batch["y"])}

    found = []
    for named in (False, True):
        model, loader = task()
        batches: list[Any] = [{"x": x, "y": y} if named else (x, y) for x, y in loader]
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        found.append(preflight(model, named_loss if named else loss_fn, batches, optimizer))
    tuples, mappings = found
    assert mappings.cost_ge == tuples.cost_ge
    assert (mappings.first, mappings.last, mappings.ncr) == (tuples.first, tuples.last, tuples.ncr)
