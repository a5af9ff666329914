"""Batches of any type: counted, cut and moved with their structure kept."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from optland.batches import num_samples, split, to_device


@dataclass
class Example:
    x: Tensor
    name: str
    nested: dict[str, Any]


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


X, Y = torch.arange(10.0).reshape(5, 2), torch.arange(5)
BATCHES: dict[str, Any] = {
    "tensor": X,
    "tuple": (X, Y),
    "list": [X, Y],
    "dict": {"x": X, "y": Y},
    "ordered dict": OrderedDict(x=X, y=Y),
    "user dict": UserDict(x=X, y=Y),
    "dataclass": Example(X, "five", {"y": Y}),
    "named tuple": Pair(X, Y),
    "nested": {"in": (X, {"deep": [X]}), "note": "text", "number": 3, "scalar": torch.tensor(2.0)},
}


def leaves(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, dict | UserDict):
        return [leaf for value in batch.values() for leaf in leaves(value)]
    if isinstance(batch, Example):
        return leaves([batch.x, batch.nested])
    return [leaf for value in batch for leaf in leaves(value)] if isinstance(batch, list | tuple) else []


@pytest.mark.parametrize("kind", sorted(BATCHES))
def test_every_type_is_counted_and_cut(kind: str) -> None:
    batch = BATCHES[kind]
    assert num_samples(batch) == 5
    pieces = split(batch, 2)
    assert [num_samples(piece) for piece in pieces] == [3, 2]
    assert all(type(piece) is type(batch) for piece in pieces)
    for whole, first, second in zip(leaves(batch), *map(leaves, pieces), strict=True):
        if whole.ndim == 0:
            assert torch.equal(first, whole)  # what is not per sample goes whole into each piece
        else:
            assert torch.equal(torch.cat([first, second]), whole)


@pytest.mark.parametrize("kind", sorted(BATCHES))
def test_every_type_is_moved(kind: str) -> None:
    moved = to_device(BATCHES[kind], "meta")
    assert type(moved) is type(BATCHES[kind])
    assert {t.device.type for t in leaves(moved)} == {"meta"}
    assert [t.shape for t in leaves(moved)] == [t.shape for t in leaves(BATCHES[kind])]


def test_what_is_not_a_tensor_is_kept() -> None:
    piece = split(BATCHES["nested"], 5)[-1]
    assert (piece["note"], piece["number"]) == ("text", 3)
    assert split(BATCHES["dataclass"], 2)[0].name == "five"


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_pieces_are_contiguous_and_differ_by_at_most_one(count: int) -> None:
    for parts in range(1, count + 1):
        pieces = split(torch.arange(count), parts)
        assert torch.equal(torch.cat(pieces), torch.arange(count))
        sizes = [len(piece) for piece in pieces]
        assert len(sizes) == parts
        assert max(sizes) - min(sizes) <= 1


def test_pieces_are_views() -> None:
    assert split(X, 2)[0].data_ptr() == X.data_ptr()


@pytest.mark.parametrize("parts", [0, 6])
def test_impossible_cuts_are_refused(parts: int) -> None:
    with pytest.raises(ValueError, match=f"5 samples into {parts} parts; use 1 to 5"):
        split(X, parts)


@pytest.mark.parametrize("batch", ["text", 3, None, {"a": "b"}, torch.tensor(1.0)])
def test_what_cannot_be_counted_names_the_way_out(batch: Any) -> None:
    with pytest.raises(TypeError, match=r"num_samples="):
        num_samples(batch)
