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


@pytest.mark.parametrize("kind", [NoiseProbe, CurvatureNoiseProbe])
def test_the_averages_go_on_from_a_state(kind: type[NoiseProbe | CurvatureNoiseProbe]) -> None:
    """A third look tells the same after two looks and after their state; one that starts there tells another thing."""

    def look(probe: NoiseProbe | CurvatureNoiseProbe, seed: int) -> list[float]:
        host = looking()
        host.batch = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(seed))
        probe.see(host)
        return [signal.value for signal in probe.measure(host) if "noise/b_" in signal.name]

    first, resumed = kind(), kind()
    for seed in (1, 2):
        look(first, seed)
    resumed.load_state_dict(first.state_dict())
    whole = look(first, 3)
    assert look(resumed, 3) == whole
    assert look(kind(), 3) != whole
