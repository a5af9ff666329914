"""Paths, barriers and curves where the answer is known, and what BatchNorm does to them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiers import slow
from torch import Tensor, nn
from torch.nn import functional as F

from optland.landscape import connect, linear_path
from optland.landscape.curves import curve_point
from optland.landscape.paths import recalibrated
from optland.objective import Objective
from optland.problems import quadratic
from optland.problems.critical import two_factor


def vec(*x: float) -> list[Tensor]:
    return [torch.tensor(x, dtype=torch.float64)]


class Four(nn.Module):
    """Two hidden units of a linear net: 1/2 (a1 b1 + a2 b2 - 1)^2 in (a1, b1, a2, b2)."""

    def __init__(self, start: tuple[float, ...]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self) -> Tensor:
        a1, b1, a2, b2 = self.w
        return 0.5 * (a1 * b1 + a2 * b2 - 1).square()


def two_units(start: tuple[float, ...] = (1.0, 1.0, 0.0, 0.0)) -> Objective:
    return Objective(Four(start), lambda m, b: m(), [torch.zeros(1)])


def test_barriers_of_the_two_factor_net() -> None:
    """(1,1) -> (-1,-1): exactly 1/2, since ab has to cross 0; (1,1) -> (2,1/2): 1/128."""
    across = linear_path(two_factor(1.0, 1.0), vec(-1.0, -1.0))
    assert across.above == pytest.approx(0.5)
    assert not across.connected
    along = linear_path(two_factor(1.0, 1.0), vec(2.0, 0.5))
    assert along.above == pytest.approx(1 / 128, rel=1e-3)


def test_swapped_units_have_a_barrier_of_an_eighth_and_no_barrier_once_aligned() -> None:
    assert linear_path(two_units(), vec(0.0, 0.0, 1.0, 1.0)).above == pytest.approx(1 / 8)
    assert linear_path(two_units(), vec(1.0, 1.0, 0.0, 0.0)).above == 0.0


def test_the_three_definitions_with_ends_of_different_height() -> None:
    """L(t) on 1/2 w^2 + bump, by hand: ends 0 and 2 and 3 in the middle."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    # f(0) = 0, f(1/2) = 3, f(1) = 2 on the parabola through them
    L = Objective(One(), lambda m, b: (10 * m.w - 8 * m.w**2).sum(), [torch.zeros(1)])
    path = linear_path(L, vec(1.0), num_points=101, num_refined=0)
    t = torch.linspace(0, 1, 101).double()
    f = 10 * t - 8 * t**2
    assert path.above == pytest.approx(float(f.max()) - 2)
    assert path.entezari == pytest.approx(float((f - 2 * t).max()))
    assert path.frankle == pytest.approx(float(f.max()) - 1)


def test_a_convex_loss_has_no_entezari_barrier() -> None:
    L = quadratic(torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64))
    path = linear_path(L, vec(3.0, -1.0))
    assert path.entezari == 0.0
    assert path.above == 0.0


def test_arc_length() -> None:
    path = linear_path(two_factor(1.0, 1.0), vec(4.0, 5.0), num_points=201, num_refined=0)
    assert float(path.length[-1]) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("minimise", "kind"),
    [
        *[("mean", "chain"), ("arc", "bezier")],
        *slow(("mean", "bezier"), ("arc", "chain"), ("max", "bezier"), ("max", "chain")),
    ],
)
def test_a_free_bend_drives_the_barrier_away(kind: Any, minimise: Any) -> None:
    """Both kinds have a curve of zero loss here: from 1/8 to nearly nothing."""
    found = connect(
        two_units(), vec(0.0, 0.0, 1.0, 1.0), kind=kind, minimise=minimise, num_steps=400, lr=0.05, seed=1
    )
    assert found.linear.above == pytest.approx(1 / 8)
    assert found.curve is not None
    assert found.curve.above < 0.1 / 8
    assert found.remaining < 0.1


def test_a_curve_cannot_cross_what_no_path_can() -> None:
    found = connect(two_factor(1.0, 1.0), vec(-1.0, -1.0), num_steps=100, lr=0.05)
    assert found.curve is not None
    assert found.curve.above >= 0.5 - 1e-3
    assert not found.connected


def test_both_kinds_pass_through_their_ends_and_are_the_textbook_curves() -> None:
    controls = [vec(0.0, 0.0), vec(1.0, 2.0), vec(4.0, 0.0)]
    for t in (0.0, 0.3, 1.0):
        bezier = curve_point("bezier", t, controls)[0]
        expected = (1 - t) ** 2 * controls[0][0] + 2 * t * (1 - t) * controls[1][0] + t**2 * controls[2][0]
        torch.testing.assert_close(bezier, expected)
    torch.testing.assert_close(
        curve_point("chain", 0.75, controls)[0], 0.5 * (controls[1][0] + controls[2][0])
    )


def test_mean_and_arc_length_agree_on_a_chain_of_equal_pieces() -> None:
    from optland.landscape.paths import along

    L = two_units()
    controls = [vec(1.0, 1.0, 0.0, 0.0), vec(1.0, 0.0, 1.0, 0.0), vec(0.0, 0.0, 1.0, 1.0)]
    path = along(L, lambda t: curve_point("chain", t, controls), kind="chain", points=401)
    by_length = float(torch.trapezoid(path.loss, path.length) / path.length[-1])
    assert path.mean == pytest.approx(by_length, rel=1e-9)


def test_the_control_points_known_optimum_when_tied() -> None:
    """All control coordinates equal to c: Bezier c = 0.9227 has mean 5.81e-5 and maximum 1.40e-4."""
    from optland.landscape.paths import along

    L = two_units()
    controls = [vec(1.0, 1.0, 0.0, 0.0), vec(*[0.9227] * 4), vec(0.0, 0.0, 1.0, 1.0)]
    path = along(L, lambda t: curve_point("bezier", t, controls), kind="bezier", points=401)
    assert path.mean == pytest.approx(5.81e-5, rel=0.01)
    assert path.highest == pytest.approx(1.40e-4, rel=0.01)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def normed() -> tuple[Objective, list[Tensor]]:
    torch.manual_seed(3)
    x, y = torch.randn(24, 5).double(), torch.randint(0, 3, (24,))
    model = Normed().double()
    L = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x, y)])
    return L, [p.detach() + 0.5 * torch.randn_like(p) for p in model.parameters()]


def test_recalibrated_statistics_are_those_of_the_data() -> None:
    L, other = normed()
    before = {k: v.clone() for k, v in L.model.state_dict().items()}
    x = L.batches[0][0]
    with recalibrated(L, other):
        h = L.model.body[0](x)
        norm = L.model.body[1]
        torch.testing.assert_close(norm.running_mean, h.mean(0).detach())
        torch.testing.assert_close(norm.running_var, h.var(0, unbiased=True).detach())
        assert norm.momentum == 0.1 or norm.momentum is None
    assert L.model.body[1].momentum == 0.1
    assert all(torch.equal(v, before[k]) for k, v in L.model.state_dict().items())


@pytest.mark.parametrize("sizes", [(16, 3), (5, 5, 2), (1, 7)])
def test_recalibrated_statistics_weigh_batches_by_their_size(sizes: tuple[int, ...]) -> None:
    """Images, where a layer sees samples times positions, and a layer that is run twice in a forward."""
    torch.manual_seed(4)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            small = self.norm(self.conv(x[:, :, :4, :4]))
            return self.norm(self.conv(x)).mean((2, 3)) + small.mean((2, 3))

    model = Twice().double()
    batches = [torch.randn(n, 1, 6, 6).double() * n for n in sizes]
    L = Objective(model, lambda m, x: m(x).square().mean(), batches)
    other = [p.detach() + 0.3 for p in model.parameters()]
    means, variances, weights = [], [], []
    with recalibrated(L, other), torch.no_grad():
        for x in batches:
            for seen in (model.conv(x[:, :, :4, :4]), model.conv(x)):
                means.append(seen.mean((0, 2, 3)))
                variances.append(seen.var((0, 2, 3)))
                weights.append(float(seen.numel()))
        w = torch.tensor(weights).double() / sum(weights)
        torch.testing.assert_close(model.norm.running_mean, w @ torch.stack(means))
        torch.testing.assert_close(model.norm.running_var, w @ torch.stack(variances))
    assert model.norm.momentum == 0.1
    assert float(model.norm.running_mean.abs().max()) == 0.0


def test_a_path_recalibrates_and_differs_from_one_with_stale_statistics() -> None:
    L, other = normed()
    path = linear_path(L, other, num_points=5, num_refined=0)
    assert path.recalibrated
    stale = L.value(other)
    with recalibrated(L, other):
        fresh = L.value()
    assert path.ends[1] == pytest.approx(fresh)
    assert abs(fresh - stale) > 1e-3


def test_nothing_of_the_model_is_left_changed() -> None:
    L, other = normed()
    L.model.train()
    before = {k: v.clone() for k, v in L.model.state_dict().items()}
    rng = torch.get_rng_state()
    connect(L, other, num_steps=5)
    assert all(torch.equal(v, before[k]) for k, v in L.model.state_dict().items())
    assert L.model.training
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in L.params)


def test_checkpoints_may_be_modules_state_dicts_or_tensors() -> None:
    L, other = normed()
    twin = Normed().double()
    with torch.no_grad():
        for p, t in zip(twin.parameters(), other, strict=True):
            p.copy_(t)
    values = [
        linear_path(L, c, num_points=3, num_refined=0).ends[1] for c in (twin, twin.state_dict(), other)
    ]
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_bends": 0}, "num_bends 0"),
        ({"kind": "spline"}, "kind 'spline'"),
        ({"minimise": "min"}, "minimise 'min'"),
        ({"threshold": 1.0}, "threshold 1.0"),
        ({"lr": 0.0}, "lr 0.0"),
        ({"num_points": 2}, "num_points 2"),
        ({"batches": []}, "batches holds nothing"),
    ],
)
def test_bad_values_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        connect(two_units(), vec(0.0, 0.0, 1.0, 1.0), **{"num_steps": 2, **options})


def test_checkpoints_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'w' is \(2,\), the parameter \(4,\)"):
        linear_path(two_units(), vec(1.0, 2.0))
    with pytest.raises(ValueError, match="no 'w'"):
        linear_path(two_units(), {"v": torch.zeros(4)})
    with pytest.raises(ValueError, match="the same weights"):
        connect(two_units(), vec(1.0, 1.0, 0.0, 0.0), num_steps=2)
    assert math.isfinite(linear_path(two_units(), vec(0.0, 0.0, 1.0, 1.0)).mean)
