"""Optimizers by name."""

from typing import Any

import pytest
import torch
from torch import nn

from optland.objective import Objective
from optland.optim import ASAM, SAM, available, create
from optland.optim.registry import METHODS


@pytest.fixture
def model():
    return nn.Linear(2, 1)


def test_every_name_trains():
    for name in available():
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        objective = Objective(model, lambda m, x: (m(x) - 1).square().mean(), [torch.ones(4, 2)])
        needed = {"objective": objective} if name == "eigensam" else {}
        base = "adamw" if name in METHODS else None
        optimizer: Any = create(name, model.parameters(), base=base, lr=0.01, model=model, **needed)

        def closure(optimizer=optimizer, model=model):
            optimizer.zero_grad()
            loss = (model(torch.ones(4, 2)) - 1).square().mean()
            loss.backward()
            return loss

        before = optimizer.step(closure).item()
        assert closure().item() < before, name
        optimizer.zero_grad()


def test_options_go_where_they_belong(model):
    optimizer = create(
        "asam", model.named_parameters(), base="adamw", lr=0.5, betas=(0.8, 0.9), rho=0.2, eta=0.0
    )
    assert isinstance(optimizer, ASAM)
    assert isinstance(optimizer.base, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["sam_rho"], group["sam_eta"]) == (0.5, (0.8, 0.9), 0.2, 0.0)
    optimizer = create("sam", model.parameters(), lr=0.1, momentum=0.5, model=model, check_finite=False)
    assert isinstance(optimizer, SAM)
    assert isinstance(optimizer.base, torch.optim.SGD)
    assert optimizer.model is model
    assert not optimizer.check_finite
    assert optimizer.param_groups[0]["momentum"] == 0.5


def test_a_base_alone(model):
    assert type(create("rmsprop", model.parameters(), lr=0.1)) is torch.optim.RMSprop
    assert type(create("none", model.parameters(), base="adam")) is torch.optim.Adam
    assert type(create("adamw", model.parameters(), base="adamw", model=model)) is torch.optim.AdamW


def test_patterns():
    assert {"sam", "asam"} <= set(available("*sam*"))
    assert "sgd" not in available("*sam*")
    assert available("sgd") == ["sgd"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("asm", {}, r"'asm'. Did you mean 'asam'\? Known: .*rmsprop"),
        ("zzz", {}, r"'zzz'. Known: "),
        ("sam", {"base": "adamm"}, r"'adamm'. Did you mean 'adam"),
        ("sam", {"base": "adamw", "momentum": 0.9}, r"'momentum'.*Known: .*betas.*rho"),
        ("sam", {"roh": 0.1}, r"'roh'. Did you mean 'rho'"),
        ("sgd", {"rho": 0.1}, r"option of 'sgd'.*'rho'"),
        ("sgd", {"base": "adam"}, r"'sgd' is a base optimizer itself"),
        ("sam", {"adaptive": True}, r"'adaptive'"),
    ],
)
def test_unknown_names_and_options(model, name, options, message):
    with pytest.raises(ValueError, match=message):
        create(name, model.parameters(), **options)


@pytest.mark.parametrize("name", ["negative_curvature", "perturbed_gradient", "noisy_gradient"])
def test_saddle_wrappers_by_name(name):
    w = nn.Parameter(torch.zeros(2))
    optimizer: Any = create(name, [w], base="adamw", lr=0.01, seed=3)
    assert type(optimizer.base) is torch.optim.AdamW
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert name in available()


@pytest.mark.parametrize("name", ["cubic_newton", "saddle_free_newton", "trust_region_newton"])
def test_solvers_by_name(name):
    optimizer: Any = create(name, [nn.Parameter(torch.zeros(2))], max_matvecs=7)
    assert optimizer.max_matvecs == 7
    with pytest.raises(ValueError, match="Did you mean 'max_matvecs'"):
        create(name, [nn.Parameter(torch.zeros(2))], products=7)
    with pytest.raises(ValueError, match="cannot take base='sgd'"):
        create(name, [nn.Parameter(torch.zeros(2))], base="sgd")
    with pytest.raises(ValueError, match="unknown option of"):
        create(name, [nn.Parameter(torch.zeros(2))], momentum=0.9)
