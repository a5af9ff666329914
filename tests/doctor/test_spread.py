"""Quantiles of the gradient by layer: against NumPy's, ever more rarely, and in the rows of a pilot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from doctor.test_live import train
from torch import nn

from optland.doctor.spread import QUANTILES, Spread, gradient_key


def layer(size: int, seed: int) -> nn.Parameter:
    weight = nn.Parameter(torch.zeros(size))
    weight.grad = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return weight


def test_the_quantiles_are_numpys_where_all_entries_are_seen() -> None:
    spread, weight = Spread(), layer(401, 0)
    spread.look(1, ["a"], [weight], scale=4.0)
    row = spread.row()
    assert weight.grad is not None
    for q in QUANTILES:
        expected = np.quantile(np.abs(weight.grad.numpy()), q, method="nearest")
        assert row[gradient_key("a", q)] == pytest.approx(expected / 4, rel=1e-6)


def test_it_looks_ever_more_rarely_at_six_layers() -> None:
    spread, seen = Spread(), []
    layers = [layer(8, i) for i in range(20)]
    for step in range(1, 1001):
        spread.look(step, [str(i) for i in range(20)], layers)
        if row := spread.row():
            seen.append(step)
            assert [key.partition(" ")[2] for key in row][:: len(QUANTILES)] == [
                "0",
                "4",
                "8",
                "11",
                "15",
                "19",
            ]
    assert seen[:6] == [1, 2, 3, 4, 5, 7]
    assert len(seen) < 32


def test_a_gradient_that_is_missing_or_sparse_is_left_out() -> None:
    spread, frozen, sparse = Spread(), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3, 2))
    sparse.grad = torch.sparse_coo_tensor(
        torch.tensor([[1]]), torch.ones(1, 2), (3, 2), check_invariants=True
    )
    spread.look(1, ["frozen", "sparse"], [frozen, sparse])
    assert spread.row() == {}


def test_a_pilot_keeps_when_it_looks_again() -> None:
    pilot = train(30)
    state = pilot.live.state_dict()
    assert state["spread"] == pilot.live.spread.next > 30
