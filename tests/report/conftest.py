"""Findings of small problems, measured once for all tests of the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optland.objective import Objective
from optland.report import Findings, SurveySettings, investigate

SMALL = SurveySettings(num_points=5, k=1, max_matvecs=8, num_rays=6, radii=(0.1,), num_gradients=8)


def small_objective(seed: int = 0, act: Callable[[], nn.Module] = nn.ReLU) -> Objective:
    """A net of 2 x 12 units on 64 points of two classes."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(64, 4, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 12), act(), nn.Linear(12, 12), act(), nn.Linear(12, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    batches = [(x[:40], y[:40]), (x[40:], y[40:])]
    return Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), batches, data="64 points")


@pytest.fixture(scope="session")
def findings() -> Findings:
    """Two seeds, the paths between them, and the way to the first."""
    first, second = small_objective(0), small_objective(1)
    end = [p.detach().clone() for p in first.params]
    path = {
        f"step {k}": [p * s + (1 - s) * torch.ones_like(p) / (k + 1) for p in end]
        for k, s in enumerate((0.2, 0.6, 1.0))
    }
    return investigate(
        "Two <small> nets", {"seed 0": first, "seed 1": second}, SMALL, about={"model": "MLP & more"},
        tests={"seed 0": first}, pairs=[("seed 0", "seed 1")], num_curve_steps=30, path=path, notes=["A note."],
        results={"seed 0": {"test accuracy": "97.5 %", "optimizer": "sgd, momentum 0.9",
                            "learning rate": "found by auto_lr: 0.3"}},
    )  # fmt: skip


@pytest.fixture(scope="session")
def written(findings: Findings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of these findings."""
    from optland.report import write_report

    return write_report(findings, tmp_path_factory.mktemp("report"))
