"""Copies that lie together, and lengths that keep their digits."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from optland import vectors
from optland.context.modules import BufferSnapshot
from optland.flat import LARGE, FlatCopies, length, lie_together

SHAPES = [(3, 5), (), (LARGE + 7,), (40, 30), (0,), (7,), (2, LARGE)]


def draw(seed: int, kind: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(kind) for shape in SHAPES]


def exact(x: list[Tensor]) -> float:
    return math.sqrt(math.fsum(float((t.double() * t.double()).sum()) for t in x))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_length_is_that_of_float64(kind: torch.dtype) -> None:
    x = draw(0, kind)
    copies = FlatCopies()
    for found in (copies.norm(x), vectors.norm(x)):
        assert found is not None
        assert found.dtype is kind
        assert float(found) == pytest.approx(exact(x), rel=2e-7 if kind is torch.float32 else 1e-13)


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e-3, 1e17, 1e30])
@pytest.mark.parametrize("count", [10, 9_000, 3 * LARGE + 1])
def test_no_square_leaves_the_range_of_numbers(size: float, count: int) -> None:
    """In float32 the square of 1e-30 is 0 and that of 1e30 infinite."""
    x = torch.full((count,), size)
    wanted = pytest.approx(float(x[0]) * math.sqrt(count), rel=1e-6)
    assert length(x).item() == wanted
    assert float(vectors.norm([x])) == wanted
    assert float(FlatCopies().norm([x, torch.zeros(3)])) == wanted


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_seen_wherever_it_is(bad: float) -> None:
    for i, shape in enumerate(SHAPES):
        x = draw(1)
        if 0 in shape:
            continue
        x[i].view(-1)[-1] = bad
        found = FlatCopies().norm(x)
        assert found is not None
        assert not bool(found.isfinite())
        assert not bool(vectors.norm(x).isfinite())


def test_copies_are_bit_for_bit_and_in_the_same_memory_every_time() -> None:
    copies, views = FlatCopies(), []
    for seed in range(3):
        x = draw(seed)
        x[0][0, 0] = math.nan
        assert copies.norm(x) is not None  # in the same memory, before it is needed for the copies
        taken = copies.take(x)
        assert taken is not None
        for a, b in zip(taken, x, strict=True):
            assert a.shape == b.shape
            assert torch.equal(a.view(torch.int32), b.view(torch.int32))
            assert b.numel() == 0 or a.data_ptr() != b.data_ptr()
        views.append([t for t in taken if t.numel() < LARGE])
        copies.release()
    assert all(a is b for a, b in zip(views[0], views[2], strict=True))


def test_between_two_uses_there_is_no_memory() -> None:
    copies, x = FlatCopies(), [torch.ones(100), torch.ones(20, 20)]
    taken = copies.take(x)
    assert taken is not None
    assert taken[0].untyped_storage().nbytes() >= 500 * 4
    copies.release()
    assert taken[0].untyped_storage().nbytes() == 0
    assert float(copies.norm(x)) == pytest.approx(math.sqrt(500))
    assert taken[0].untyped_storage().nbytes() == 0


def test_while_there_are_copies_in_it_nothing_is_written_over_them() -> None:
    copies, x = FlatCopies(), [torch.ones(5)]
    taken = copies.take(x)
    assert taken is not None
    assert copies.norm([torch.zeros(5)]) is None
    assert copies.take([torch.zeros(5)]) is None
    assert taken[0].tolist() == [1.0] * 5


def test_other_shapes_and_types_are_laid_out_anew() -> None:
    copies = FlatCopies()
    for x in ([torch.ones(4)], [torch.ones(9)], [torch.ones(9).double()], [torch.ones(3), torch.ones(6)]):
        taken = copies.take(x)
        assert taken is not None
        assert [t.tolist() for t in taken] == [t.tolist() for t in x]
        assert taken[0].dtype is x[0].dtype
        copies.release()


@pytest.mark.parametrize(
    "x",
    [
        [],
        [torch.ones(2), torch.ones(2).double()],
        [torch.ones(2).half()],
        [torch.ones(2).to_sparse()],
        [torch.ones(2, device="meta")],
    ],
    ids=["none", "two types", "half", "sparse", "another device"],
)
def test_others_do_not_lie_together(x: list[Tensor]) -> None:
    assert not lie_together(x)
    assert FlatCopies().take(x) is None
    assert FlatCopies().norm(x) is None


def test_memory_that_was_made_in_inference_mode_serves_outside_of_it() -> None:
    copies = FlatCopies()
    with torch.inference_mode():
        assert copies.norm([torch.ones(4)]) is not None
    with torch.no_grad():
        assert float(copies.norm([nn.Parameter(torch.ones(4))])) == 2.0


def test_a_copy_of_the_owner_has_memory_of_its_own() -> None:
    copies = FlatCopies()
    taken = copies.take([torch.ones(4)])
    other = copy.deepcopy(copies)
    assert float(other.norm([torch.zeros(4)])) == 0.0
    assert taken is not None
    assert taken[0].tolist() == [1.0] * 4


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.ones(2))
        self.register_buffer("nothing", None)


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for b in model.buffers():
            b.add_(1)


@pytest.mark.parametrize("between", ["nothing", "data", "replaced", "removed", "another"])
def test_a_snapshot_that_takes_over_the_tensors_of_the_last_one_is_as_good(between: str) -> None:
    """Also where a buffer has got other memory since, was replaced, or there is one more or less."""
    model = Buffered()
    last = None
    for _ in range(3):
        change(model)
        if between == "data":
            model.norm.running_mean.data = torch.full((3,), 5.0)
        elif between == "replaced":
            model.mask = torch.full((2,), 7.0)
        elif between == "removed" and "mask" in model._buffers:
            del model.mask
        elif between == "another":
            model.register_buffer(f"new{len(model._buffers)}", torch.zeros(1))
        wanted = {name: b.clone() for name, b in model.named_buffers()}
        owners = dict(model.named_buffers())
        snapshot = BufferSnapshot(model, last)
        change(model)
        model._buffers["mask"] = torch.zeros(9)
        snapshot.restore()
        found = {name: b for name, b in model.named_buffers() if name in wanted}
        assert found.keys() == wanted.keys()
        for name, b in found.items():
            assert torch.equal(b, wanted[name]), name
            assert b is owners[name]
        if "mask" not in wanted:
            del model._buffers["mask"]
        last = snapshot
