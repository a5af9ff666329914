"""Ends of a run compared on the same samples."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.landscape import DamageSpec, pruned, shaken
from optland.train.experiments.ends import End, choose, end_of


def end(name: str, val: Tensor) -> End:
    unused: Any = None
    return End(name, 0.0, unused, val, val)


def test_the_gain_is_that_of_pairs() -> None:
    """A shift of 0.1 with a spread of 0.02 between samples, on losses that differ by 1 among themselves."""
    losses = torch.linspace(0.0, 1.0, 50, dtype=torch.float64)
    noise = 0.02 * torch.sin(torch.arange(50, dtype=torch.float64))
    gain, error = end("a", losses).beats(end("b", losses + 0.1 + noise), "val")
    assert gain == pytest.approx(0.1 + float(noise.mean()))
    assert error == pytest.approx(float(noise.std()) / math.sqrt(50))


def test_the_first_is_taken_where_the_difference_is_not_resolved() -> None:
    losses = torch.rand(100, generator=torch.Generator().manual_seed(0))
    first, clear = end("first", losses), end("clear", losses - 0.1)
    vague = end("vague", losses + torch.where(torch.arange(100) == 0, -1.0, 0.0))
    assert choose([first, clear])[0] is clear
    found, words = choose([first, vague])
    assert found is first
    assert "undecided" in words
    assert choose([clear, first])[1].startswith("clear is taken: none is better")
    dead = end("dead", losses * math.nan)
    assert choose([first, dead])[0] is first
    assert choose([dead, first]) == (first, "first is taken: the validation loss of dead is not finite")


def test_an_end_is_measured_as_by_hand() -> None:
    generator = torch.Generator().manual_seed(1)
    batches = {s: (torch.randn(30, 5, generator=generator), torch.arange(30) % 3) for s in ("val", "test")}

    class Data:
        def size(self, split: str) -> int:
            return 30

        def sample(self, split: str, num: int, seed: int = 0) -> Any:
            return batches[split]

    net = nn.Linear(5, 3)
    data: Any = Data()

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    for spec, sets in (
        ("prune=0.5", [pruned(net, 0.5)]),
        ("noise=0.3", [shaken(net, 0.3, seed=s) for s in range(4)]),
    ):
        found = end_of("one", net, loss_fn, data, DamageSpec.parse(spec))
        x, y = batches["test"]
        by_hand = [F.cross_entropy(x @ w["weight"].T + net.bias, y, reduction="none") for w in sets]
        assert torch.allclose(found.test, torch.stack(by_hand).mean(0).detach(), atol=1e-6)
        assert found.clean == pytest.approx(loss_fn(net, (x, y)).item(), rel=1e-6)
        assert found.told.measured.value == pytest.approx(
            float(found.val.mean()) - loss_fn(net, batches["val"]).item(), abs=1e-6
        )
