"""The promise of the budget at the end of a run of any length, and a search for the edge that has lost it."""

from __future__ import annotations

import math

import pytest
import torch
from pilot.runs import fed
from torch import Tensor, nn

from optland.pilot import Pilot, Policy
from optland.pilot.budget import Budget
from optland.pilot.host import Host
from optland.pilot.probes.edge import EdgeProbe


@pytest.mark.parametrize("updates", [20, 100, 443, 5000])
@pytest.mark.parametrize("costs", [{"a": 107.0}, {"a": 64.0, "b": 107.0, "c": 1175.0}])
def test_a_run_of_known_length_ends_within_its_share(updates: int, costs: dict[str, float]) -> None:
    """Every probe runs as soon as it may; what was spent ahead is paid back by the last update."""
    budget = Budget(0.05, dict.fromkeys(costs, 1.0))
    budget.whole = 128.0 * updates
    budget.spend("first look", 21.0)
    runs = dict.fromkeys(costs, 0)
    for _ in range(updates):
        budget.train(128.0)
        for name, cost in costs.items():
            if budget.affords(name, cost):
                budget.spend(name, cost)
                runs[name] += 1
        assert budget.used <= budget.allowed + 1e-12
    assert budget.probe_ge <= max(0.05 * budget.train_ge, 21.0)
    if updates == 5000:  # 5 % of 640,000, in equal parts
        for name, cost in costs.items():
            assert runs[name] == pytest.approx(32_000 / len(costs) / cost, abs=1.1)


@pytest.mark.parametrize("ahead", [3, 4])
def test_a_run_of_unknown_length_has_the_runs_of_a_probe_ahead_that_it_needs(ahead: int) -> None:
    budget = Budget(0.05, {"a": 1.0})
    budget.train(1e4)
    while budget.affords("a", 200.0, ahead=ahead):
        budget.spend("a", 200.0)
    assert budget.spent["a"] == 200.0 * ahead
    assert math.isinf(budget.whole)


def test_without_a_probe_what_is_allowed_is_the_share() -> None:
    budget = Budget(0.05)
    budget.train(1000.0)
    budget.spend("first look", 20.0)
    assert (budget.used, budget.allowed) == (0.02, 0.05)


class Wall(nn.Module):
    """f(w) = w^2 / 2 up to the wall at |w| = 1.5, and steep beyond: the secant of far trials is no guide."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        steep = 1e6 * (self.w.abs() - 1.5).clamp_min(0.0).sqrt()
        return (0.5 * self.w.square() + steep).sum() + 0.0 * x.sum()


def test_an_edge_that_was_lost_is_found_again() -> None:
    """A search that began far beyond the edge found no descent; the next one begins below its smallest trial.

    The move is -0.1 from w = 1, so the loss is level again at w = -1: at 20 times the move.
    """
    net, probe = Wall(), EdgeProbe()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    host = Host([optimizer], net, lambda m, x: m(x))
    host.batch, host.applied, host.step = torch.zeros(4, 1), 0.1, 1
    host.saw(4)
    host.before.take(list(net.parameters()))
    with torch.no_grad():
        net.w.sub_(0.1)
    probe.start = 5000.0
    found = []
    for _ in range(4):
        signals = {s.name: s for s in probe.measure(host)}
        found.append(signals["edge/eta_c"])
    assert not found[0].valid
    assert found[-1].valid
    assert found[-1].value == pytest.approx(2.0, rel=0.15)  # f'' = 1: the critical rate of w -> w - lr w


def test_without_an_edge_the_search_does_not_begin_ever_farther_out() -> None:
    """On a line no trial rises, and the farthest is ever farther out; 64 moves are as far as a next search begins."""
    line, probe = nn.Linear(1, 1, bias=False), EdgeProbe()
    host = Host([torch.optim.SGD(line.parameters(), lr=0.1)], line, lambda m, x: m(x).sum())
    host.batch, host.applied, host.step = torch.ones(4, 1), 0.1, 1
    host.saw(4)
    host.before.take(list(line.parameters()))
    with torch.no_grad():
        line.weight.sub_(0.1)
    starts = []
    for _ in range(8):
        assert {s.why for s in probe.measure(host) if s.name == "edge/eta_c"} == {"unbounded"}
        starts.append(probe.start)
    assert starts == sorted(starts)
    assert starts[-1] == 64.0


class Asks(Policy):
    """Has every probe run."""

    name = "asks"
    reads = frozenset({"edge/ratio", "noise/b_simple", "curv/lambda_max"})

    def decide(self, history: object) -> list[object]:
        return []


def test_the_pilot_knows_the_cost_of_its_run() -> None:
    """40 updates of 8 samples with one gradient each; also where the length is given in samples."""
    for length in ({"total_steps": 40}, {"total_samples": 320}):
        torch.manual_seed(0)
        net = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

        def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
            return model(x).square().mean()

        pilot = Pilot(optimizer, net, loss_fn, policies=[Asks()], **length)
        fed(pilot, optimizer, net, loss_fn, (torch.randn(8, 3) for _ in range(40)))
        assert pilot.budget.whole == 320.0
        assert pilot.budget.used <= 0.05
        pilot.close()
