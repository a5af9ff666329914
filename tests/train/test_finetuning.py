"""Fine-tuning: the longest update that a budget allows, the budget on quadratics, parts of a net, interpolation."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from optland.landscape import damaged
from optland.objective import Objective
from optland.train.experiments.bank_run import Splits
from optland.train.experiments.finetuning import FinetuneConfig, between, tasks
from optland.train.experiments.keep_old import KeepOld, longest
from optland.train.models.low_rank import LowRank, narrow
from optland.train.runs.settings import OptimizerConfig


@pytest.mark.parametrize("a", [-1.0, -0.3, 0.0, 0.2, 2.0])
@pytest.mark.parametrize("c", [-1.5, 0.0, 0.4, 3.0])
@pytest.mark.parametrize("b", [0.0, 0.1, 1.0])
def test_the_longest_update_is_the_first_place_above_the_budget(a: float, c: float, b: float) -> None:
    """Against a walk along the parabola up to t = 50."""
    t = torch.linspace(0.0, 50.0, 500_001, dtype=torch.float64)[1:]
    above = a * t + 0.5 * c * t**2 > b + 1e-12
    first = float(t[int(above.int().argmax())]) if bool(above.any()) else math.inf
    found = longest(a, c, b)
    assert found == pytest.approx(first, abs=2e-4) if math.isfinite(first) else found >= 50.0


def quadratics(every: int, budget: float) -> tuple[float, float, float]:
    """Descent on |w - 3|^2 / 2 beside an old loss 1 + w'Aw / 2: its rise, that of the first update, the way gone."""
    A = torch.diag(torch.tensor([4.0, 1.0, 0.1], dtype=torch.float64))

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.1, 0.1, 0.1], dtype=torch.float64))

    model = Point()
    old = Objective(model, lambda m, b: 1.0 + 0.5 * m.w @ (A @ m.w), [torch.zeros(1)])
    start, steps = old.value(), 40
    keep, first = KeepOld(old, steps, budget=budget, every=every), 0.0
    for k in range(steps):
        keep.before_step()
        with torch.no_grad():
            model.w -= 0.1 * keep.factor * (model.w - 3.0)
        keep.after_step()
        first = old.value() - start if k == 0 else first
    return old.value() - start, first, float(model.w.detach().norm())


def test_the_old_loss_keeps_to_its_budget_where_every_update_is_looked_at() -> None:
    """The first update is made before there is a look; every later one moves a hundredth of its length at least."""
    rise, first, _ = quadratics(every=1, budget=0.5)
    free, _, far = quadratics(every=1, budget=1e6)
    assert first < 0.6
    assert rise < 0.5 * 1.03 + first  # 1.03: the old loss at the start is 1.0255
    assert free > 4.0
    assert far > 4.0
    assert quadratics(every=5, budget=0.5)[0] < free


def test_a_look_changes_nothing_and_is_counted() -> None:
    model = nn.Linear(3, 1)
    L = Objective(model, lambda m, x: m(x).square().mean(), [torch.ones(6, 3)])
    keep = KeepOld(L, 20, every=10)
    before = L.cost_ge
    for _ in range(10):
        keep.before_step()
        with torch.no_grad():
            model.weight += 0.01
        weights = model.weight.clone()
        keep.after_step()
        assert torch.equal(model.weight, weights)
    assert L.cost_ge - before == pytest.approx(3 * 6 / 3)
    for wrong in ({"budget": -0.1}, {"every": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            KeepOld(L, 20, **wrong)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 2)
    )


def test_factors_start_where_the_net_is_and_are_all_that_moves() -> None:
    x = torch.randn(7, 4)
    plain = net()
    expected = plain(x)
    lora = narrow(copy.deepcopy(plain), "lora", 2)
    assert torch.equal(lora(x), expected)
    moving = [n for n, p in lora.named_parameters() if p.requires_grad]
    assert moving == ["0.a", "0.b", "2.0.a", "2.0.b", "3.a", "3.b"]
    layer: Any = lora[0]
    with torch.no_grad():
        layer.b.normal_()
    merged = {"0.weight": plain[0].weight.detach() + layer.b.detach() @ layer.a.detach()}
    with damaged(plain, merged):
        assert torch.allclose(lora(x), plain(x), atol=1e-5)
    assert isinstance(layer, LowRank)
    shared = nn.Sequential(plain[0], nn.Linear(plain[0].out_features, 4))
    shared.append(shared[0])
    found = narrow(shared, "lora", 2)
    assert [type(m) for m in found.children()] == [LowRank] * 3
    with pytest.raises(ValueError, match="no linear layer"):
        narrow(nn.Conv1d(1, 1, 1), "lora")


def test_between_start_and_end() -> None:
    model, start = net(), net().state_dict()
    end = {name: value + 1.0 for name, value in start.items()}
    for share in (0.0, 0.25, 1.0):
        between(model, start, end, share)
        assert all(torch.allclose(v, start[n] + share) for n, v in model.state_dict().items())


def test_the_two_tasks() -> None:
    x = torch.arange(24.0).reshape(6, 1, 2, 2)
    y = torch.tensor([0, 1, 2, 3, 3, 0])
    old, new = tasks(Splits((x, y), (x, y), (x, y), 4), "turned")
    assert old.test[0] is x
    assert new.test[0][0, 0].tolist() == [[1.0, 3.0], [0.0, 2.0]]  # a quarter turn to the left
    old, new = tasks(Splits((x, y), (x, y), (x, y), 4), "classes")
    assert (old.val[1].tolist(), new.val[1].tolist()) == ([0, 1, 0], [2, 3, 3])
    assert torch.equal(new.train[0], x[2:5])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_kept": 0}, "num_kept: 0"),
        ({"strength": 0.0}, "strength: 0.0"),
        ({"optimizer": OptimizerConfig("sam")}, "takes two passes"),
        ({"schedule": "cosine"}, "use none and off"),
        ({"start_lr": 0.0}, "start_lr: 0.0"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FinetuneConfig(**settings)


def test_the_way_s_own_strength() -> None:
    found: dict[str, float] = {way: FinetuneConfig(way=way).amount for way in ("l2", "sam", "keep_old")}
    assert found == {"l2": 0.1, "sam": 0.05, "keep_old": 0.5}
    assert FinetuneConfig(way="sam", strength=0.2).amount == 0.2
