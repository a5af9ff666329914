"""Every policy on real digits for 60 steps: looking and advising change no bit, and acting trains."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.context import rng_state
from optland.control import POLICIES
from optland.optim import SAM
from optland.train import BatchLoader, DataConfig, Pilot, load_data

STEPS = 60
AROUND_SAM = ("late_sam", "rho")


@cache
def digits() -> tuple[Tensor, Tensor]:
    data = load_data(DataConfig(name="digits"))
    return data.normalise(data.train_x), data.train_y


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@cache
def train(name: str, mode: str) -> dict[str, Any]:
    """60 steps with dropout and BatchNorm; returns everything that looking may not change, and the pilot."""
    torch.manual_seed(0)
    x, y = digits()
    features = x[0].numel()
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(32, 10),
    )
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if name == "gi_adam":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    if name in AROUND_SAM:
        optimizer = SAM(optimizer, rho=0.05, model=model)
    loader = BatchLoader([x, y], 32, epochs=2, seed=0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    pilot = Pilot(
        optimizer,
        model,
        cross_entropy,
        policies=[name],
        mode=mode,
        total_samples=32 * STEPS,
        budget=0.5,  # type: ignore[arg-type]
    )
    losses = []
    for batch in pilot.batches(loader):

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(model, batch)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        scheduler.step()
        pilot.after_step(batch, loss)
        losses.append(float(loss.detach()))
        if pilot.step >= STEPS:
            break
    bits = {
        "model": copy.deepcopy(model.state_dict()),
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "rng": rng_state(),
        "losses": losses,
        "loader": loader.state_dict(),
    }
    return {"bits": bits, "pilot": pilot, "losses": losses}


def _setting(name: str) -> str:
    """A policy with the same optimizer: without a pilot it makes no difference which."""
    if name == "gi_adam":
        return name
    return "rho" if name in AROUND_SAM else "auto_lr"


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("name", POLICIES)
def test_monitor_and_shadow_are_off_bit_for_bit_and_control_trains(name: str) -> None:
    off = train(_setting(name), "off")
    for mode in ("monitor", "shadow"):
        looking = train(name, mode)
        assert same(off["bits"], looking["bits"]), mode
        assert not any(d.taken for d in looking["pilot"].decisions)
        if mode == "monitor":
            assert not looking["pilot"].decisions
    control = train(name, "control")
    assert sum(control["losses"][-5:]) / 5 < 0.75 * control["losses"][0]
    assert all(d.reason for d in control["pilot"].decisions)
    assert control["pilot"].budget.used <= control["pilot"].budget.allowed + 1e-12


@pytest.mark.parametrize("name", ["gi_adam", "late_sam", "rho", "seesaw"])
def test_shadow_decides_where_control_acts(name: str) -> None:
    shadow, control = (train(name, mode)["pilot"].decisions for mode in ("shadow", "control"))
    assert shadow
    first = shadow[0].to_dict() | {"taken": True}
    assert repr(first) == repr(control[0].to_dict())
