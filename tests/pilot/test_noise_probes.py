"""What the two noise probes say that they have spent, in gradient evaluations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.pilot.host import Host
from optland.pilot.probes.noise import CurvatureNoiseProbe, NoiseProbe

SAMPLES = 64


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    return F.mse_loss(model(batch), batch.sum(1, keepdim=True))


def looking() -> Host:
    """A host whose last batch has 64 samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    host = Host([torch.optim.SGD(model.parameters(), lr=0.1)], model, squares)
    host.batch = torch.randn(SAMPLES, 3)
    host.saw(SAMPLES)
    return host


def test_gradients_of_all_parts_cost_one_of_the_batch() -> None:
    host, probe = looking(), NoiseProbe()
    probe.see(host)
    probe.measure(host)
    assert probe.spent == pytest.approx(SAMPLES)


def test_products_cost_what_was_declared_and_more_than_the_gradient() -> None:
    """The first one compares a second derivative with differences too, and every look has it declared as it is made."""
    host, probe = looking(), CurvatureNoiseProbe()
    for _ in range(2):
        probe.see(host)
        declared = probe.cost(host)
        probe.measure(host)
        assert SAMPLES < probe.spent <= declared
