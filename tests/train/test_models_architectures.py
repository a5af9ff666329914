"""The architectures: depth, width, skips and norms are what they say, against torch's and torchvision's own layers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from optland.context.probe import probe_context
from optland.train.models import ModelConfig, build_model
from optland.train.models.layers import Plan
from optland.train.models.registry import MODELS
from optland.train.models.resnet import ResidualBlock, ResNet
from optland.train.models.vit import Block, VisionTransformer

COLOUR = (3, 32, 32)


def weight_layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


# ---------------------------------------------------------------- initial values that a benchmark depends on


def literal_parameters(name: str, shape: tuple[int, int, int], width: int, classes: int) -> list[Tensor]:
    """The parameters of the three first models, layer by layer as they were first written."""
    c, h, w = shape
    if name == "mlp":
        sizes = [c * h * w, width, width, width, classes]
        layers: list[nn.Module] = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    elif name == "cnn":
        layers = [nn.Conv2d(c, width, 3), nn.Conv2d(width, 2 * width, 3), nn.Conv2d(2 * width, 2 * width, 3)]
        layers.append(nn.Linear(2 * width * (h // 2) * (w // 2), classes))
    else:
        layers = [nn.Conv2d(c, width, 3, bias=False), nn.BatchNorm2d(width)]
        for a, b in ((width, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(a, b, 3, bias=False), nn.BatchNorm2d(b)]
            layers += [nn.Conv2d(b, b, 3, bias=False), nn.BatchNorm2d(b)]
            if a != b:
                layers += [nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b)]
        layers.append(nn.Linear(4 * width, classes))
    return [p for layer in layers for p in layer.parameters()]


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet8"])
def test_the_first_models_keep_their_initial_values(name: str) -> None:
    torch.manual_seed(7)
    wanted = literal_parameters(name, (1, 8, 8), 6, 10)
    after = torch.rand(1)
    torch.manual_seed(7)
    model = build_model(ModelConfig(name=name, width=6), (1, 8, 8), 10)
    assert torch.equal(torch.rand(1), after), "the random state moves on as it did"
    for ours, theirs in zip(model.parameters(), wanted, strict=True):
        assert torch.equal(ours, theirs)


# ---------------------------------------------------------------- depth, width, norm, skips


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["resnet", "densenet", "mlp"]), st.integers(0, 12), st.sampled_from([2, 5]))
def test_the_longest_path_has_depth_weight_layers(name: str, more: int, width: int) -> None:
    own = MODELS[name]
    assert own.min_depth is not None
    depth = own.min_depth + more * own.depth_step
    model = build_model(ModelConfig(name=name, depth=depth, width=width), (1, 8, 8), 3)
    on_path = [
        n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and ".skip" not in n
    ]
    assert len(on_path) == depth + (name == "mlp")  # of an MLP the hidden layers are counted
    assert model(torch.randn(4, 1, 8, 8)).shape == (4, 3)


@pytest.mark.parametrize("name", ["resnet8", "resnet", "densenet"])
@pytest.mark.parametrize(
    ("norm", "kind"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm), ("none", None)]
)
def test_the_norm_is_the_one_asked_for(name: str, norm: Any, kind: Any) -> None:
    model = build_model(ModelConfig(name=name, width=8, norm=norm), COLOUR, 10)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    assert {type(m) for m in norms} == ({kind} if kind else set())
    # A norm after a convolution takes its bias away; without a norm the convolution needs one.
    assert all((m.bias is None) == (norm != "none") for m in model.modules() if isinstance(m, nn.Conv2d))


def plan(norm: Any = "batch", *, skips: bool = True, width: int = 4) -> Plan:
    return Plan(width=width, depth=8, norm=norm, skips=skips, dropout=0.0)


@pytest.mark.parametrize(("channels", "stride"), [(4, 1), (8, 2)])
def test_a_residual_block_is_torchvisions(channels: int, stride: int) -> None:
    from torchvision.models.resnet import BasicBlock, conv1x1

    torch.manual_seed(0)
    ours = ResidualBlock(COLOUR, 4, channels, stride, plan())
    project = None
    if stride != 1:
        project = nn.Sequential(conv1x1(4, channels, stride), nn.BatchNorm2d(channels))
    theirs = BasicBlock(4, channels, stride, project)
    with torch.no_grad():
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.copy_(p.uniform_(-0.5, 0.5))
    x = torch.randn(3, 4, 8, 8)
    for mode in (True, False):
        assert torch.allclose(ours.train(mode)(x), theirs.train(mode)(x), atol=1e-6)


def test_skips_are_all_that_skips_false_takes_away() -> None:
    """With every branch at zero a net with skips carries its input through, the plain one nothing."""
    x = torch.rand(2, 4, 8, 8)
    for skips, wanted in ((True, x), (False, torch.zeros_like(x))):
        block = ResidualBlock(COLOUR, 4, 4, 1, plan("none", skips=skips))
        for parameter in block.parameters():
            nn.init.zeros_(parameter)
        assert torch.equal(block(x), wanted)
    with_skips, plain = (ResNet(COLOUR, 10, plan(skips=skips)) for skips in (True, False))
    shapes = [
        [tuple(p.shape) for n, p in net.named_parameters() if ".skip" not in n] for net in (with_skips, plain)
    ]
    assert shapes[0] == shapes[1]
    assert not [n for n, _ in plain.named_parameters() if ".skip" in n]


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    block = Block(32)
    theirs = nn.MultiheadAttention(32, block.heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(block.qkv.weight)
        theirs.in_proj_bias.copy_(block.qkv.bias.uniform_(-1, 1))
        theirs.out_proj.weight.copy_(block.out.weight)
        theirs.out_proj.bias.copy_(block.out.bias)
    x = torch.randn(3, 7, 32)
    assert torch.allclose(block.attention(x), theirs(x, x, x, need_weights=False)[0], atol=1e-6)


def test_without_positions_a_vit_does_not_see_the_order_of_the_patches() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="vit", width=32, depth=2), (1, 8, 8), 10)
    assert isinstance(model, VisionTransformer)
    x = torch.randn(2, 1, 8, 8)
    swapped = torch.cat([x[..., 4:], x[..., :4]], dim=-1)  # whole patches of 2 x 2 change places
    assert not torch.allclose(model(x), model(swapped), atol=1e-4)
    nn.init.zeros_(model.positions)
    assert torch.allclose(model(x), model(swapped), atol=1e-5)


def test_training_and_evaluation_see_the_same_vit_and_it_can_be_differentiated_twice() -> None:
    model = build_model(ModelConfig(name="vit", width=16, depth=2), (1, 8, 8), 4)
    x = torch.randn(3, 1, 8, 8)
    trained = model.train()(x)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), trained.detach())
    with probe_context(model, "eval", 0):
        loss = nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2]))
        weights = list(model.parameters())
        gradient = torch.autograd.grad(loss, weights, create_graph=True)
        product = torch.autograd.grad(sum((g * g.detach()).sum() for g in gradient), weights)
    assert all(bool(p.isfinite().all()) for p in product)
    assert any(bool((p != 0).any()) for p in product)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_on_signals_no_weight_is_flat(name: str) -> None:
    """On images of height 1 kernels have height 1: every weight has a gradient."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=name), (1, 1, 40), 10)
    kernels = [m.kernel_size for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(height == 1 for height, _ in kernels)
    nn.functional.cross_entropy(model(torch.randn(64, 1, 1, 40)), torch.randint(10, (64,))).backward()
    for name_, parameter in model.named_parameters():
        assert parameter.grad is not None, name_
        if parameter.ndim == 4:  # at each place of the kernel, over all pairs of channels
            assert bool((parameter.grad != 0).flatten(0, 1).any(dim=0).all()), name_


@pytest.mark.parametrize("name", sorted(MODELS))
def test_dropout_stands_before_the_last_layer(name: str) -> None:
    model = build_model(ModelConfig(name=name, dropout=0.5), (1, 8, 8), 10).train()
    (dropout,) = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert dropout.p == 0.5
    seen: list[Any] = []
    dropout.register_forward_hook(lambda _m, _i, out: seen.append(out))
    weight_layers(model)[-1].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    model(torch.randn(2, 1, 8, 8))
    assert seen[0] is seen[1]


# ---------------------------------------------------------------- torchvision's models


def test_a_torchvision_model_is_torchvisions() -> None:
    from torchvision import models

    config = ModelConfig(name="torchvision:resnet18")
    torch.manual_seed(1)
    ours = build_model(config, COLOUR, 7)
    after = torch.rand(1)
    torch.manual_seed(1)
    theirs = models.resnet18(weights=None, num_classes=7)
    assert torch.equal(torch.rand(1), after)
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert ours.training
    grey = build_model(config, (1, 32, 32), 7).eval()
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(grey(x), grey.model(torch.cat([x, x, x], dim=1)))
