"""How long an update is relative to the weights, and another length for it: against sums written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optland.pilot.length import Lengths
from optland.pilot.measure import Layout, WeightsBefore, norms, relative_speed


def literal(before: list[Tensor], moved: list[Tensor]) -> tuple[float, float]:
    """Both measures, entry by entry, in float64."""
    pairs = [
        (w.double().flatten().tolist(), d.double().flatten().tolist())
        for w, d in zip(before, moved, strict=True)
    ]
    counted = [pair for pair, w in zip(pairs, before, strict=True) if w.ndim >= 2] or pairs
    entries = [x for w, _ in counted for x in w]
    rms = math.sqrt(sum(x * x for x in entries) / len(entries)) or 1.0
    total = 0.0
    for w, d in counted:
        size = max(math.sqrt(sum(x * x for x in w)), 0.1 * rms * math.sqrt(len(w)))
        total += sum(x * x for x in d) / size**2
    every_w = sum(x * x for w, _ in pairs for x in w)
    every_d = sum(x * x for _, d in pairs for x in d)
    return math.sqrt(total), math.sqrt(every_d / max(every_w, 1e-60))


SHAPES: dict[str, list[tuple[int, ...]]] = {
    "a net": [(8, 6), (8,), (3, 8), (3,)], "a convolution": [(4, 3, 3, 3), (4,)], "vectors alone": [(5,), (7,)],
    "one": [(6, 6)],
}  # fmt: skip


def update(
    shapes: Any, *, zero: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[WeightsBefore, Any, Any]:
    """Weights that were copied and have moved since."""
    draw = torch.Generator().manual_seed(0)
    params: list[Tensor] = [nn.Parameter(torch.randn(s, generator=draw).to(dtype)) for s in shapes]
    if zero is not None:
        params[zero].data.zero_()
    before = WeightsBefore()
    before.take(params)
    moved = [0.01 * torch.randn(s, generator=draw).to(dtype) for s in shapes]
    weights = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, d in zip(params, moved, strict=True):
            p.add_(d)
    return before, weights, [p.detach() - w for p, w in zip(params, weights, strict=True)]


@pytest.mark.parametrize("zero", [None, 0])
@pytest.mark.parametrize("name", SHAPES)
def test_the_length_is_the_sum_that_the_docstring_says(name: str, zero: int | None) -> None:
    """A tensor that starts at zero counts by a tenth of the root-mean-square weight."""
    before, weights, moved = update(SHAPES[name], zero=zero)
    after = [p.detach().clone() for p in before.params]
    assert Lengths().measure(before) == pytest.approx(literal(weights, moved), rel=1e-5)
    assert all(torch.equal(p, a) for p, a in zip(before.params, after, strict=True)), (
        "measuring moves nothing"
    )


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_the_same_where_nothing_may_wait_for_the_device(name: str) -> None:
    before, weights, moved = update(SHAPES[name], dtype=torch.float64)
    layout = Layout(before.params)
    layout.on_host = False
    found = relative_speed(norms([*moved, *weights]), layout)
    assert all(isinstance(x, Tensor) for x in found)
    assert [float(x) for x in found] == pytest.approx(literal(weights, moved), rel=1e-10)


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_an_update_is_given_the_length_that_is_asked_for(name: str, on_host: bool) -> None:
    before, weights, moved = update(SHAPES[name], dtype=torch.float64)
    lengths = Lengths()
    lengths._layout = Layout(before.params)
    lengths._layout.on_host = on_host
    speed, relative = literal(weights, moved)
    found = lengths.rescale(before, target=0.02, trial=0.5, most=math.inf)
    after = [p.detach() for p in before.params]
    for w, d, v in zip(weights, moved, after, strict=True):
        torch.testing.assert_close(v, w + 0.02 / speed * d, rtol=1e-12, atol=1e-14)
    expected = (speed / 0.5, relative * 0.02 / speed, 0.5 * 0.02 / speed)
    assert [float(x) for x in found] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("on_host", [True, False])
def test_no_rate_passes_its_cap(on_host: bool) -> None:
    before, weights, moved = update(SHAPES["a net"], dtype=torch.float64)
    lengths = Lengths()
    lengths._layout = Layout(before.params)
    lengths._layout.on_host = on_host
    _, _, applied = lengths.rescale(before, target=10.0, trial=0.5, most=0.1)
    assert float(applied) == pytest.approx(0.1)
    for p, w, d in zip(before.params, weights, moved, strict=True):
        torch.testing.assert_close(p.detach(), w + 0.2 * d, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("target", [0.0, 0.02])
@pytest.mark.parametrize("kind", ["nan", "inf", "none"])
def test_an_update_without_a_length_is_taken_back_bit_for_bit(kind: str, target: float) -> None:
    before, weights, moved = update(SHAPES["a net"])
    with torch.no_grad():
        for p, w in zip(before.params, weights, strict=True):
            if kind == "none":
                p.copy_(w)
            else:
                p[0] = float(kind)
    _, _, applied = Lengths().rescale(before, target=target, trial=0.5, most=math.inf)
    assert float(applied) == 0.0
    assert all(torch.equal(p, w) for p, w in zip(before.params, weights, strict=True))
    assert len(moved) == 4


def test_parameters_of_several_types_are_rescaled_too() -> None:
    draw = torch.Generator().manual_seed(0)
    params: list[Tensor] = [
        nn.Parameter(torch.randn(4, 3, generator=draw)), nn.Parameter(torch.randn(2, 2, generator=draw).double()),
    ]  # fmt: skip
    before, weights = WeightsBefore(), [p.detach().clone() for p in params]
    before.take(params)
    with torch.no_grad():
        for p in params:
            p.add_(0.1)
    Lengths().rescale(before, target=0.03, trial=1.0, most=math.inf)
    moved = [p.detach() - w for p, w in zip(params, weights, strict=True)]
    assert literal(weights, moved)[0] == pytest.approx(0.03, rel=1e-5)
    assert [p.dtype for p in params] == [torch.float32, torch.float64]


# ---------------------------------------------------------------- the copies


def test_copies_are_made_in_memory_that_is_kept() -> None:
    params: list[Tensor] = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))]
    before, pointers = WeightsBefore(), []
    for value in (1.0, 2.0, 3.0):
        for p in params:
            p.data.fill_(value)
        before.take(params)
        for p in params:
            p.data.fill_(-1.0)
        assert all(bool((c == value).all()) for c in before.copies)
        pointers.append([c.data_ptr() for c in before.copies])
        before.forget()
        assert not before
    assert pointers[0] == pointers[1] == pointers[2]


def test_those_of_several_optimizers_and_of_layers_that_come_and_go_are_found_by_parameter() -> None:
    a, b, c = (nn.Parameter(torch.full((2,), float(k))) for k in range(3))
    before = WeightsBefore()
    before.take([b])
    before.take([a])
    found = before.of([a, b, c])
    assert [None if x is None else x.tolist() for x in found] == [[0.0, 0.0], [1.0, 1.0], None]
    before.forget()
    before.take([a, c])
    found = before.of([a, b, c])
    assert [None if x is None else x.tolist() for x in found] == [[0.0, 0.0], None, [2.0, 2.0]]
    before.release()
    assert before.of([a]) == [None]


# ---------------------------------------------------------------- norms


def test_norms_are_taken_in_float32_or_better() -> None:
    half = torch.full((100,), 300.0, dtype=torch.float16)  # a square of it overflows
    assert norms([half, half]).tolist() == pytest.approx([3000.0, 3000.0])
    double = torch.full((100,), 1e-200, dtype=torch.float64)
    assert norms([double]).tolist() == pytest.approx([1e-199])


def test_norms_of_sparse_and_mixed_gradients() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 3, 1])).sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad.is_sparse
    dense = torch.tensor([3.0, 4.0], dtype=torch.float64)
    # Row 1 was used twice: its entries are 2, and those of row 3 are 1.
    assert norms([embedding.weight.grad, dense]).tolist() == pytest.approx([math.sqrt(10.0), 5.0])
    assert norms([]).tolist() == []
