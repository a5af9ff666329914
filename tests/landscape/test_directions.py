"""Directions: filter normalisation by its definition, in every layer type, and what made them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from optland.curvature import hessian, lanczos
from optland.landscape import (
    difference,
    eigenvector_direction,
    line,
    random_direction,
    trajectory_plane,
)
from optland.landscape.directions import cosine, filter_normalised, layer_normalised
from optland.objective import Objective
from optland.problems import quadratic


class Many(nn.Module):
    """A layer of every kind that has its own notion of a filter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.up = nn.ConvTranspose2d(3, 4, 2)
        self.norm = nn.BatchNorm2d(4)
        self.embed = nn.Embedding(5, 6)
        self.attend = nn.MultiheadAttention(6, 2)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.up(self.conv(x))).mean((2, 3))
        e = self.embed(torch.arange(5))[None]
        z, _ = self.attend(e, e, e)
        return self.out(z).sum() + y.sum(1)


def many() -> Objective:
    torch.manual_seed(0)
    model = Many().double()
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    return Objective(model, lambda m, b: m(b).square().mean(), [x])


def filters(name: str, t: Tensor) -> Tensor:
    """The norm of every filter, written out by layer: an oracle that knows the model."""
    if t.ndim < 2 or name.startswith("norm"):
        return t.new_zeros(1)
    if name == "up.weight":  # in, out, height, width
        return torch.stack([t[:, j].norm() for j in range(t.shape[1])])
    return torch.stack([row.norm() for row in t])


def test_every_filter_gets_the_norm_of_its_weights() -> None:
    L = many()
    d = random_direction(L, normalise="filter", seed=3)
    for name, t, p in zip(L.names, d.tensors, L.params, strict=True):
        expected = filters(name, p.detach())
        if p.ndim < 2 or name.startswith("norm"):
            assert torch.count_nonzero(t) == 0, name
        else:
            torch.testing.assert_close(filters(name, t), expected, rtol=1e-12, atol=1e-12)


def test_the_norm_of_the_weights_multiplies() -> None:
    """w -> 3 w gives d -> 3 d; the misprint with both norms under the bar gives d / 3."""
    L = many()
    d = random_direction(L, normalise="filter", seed=3)
    with torch.no_grad():
        for p in L.params:
            p.mul_(3.0)
    scaled = random_direction(L, normalise="filter", seed=3)
    for a, b in zip(d.tensors, scaled.tensors, strict=True):
        torch.testing.assert_close(3.0 * a, b)


def test_a_filter_of_zeros_does_not_move() -> None:
    L = many()
    with torch.no_grad():
        L.params[L.names.index("conv.weight")][1] = 0.0
    d = random_direction(L, normalise="filter")
    moved = d.tensors[L.names.index("conv.weight")]
    assert torch.count_nonzero(moved[1]) == 0
    assert torch.isfinite(moved).all()


def test_the_length_is_that_of_the_moved_weights() -> None:
    """||d||^2 = sum_f ||w_f||^2 exactly, for filters and for layers."""
    L = many()
    moved = sum(
        float(p.detach().square().sum())
        for n, p in zip(L.names, L.params, strict=True)
        if p.ndim >= 2 and not n.startswith("norm")
    )
    for normalise in ("filter", "layer"):
        assert random_direction(L, normalise=normalise).norm ** 2 == pytest.approx(moved)


def test_layers_get_the_norm_of_their_weights() -> None:
    L = many()
    d = layer_normalised(L, [torch.ones_like(p) for p in L.params])
    for name, t, p in zip(L.names, d, L.params, strict=True):
        frozen = p.ndim < 2 or name.startswith("norm")
        assert float(t.norm()) == pytest.approx(0.0 if frozen else float(p.detach().norm())), name


def test_random_directions_have_no_mean() -> None:
    """A known defect elsewhere: entries drawn from [0, 1] give a cosine of 0.87 with the vector of ones."""
    L = quadratic(torch.eye(400, dtype=torch.float64))
    ones = [torch.ones(400, dtype=torch.float64)]
    cosines = [cosine(random_direction(L, normalise="unit", seed=s), ones) for s in range(20)]
    assert abs(sum(cosines) / 20) < 4 / math.sqrt(400 * 20)


def test_a_direction_is_its_seeds_whatever_the_global_state() -> None:
    L = many()
    a = random_direction(L, seed=5)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    b = random_direction(L, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))
    assert abs(cosine(a, random_direction(L, seed=6))) < 0.5


def test_difference() -> None:
    A = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    L = quadratic(A, torch.tensor([2.0, -1.0], dtype=torch.float64))
    to = difference(L, [torch.tensor([5.0, 3.0], dtype=torch.float64)])
    assert to.norm == pytest.approx(5.0)
    assert to.weight_norm == pytest.approx(math.sqrt(5.0))


def test_a_trajectory_in_a_plane_is_found_again() -> None:
    """Checkpoints on a known two-dimensional curve in 50 dimensions: the plane, the places and all of the variance."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(50, 2, generator=generator, dtype=torch.float64))
    L = quadratic(torch.eye(50, dtype=torch.float64))
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    curve = torch.stack([3 * (1 - t), (1 - t) * t], dim=1)
    checkpoints = [[basis @ c] for c in curve]
    found = trajectory_plane(L, checkpoints)
    assert sum(found.explained) == pytest.approx(1.0)
    u, v = (d.tensors[0] for d in found.directions)
    assert float(u @ v) == pytest.approx(0.0, abs=1e-9)
    for place, w in zip(found.coordinates, checkpoints, strict=True):
        torch.testing.assert_close(place[0] * u + place[1] * v, w[0] - checkpoints[-1][0], atol=1e-9, rtol=0)


def test_what_cannot_be_a_direction_is_refused() -> None:
    L = quadratic(torch.eye(3, dtype=torch.float64))
    zeros = [torch.zeros(3, dtype=torch.float64)]
    with pytest.raises(ValueError, match=r"is \(4,\), the parameter \(3,\)"):
        difference(L, [torch.zeros(4, dtype=torch.float64)])
    with pytest.raises(ValueError, match=r"norm 0\.0"):
        difference(L, [p.detach().clone() for p in L.params])
    with pytest.raises(ValueError, match="neuron"):
        random_direction(L, normalise="neuron")
    with pytest.raises(ValueError, match=r"norm 0\.0"):
        random_direction(L, normalise="filter")  # all its weights are one-dimensional
    with pytest.raises(ValueError, match="at least 3 checkpoints, got 2"):
        trajectory_plane(L, [zeros, zeros])
    assert filter_normalised(L, zeros)[0].tolist() == [0.0, 0.0, 0.0]


def test_a_weight_that_is_not_a_number_makes_no_direction() -> None:
    net = nn.Linear(3, 2)
    with torch.no_grad():
        net.weight[0, 0] = torch.nan
    L = Objective(net, lambda m, x: m(x).square().mean(), [torch.ones(4, 3)])
    with pytest.raises(ValueError, match="norm nan"):
        random_direction(L)


def test_packed_attention_weights_are_normalised_by_row() -> None:
    attention = nn.MultiheadAttention(8, 2)
    L = Objective(attention, lambda m, x: m(x, x, x)[0].square().mean(), [torch.ones(3, 4, 8)])
    named = dict(zip(L.names, random_direction(L).tensors, strict=True))
    packed = named["in_proj_weight"]
    assert packed.shape == (24, 8)
    torch.testing.assert_close(packed.norm(dim=1), attention.in_proj_weight.detach().norm(dim=1))
    assert float(named["in_proj_bias"].abs().max()) == 0.0


def test_along_a_realised_update_the_slice_begins_at_one() -> None:
    L = quadratic(torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)))
    before = [p.detach().clone() for p in L.params]
    optimizer = torch.optim.AdamW(L.model.parameters(), lr=0.1)
    loss_before = L.value()
    L.model.weight.grad = L.gradient()[0]
    optimizer.step()
    found = line(L, difference(L, before), num_points=3)
    assert found.loss[1] == L.value()
    assert found.loss[2] == pytest.approx(loss_before, rel=1e-12)


def test_along_an_eigenvector_the_slice_bends_by_its_eigenvalue() -> None:
    A = torch.diag(torch.tensor([5.0, 1.0, -2.0], dtype=torch.float64))
    L = quadratic(A, torch.zeros(3, dtype=torch.float64))
    with hessian(L) as H:
        spectrum = lanczos(H, 1, ends="both")
    for index, value in ((0, 5.0), (-1, -2.0)):
        found = line(L, eigenvector_direction(L, spectrum, index), num_points=3)
        assert found.curvature[0] == pytest.approx(value)
        assert found.loss[0] == pytest.approx(value / 2)
    with pytest.raises(ValueError, match="index 2"):
        eigenvector_direction(L, spectrum, 2)


def test_a_direction_of_no_length_has_no_angle() -> None:
    with pytest.raises(ValueError, match="length 0"):
        cosine([torch.zeros(2)], [torch.ones(2)])
