"""Slices: the analytic surface, one forward per point, nothing left behind, and a sweep that goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.archive import load
from optland.landscape import (
    Slice,
    checkpoint_plane,
    difference,
    line,
    plane,
    random_direction,
    ruggedness,
)
from optland.objective import Objective
from optland.problems import quadratic

A = torch.tensor([[3.0, 1.0, 0.0], [1.0, -2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
START = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)


def f(w: Tensor) -> float:
    return float(0.5 * w @ A @ w)


class Net(nn.Module):
    """With BatchNorm and dropout, so that something could be left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
        )
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.body(x)


def net(mode: Any = "eval") -> Objective:
    torch.manual_seed(0)
    x, y = torch.randn(20, 6), torch.randint(0, 3, (20,))
    batches = [(x[:12], y[:12]), (x[12:], y[12:])]
    return Objective(Net(), lambda m, b: F.cross_entropy(m(b[0]), b[1]), batches, mode=mode)


def test_a_line_and_a_plane_of_a_quadratic_are_the_analytic_ones() -> None:
    L = quadratic(A, START)
    u, v = (random_direction(L, normalise="none", seed=s) for s in (1, 2))
    along = line(L, u, distance=2.0, num_points=9)
    for t, loss in zip(along.coordinates[0].tolist(), along.loss.tolist(), strict=True):
        assert loss == pytest.approx(f(START + t * u.tensors[0]), abs=1e-12)
    over = plane(L, u, v, distance=1.5, num_points=5)
    for i, a in enumerate(over.coordinates[0].tolist()):
        for j, b in enumerate(over.coordinates[1].tolist()):
            expected = f(START + a * u.tensors[0] + b * v.tensors[0])
            assert float(over.loss[i, j]) == pytest.approx(expected, abs=1e-12)
    assert over.centre["loss"] == pytest.approx(f(START))
    for d, c in zip((u, v), over.curvature, strict=True):
        assert c == pytest.approx(float(d.tensors[0] @ A @ d.tensors[0]))
    assert over.num_forwards == 25
    assert over.cost_ge == pytest.approx(L.cost_ge - along.cost_ge)


def test_distances_are_told_in_units_of_the_weights() -> None:
    L = quadratic(A, START)
    found = line(L, random_direction(L, normalise="unit"), distance=2.0, num_points=3)
    assert found.weight_units[0][-1] == pytest.approx(2.0 / float(START.norm()))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_slice_leaves_no_trace_and_takes_one_forward_a_batch_and_point(mode: Any) -> None:
    L = net(mode)
    L.model.train()
    for p in L.params:
        p.grad = torch.ones_like(p)
    state = {k: v.clone() for k, v in L.model.state_dict().items()}
    rng = torch.get_rng_state()
    L.model.calls = 0
    found = line(L, random_direction(L), num_points=7, with_curvature=False)
    assert L.model.calls == 7 * 2
    assert found.num_forwards == 7
    assert all(torch.equal(v, state[k]) for k, v in L.model.state_dict().items())
    assert L.model.training
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in L.params if p.grad is not None)
    again = line(L, random_direction(L), num_points=7, with_curvature=False)
    assert torch.equal(found.loss, again.loss)
    assert found.loss[3] == pytest.approx(L.value(), rel=1e-6)


def test_every_point_is_what_a_model_with_these_weights_has() -> None:
    L = net()
    d = random_direction(L, seed=4)
    found = line(L, d, num_points=5, with_curvature=False)
    for t, loss in zip(found.coordinates[0].tolist(), found.loss.tolist(), strict=True):
        other = net()
        other.model.load_state_dict(L.model.state_dict())
        with torch.no_grad():
            for p, x in zip(other.params, d.tensors, strict=True):
                p.add_(t * x)
        assert loss == pytest.approx(other.value(), rel=1e-5)


def test_other_surfaces_are_drawn_over_the_same_points() -> None:
    L = net()

    def errors(m: nn.Module, b: Any) -> tuple[Tensor, int]:
        return (m(b[0]).argmax(1) != b[1]).float().sum(), len(b[1])

    error = Objective(L.model, errors, L.batches)
    found = line(L, random_direction(L), num_points=3, others={"error": error}, with_curvature=False)
    assert set(found.surfaces) == {"loss", "error"}
    with torch.no_grad():
        L.model.eval()
        wrong = sum(float((L.model(x).argmax(1) != y).float().sum()) for x, y in L.batches) / 20
    assert found.centre["error"] == pytest.approx(wrong)
    with pytest.raises(ValueError, match="'error' has another model"):
        line(L, random_direction(L), others={"error": net()})


def test_the_plane_through_three_checkpoints_meets_them() -> None:
    L = quadratic(A, START)
    second = [torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)]
    third = [torch.tensor([2.0, 2.0, -1.0], dtype=torch.float64)]
    found = checkpoint_plane(L, second, third, num_points=5)
    u, v = (d.tensors[0] for d in found.directions)
    assert abs(float(u @ v)) < 1e-12
    for name, w in (("first", START), ("second", second[0]), ("third", third[0])):
        x, y = found.markers[name]
        torch.testing.assert_close(START + x * u + y * v, w)
    with pytest.raises(ValueError, match="lie on a line"):
        checkpoint_plane(L, second, [2 * second[0] - START])


def test_what_is_not_finite_stays_so() -> None:
    L = net()
    with torch.no_grad():
        L.params[0][0, 0] = 1e20
    d = difference(L, [p.detach() + 1e30 for p in L.params])
    found = line(L, d, distance=1e8, num_points=5, with_curvature=False)
    assert 0 < found.nonfinite < 1
    assert math.isfinite(float(found.loss[2]))
    with torch.no_grad():
        L.params[0][0, 0] = math.nan
    with pytest.raises(ValueError, match="no point of the slice has a finite loss"):
        line(L, random_direction(L, normalise="none"), num_points=3, with_curvature=False)


def test_ruggedness_by_hand() -> None:
    """f(t) = t^2 is convex and smooth; |t - 1| and cos bend down where they should."""
    one = torch.ones(1, dtype=torch.float64)
    L = quadratic(2 * torch.eye(1, dtype=torch.float64), 0 * one + 1.0)
    smooth = line(L, random_direction(L, normalise="unit"), num_points=9)
    assert ruggedness(smooth).nonconvex == 0.0
    assert ruggedness(smooth).roughness < 1e-12

    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    wave = Objective(Wave(), lambda m, b: torch.cos(m.w).sum(), [torch.zeros(1)])
    found = line(
        wave,
        random_direction(wave, normalise="unit"),
        distance=2 * math.pi,
        num_points=33,
        with_curvature=False,
    )
    t = found.coordinates[0][1:-1]
    expected = float((torch.cos(t) > 1e-6).double().mean())
    assert ruggedness(found).nonconvex == pytest.approx(expected, abs=1e-9)


def test_an_interrupted_slice_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    L = net()
    d = random_direction(L, seed=2)
    whole = line(L, d, num_points=11, with_curvature=False)
    monkeypatch.setattr("optland.landscape.sweep.SAVE_EVERY", 0.0)
    L.model.calls = 0

    def stop(done: int, total: int, left: float) -> None:
        assert total == 11
        if done >= 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("optland.landscape.sweep.REPORT_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        line(L, d, num_points=11, with_curvature=False, partial=tmp_path / "part", progress=stop)
    assert L.model.calls == 8
    with pytest.raises(ValueError, match="belongs to another sweep"):
        line(L, random_direction(L, seed=3), num_points=11, with_curvature=False, partial=tmp_path / "part")
    resumed = line(L, d, num_points=11, with_curvature=False, partial=tmp_path / "part")
    assert L.model.calls == 22
    assert torch.equal(resumed.loss, whole.loss)
    assert list(tmp_path.iterdir()) == []


def test_a_slice_is_saved_and_loaded(tmp_path: Path) -> None:
    L = quadratic(A, START)
    found = plane(
        L, random_direction(L, normalise="unit", seed=1), random_direction(L, normalise="unit"), num_points=3
    )
    found.save(tmp_path / "slice")
    back = load(tmp_path / "slice", Slice)
    assert torch.equal(back.loss, found.loss)
    assert back.curvature == found.curvature
    assert back.directions[0].kind == found.directions[0].kind


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"distance": -1.0}, "distance -1.0"),
        ({"num_points": 4}, "num_points 4"),
        ({"num_points": 1}, "num_points 1"),
    ],
)
def test_bad_grids_are_refused(options: dict[str, Any], words: str) -> None:
    L = quadratic(A, START)
    with pytest.raises(ValueError, match=words):
        line(L, random_direction(L, normalise="unit"), **options)


def test_parallel_directions_and_foreign_ones_are_refused() -> None:
    L, other = quadratic(A, START), quadratic(torch.eye(2, dtype=torch.float64))
    d = random_direction(L, normalise="unit")
    with pytest.raises(ValueError, match="are parallel"):
        plane(L, d, d)
    with pytest.raises(ValueError, match="has other shapes than the trainable parameters"):
        line(other, d)


@pytest.mark.parametrize("norm", [False, True])
def test_points_together_are_the_points_one_by_one(norm: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(6)] if norm else []
    model = nn.Sequential(nn.Linear(4, 6), *middle, nn.ReLU(), nn.Linear(6, 3)).double().eval()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,))
    # Ragged batches, and a loss of (sum, count): both are weighted as in the loop.
    L = Objective(
        model,
        lambda m, b: (nn.functional.cross_entropy(m(b[0]), b[1], reduction="sum"), len(b[1])),
        [(x[:7], y[:7]), (x[7:], y[7:])],
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    d, e = (random_direction(L, seed=i) for i in (1, 2))
    single = plane(L, d, e, num_points=5)
    for together in (2, 7, 64):
        found = plane(L, d, e, num_points=5, num_together=together, partial=tmp_path / "part")
        torch.testing.assert_close(found.loss, single.loss, rtol=1e-12, atol=0)
        assert found.num_forwards == single.num_forwards
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(tmp_path.iterdir())


def test_what_cannot_run_together_is_refused_with_the_way_out() -> None:
    model = nn.Linear(3, 1)
    data = [torch.ones(2, 3)]
    reads = Objective(model, lambda m, x: m(x).mean() * (1 if m(x).sum().item() > 0 else 2), data)
    d = random_direction(reads)
    with pytest.raises(ValueError, match="num_together=1"):
        line(reads, d, num_points=3, num_together=2)
    train = Objective(model, lambda m, x: m(x).square().mean(), data, mode="train")
    with pytest.raises(ValueError, match="eval mode"):
        line(train, d, num_points=3, num_together=2)
    with pytest.raises(ValueError, match="together 0"):
        line(reads, d, num_points=3, num_together=0)
