"""Alignment: the function stays, the order of the units is found again, and what cannot be matched is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.landscape import align, linear_path
from optland.landscape.permutations import find_symmetries
from optland.objective import Objective
from optland.train.models import ModelConfig, build_model

SHAPE = (1, 8, 8)


def image_net(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: build_model(ModelConfig(name=name, **options), SHAPE, 4).double()


NETS = {
    "mlp": image_net("mlp", width=6, depth=2),
    "cnn": image_net("cnn", width=4),
    "resnet": image_net("resnet", width=4, depth=8),
}


def shuffled(model: nn.Module, example: Tensor, seed: int) -> dict[str, Tensor]:
    """The net with its units in random order, by this file's own indexing."""
    generator = torch.Generator().manual_seed(seed)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for symmetry in find_symmetries(model, example):
        order = torch.randperm(symmetry.size, generator=generator)
        for axis in symmetry.axes:
            t = state[axis.name].movedim(axis.axis, 0)
            blocks = t.reshape(symmetry.size, axis.block, *t.shape[1:])
            state[axis.name] = blocks[order].reshape(t.shape).movedim(0, axis.axis).contiguous()
    return state


def trained_a_little(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = make()
    x = torch.randn(32, *SHAPE).double()
    model.train()
    for _ in range(3):
        model(x)  # BatchNorm statistics that are not the defaults
    return model.eval()


@pytest.mark.parametrize("name", NETS)
def test_any_order_of_the_units_is_the_same_function_and_is_found_again(name: str) -> None:
    model = trained_a_little(NETS[name], 0)
    x = torch.randn(8, *SHAPE).double()
    example = x[:1]
    symmetries = find_symmetries(model, example)
    assert sum(s.size for s in symmetries) > 8
    other = NETS[name]().eval()
    other.load_state_dict(shuffled(model, example, 1))
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x), rtol=1e-11, atol=1e-11)
    found = align(model, other, example)
    assert found.distance_before > 0.5
    assert found.distance_after < 1e-9
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(found.state[key], tensor)


@pytest.mark.parametrize("name", NETS)
def test_aligning_keeps_the_function_of_another_net(name: str) -> None:
    model, other = trained_a_little(NETS[name], 0), trained_a_little(NETS[name], 1)
    x = torch.randn(8, *SHAPE).double()
    found = align(model, other, x[:1])
    assert found.distance_after < found.distance_before
    assert found.moved > 0.3
    twin = NETS[name]().eval()
    twin.load_state_dict(found.state)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), other(x), rtol=1e-11, atol=1e-11)


def test_the_axes_of_a_small_cnn_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 2))
    (symmetry,) = find_symmetries(net, torch.ones(1, 1, 8, 8))
    assert [(a.name, a.axis, a.block) for a in symmetry.axes] == [
        ("0.weight", 0, 1), ("0.bias", 0, 1), ("3.weight", 1, 36),
    ]  # fmt: skip


def test_a_residual_stream_has_one_order() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.stem(x))
            return self.head(h + self.block(h))

    (symmetry,) = find_symmetries(Residual(), torch.ones(1, 3))
    assert {(a.name, a.axis) for a in symmetry.axes} == {
        ("stem.weight", 0), ("stem.bias", 0), ("block.weight", 0), ("block.weight", 1), ("block.bias", 0),
        ("head.weight", 1),
    }  # fmt: skip


def test_alignment_takes_the_barrier_of_swapped_units_away() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(40, 6).double()
    y = torch.randint(0, 3, (40,))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    L = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x, y)])
    for p in model.parameters():
        p.grad = None
    state = shuffled(model, x[:1], 2)
    before = linear_path(L, state).above
    after = linear_path(L, align(model, state, x[:1]).state).above
    assert before > 0.05
    assert after < 1e-9


def test_what_cannot_be_matched_is_refused() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.attend(x, x, x)[0]

    with pytest.raises(TypeError, match="cannot be matched"):
        find_symmetries(Attends(), torch.ones(1, 3, 4))
    grouped = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Flatten())
    with pytest.raises(TypeError, match="grouped"):
        find_symmetries(grouped, torch.ones(1, 4, 2, 2))
    with pytest.raises(ValueError, match=r"differ in '0\.weight'"):
        align(nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 4)), torch.ones(1, 2))
