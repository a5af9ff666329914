"""Which probes run at all: none where a forward pass on one rank would wait for the others, and that is said."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from pilot.runs import fed
from torch import nn

from optland.pilot import Pilot, Probe, Signal
from optland.pilot.budget import Budget
from optland.pilot.history import History
from optland.pilot.host import Host
from optland.pilot.looks import Looks
from optland.pilot.probes.curvature import CurvatureProbe


def looks(model: nn.Module, reads: str) -> Looks:
    host = Host([torch.optim.SGD(model.parameters(), lr=0.1)], model, lambda m, batch: m(batch).mean())
    return Looks(host, History(), Budget(0.1), reads=frozenset({reads}), shown=False)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_synchronised_statistics_on_several_ranks_turn_probes_off(
    norm: type[nn.Module], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("is_initialized", True), ("get_world_size", size), ("get_rank", 0)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    model = nn.Sequential(nn.Linear(2, 2), norm(2))
    if (norm, size) != (nn.SyncBatchNorm, 2):
        assert [probe.name for probe in looks(model, "edge/eta_c").probes] == ["edge"]
        return
    with pytest.warns(RuntimeWarning, match=r"probes \(edge\) .*\(SyncBatchNorm waits for all ranks"):
        assert looks(model, "edge/eta_c").probes == []
    with warnings.catch_warnings(action="error"):  # nobody asked for one
        assert looks(model, "train/loss").probes == []


class Dear(Probe):
    """Declares as many gradient evaluations as it is told, and measures nothing of the net."""

    name = "dear"
    yields = frozenset({"own/dear"})
    every = 1

    def __init__(self, ge: float) -> None:
        self.ge = ge

    def cost(self, host: Host) -> float:
        return self.ge

    def measure(self, host: Host) -> list[Signal]:
        self.spent = self.ge
        return [Signal("own/dear", 1.0, host.step)]


def trained(ge: float, budget: float) -> Pilot:
    """Ten updates on batches of eight, 80 gradient evaluations, with one probe of the user's and no other."""
    model, loss_fn = nn.Linear(2, 1), lambda m, batch: m(batch).square().mean()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pilot = Pilot(optimizer, model, loss_fn, policies=[], probes=[Dear(ge)], budget=budget, total_steps=10)
    return fed(pilot, optimizer, model, loss_fn, (torch.ones(8, 2) for _ in range(10)))


def test_a_probe_that_had_no_turn_is_said_once_with_what_gives_it_one() -> None:
    idle = trained(50.0, budget=0.1)
    wanted = (
        r"have not run: dear, which may cost 50 gradient evaluations and had .* it takes a budget of 0\.(\d+)"
    )
    assert "Probes that have not run: dear" in repr(idle)
    with pytest.warns(RuntimeWarning, match=wanted) as said:
        idle.close()
    assert len(said) == 1
    with warnings.catch_warnings(action="error"):
        idle.close()
    found = re.search(wanted, str(said[0].message))
    assert found is not None
    enough = trained(
        50.0, budget=float(f"0.{found.group(1)}")
    )  # what it says is enough, and a tenth less is not
    assert enough.history.last("own/dear") is not None
    less = trained(50.0, budget=0.9 * float(f"0.{found.group(1)}"))
    assert less.history.last("own/dear") is None
    with warnings.catch_warnings(action="error"):
        enough.close()
    assert "have not run" not in repr(enough)


def test_where_no_budget_holds_a_probe_a_longer_run_is_named() -> None:
    idle = trained(800.0, budget=0.5)
    with pytest.warns(
        RuntimeWarning, match=r"it takes a run 2\d times as long"
    ):  # 800 / (0.5 * 80) = 20, and a first look
        idle.close()


def test_the_curvature_is_that_of_the_first_32_samples_of_the_first_batch() -> None:
    """Of the mean of w^2 x_i / 2 it is the mean of those x_i, whatever came later."""
    model = nn.Linear(1, 1, bias=False)
    probe, x = CurvatureProbe(), torch.arange(40.0).reshape(40, 1)
    host = Host(
        [torch.optim.SGD(model.parameters(), lr=0.1)],
        model,
        lambda m, batch: 0.5 * (m.weight.square() * batch).mean(),
    )
    for batch in (x, x + 100):
        host.batch = batch
        host.saw(40)
        probe.see(host)
    found = {signal.name: signal.value for signal in probe.measure(host)}
    assert found["curv/lambda_max"] == pytest.approx(float(x[:32].mean()))
