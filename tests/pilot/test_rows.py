"""Lengths and moves of many tensors whose small ones lie together."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from optland.flat import LARGE
from optland.pilot.measure import WeightsBefore
from optland.pilot.rows import Moves, Norms

Shapes = list[tuple[int, ...]]

FEW: Shapes = [(300,), (4, 5), (LARGE + 3,), (), (128,), (129,), (2, LARGE), (0,), (9 * LARGE + 1,)]
"""Each is handled by itself; the last one piece by piece."""

MANY: Shapes = FEW + [(n,) for n in range(1, 31)]
"""Small ones lie together."""


@pytest.fixture(params=[FEW, MANY], ids=["few", "many"])
def shapes(request: pytest.FixtureRequest) -> Shapes:
    found: Shapes = request.param
    return found


def draw(seed: int, shapes: Shapes, kind: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(kind) for shape in shapes]


def literal(x: list[Tensor]) -> list[float]:
    return [float(t.double().square().sum().sqrt()) for t in x]


def moved(shapes: Shapes, kind: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor], Moves]:
    """Parameters after a move, as they were before it, and what has measured them."""
    params: list[Tensor] = [nn.Parameter(t) for t in draw(0, shapes, kind)]
    moves = Moves(params)
    with torch.no_grad():
        moves.take()
        before = [p.detach().clone() for p in params]
        for p, d in zip(params, draw(1, shapes, kind), strict=True):
            p.add_(1e-3 * d)
    return params, before, moves


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_each_has_its_length_and_the_memory_is_given_back(kind: torch.dtype, shapes: Shapes) -> None:
    norms = Norms(draw(0, shapes, kind))
    for seed in (0, 1):
        x = draw(seed, shapes, kind)
        assert norms.fits(x)
        assert norms(x) == pytest.approx(literal(x), rel=1e-5 if kind is torch.float32 else 1e-13)
    assert norms._memory.flat.untyped_storage().nbytes() == 0
    assert not norms.fits(x[:-1])
    assert not norms.fits([t.half() for t in x])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_told_of_its_own_tensor_alone(bad: float, shapes: Shapes) -> None:
    for i, shape in enumerate(shapes):
        if 0 in shape:
            continue
        x = draw(0, shapes)
        x[i].view(-1)[0] = bad
        assert [math.isfinite(n) for n in Norms(x)(x)] == [j != i for j in range(len(x))]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_moves_and_weights_have_their_lengths(kind: torch.dtype, shapes: Shapes) -> None:
    params, before, moves = moved(shapes, kind)
    with torch.no_grad():
        found, sizes = moves.measure()
    order = [next(i for i, q in enumerate(params) if q is p) for p in moves.order]
    ds = literal([p.detach() - w for p, w in zip(params, before, strict=True)])
    ws = literal(before)
    assert found == pytest.approx([ds[i] for i in order], rel=1e-5)
    assert sizes == pytest.approx([ws[i] for i in order], rel=1e-5)
    assert all(torch.equal(c, w) for c, w in zip(moves.copies, before, strict=True))


@pytest.mark.parametrize("factor", [1e-6, 0.3, 0.7, 1.0, 1.7])
def test_a_move_gets_its_factor_to_the_last_digits(factor: float, shapes: Shapes) -> None:
    """Also a small one, as near the end of a schedule: c + f d and never (1 - f)."""
    params, before, moves = moved(shapes, torch.float64)
    after = [p.detach().clone() for p in params]
    with torch.no_grad():
        moves.measure()
        moves.rescale(factor)
    moves.forget()
    for p, w, a in zip(params, before, after, strict=True):
        torch.testing.assert_close(p.detach() - w, factor * (a - w), rtol=1e-9, atol=1e-15)


def test_with_no_factor_all_are_as_they_were_bit_for_bit(shapes: Shapes) -> None:
    params, before, moves = moved(shapes)
    with torch.no_grad():
        for p in params:
            p.fill_(math.nan)
        moves.measure()
        moves.rescale(0.0)
    assert all(torch.equal(p, w) for p, w in zip(params, before, strict=True))


def test_weights_are_copied_once_where_a_closure_has_raised_in_between() -> None:
    """The first optimizer of two, and the second; then the update is made after all."""
    a, b = ([nn.Parameter(torch.full((2,), float(k)))] for k in (1, 2))
    before = WeightsBefore()
    for params in (a, b, b, a):
        before.take(list(params))
    assert [len(before.params), len(before.copies), len(before.moves)] == [2, 2, 2]
    assert [c.tolist() for c in before.copies] == [[1.0, 1.0], [2.0, 2.0]]


def test_one_of_two_optimizers_may_hold_others_than_plain_weights() -> None:
    a = [nn.Parameter(torch.ones(2))]
    b = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2).double())]
    for order in ((a, b), (b, a)):
        before = WeightsBefore()
        for params in order:
            before.take(list(params))
        assert before.moves == []
        assert len(before.params) == 3
