"""Damages against literal loops over channels and weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from optland.landscape import damaged, pruned, rounded, shaken
from optland.landscape.damages import rounding_steps


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ConvTranspose1d(5, 3, 2),
        nn.Conv1d(3, 2, 2),
    )  # fmt: skip


MATRICES = {"0.weight": 0, "2.weight": 0, "4.weight": 1, "5.weight": 0}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounded_is_the_nearest_value_of_each_channels_own_grid(bits: int) -> None:
    model = net()
    found = rounded(model, bits)
    assert set(found) == set(MATRICES)  # biases and gains stay
    levels = 2 ** (bits - 1) - 1
    for name, axis in MATRICES.items():
        weights = model.get_parameter(name).detach().movedim(axis, 0)
        for channel, got in zip(weights, found[name].movedim(axis, 0), strict=True):
            step = max(abs(float(w)) for w in channel.flatten()) / levels
            grid = [k * step for k in range(-levels, levels + 1)]
            for w, v in zip(channel.flatten().tolist(), got.flatten().tolist(), strict=True):
                assert v == pytest.approx(min(grid, key=lambda g: abs(g - w)), abs=1e-6 * levels * step)
            assert len(set(got.flatten().tolist())) <= 2**bits - 1


def test_bits_by_name_and_a_channel_of_zeros() -> None:
    model = net()
    model[2].weight.data[1] = 0.0
    found = rounded(model, {"2.weight": 2, "5.weight": 16})
    assert set(found) == {"2.weight", "5.weight"}
    assert found["2.weight"][1].tolist() == [0.0] * 4
    assert torch.allclose(found["5.weight"], model[5].weight, atol=1e-4)


def test_a_step_is_noise_of_a_twelfth_of_its_square() -> None:
    """Of weights spread evenly; the variance of the mean of n squares of uniform errors is s^4 / (180 n)."""
    layer = nn.Linear(2000, 8, bias=False)
    layer.weight.data.uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(0))
    d = rounded(layer, 4)["weight"] - layer.weight.detach()
    step = rounding_steps(layer, 4)["weight"]
    ratio = d.square().mean(dim=1, keepdim=True) / (step**2 / 12)
    assert float((ratio - 1).abs().max()) < 5 * math.sqrt(144 / 180 / 2000)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.85, 1.0])
def test_pruned_takes_the_smallest_of_all_matrices(share: float) -> None:
    model = net()
    found = pruned(model, share)
    every = sorted(abs(w) for name in MATRICES for w in model.get_parameter(name).flatten().tolist())
    gone = round(share * len(every))
    limit = every[gone - 1] if gone else -1.0
    for name in MATRICES:
        for w, v in zip(
            model.get_parameter(name).flatten().tolist(), found[name].flatten().tolist(), strict=True
        ):
            assert v == (0.0 if abs(w) <= limit else w)


def test_equal_weights_are_pruned_to_the_share() -> None:
    layer = nn.Linear(10, 10)
    layer.weight.data.fill_(0.5)
    assert int((pruned(layer, 0.3)["weight"] == 0).sum()) == 30


def test_shaken_has_the_size_that_was_asked_for() -> None:
    layer = nn.Linear(200, 300)
    d = shaken(layer, 0.4, seed=5)["weight"] - layer.weight.detach()
    rms = float(layer.weight.detach().square().mean().sqrt())
    n = d.numel()
    assert float(d.square().mean().sqrt()) / rms == pytest.approx(0.4, rel=5 / math.sqrt(2 * n))
    assert abs(float(d.mean())) < 5 * 0.4 * rms / math.sqrt(n)
    assert torch.equal(shaken(layer, 0.4, seed=5)["weight"], shaken(layer, 0.4, seed=5)["weight"])
    assert not torch.equal(shaken(layer, 0.4, seed=5)["weight"], shaken(layer, 0.4, seed=6)["weight"])


def test_nothing_of_the_net_changes_and_damaged_puts_back_every_bit() -> None:
    model = net()
    state, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    changed = [rounded(model, 2), pruned(model, 0.5), shaken(model, 0.5)]
    for weights in changed:
        with damaged(model, weights):
            assert all(torch.equal(model.get_parameter(n).detach(), v) for n, v in weights.items())
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    with pytest.raises(KeyError), damaged(model, changed[0]):
        raise KeyError
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_tied_matrix_is_damaged_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.last = nn.Linear(3, 3)
            self.last.weight = self.first.weight

    model = Tied()
    assert set(rounded(model, 3)) == {"first.weight"}
    with damaged(model, rounded(model, 3)):
        assert torch.equal(model.last.weight, rounded(model, 3)["first.weight"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: rounded(m, 1), "bits 1"),
        (lambda m: rounded(m, {"2.weight": 17}), "bits 17"),
        (lambda m: rounded(m, {"2.bias": 4}), "'2.bias' is no matrix"),
        (lambda m: pruned(m, 1.5), "share 1.5"),
        (lambda m: shaken(m, -0.1), "sigma -0.1"),
        (lambda m: shaken(nn.LayerNorm(3), 0.1), "nothing to damage"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(net())


def test_a_net_that_has_diverged_is_refused() -> None:
    model = net()
    model[2].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"1 weights of '2\.weight' are not finite"):
        rounded(model, 4)
    with (
        pytest.raises(ValueError, match="pass one tensor for each"),
        damaged(net(), {"2.weight": torch.ones(2)}),
    ):
        pass
