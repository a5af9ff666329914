"""Initialisation schemes by their own formulas, and refusals of models that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from optland.config import UserError
from optland.train.models import ModelConfig, build_model
from optland.train.models.initialisation import INITIALISATIONS, initialise
from optland.train.models.registry import MODELS


def fans(weight: Tensor) -> tuple[int, int]:
    """Inputs and outputs of a unit, counted by hand."""
    taps = weight[0, 0].numel() if weight.ndim > 2 else 1
    return weight.shape[1] * taps, weight.shape[0] * taps


VARIANCES: dict[str, Any] = {
    "kaiming_normal": lambda w: 2 / fans(w)[0],
    "kaiming_uniform": lambda w: 2 / fans(w)[0],
    "xavier_normal": lambda w: 2 / sum(fans(w)),
    "xavier_uniform": lambda w: 2 / sum(fans(w)),
    "normal": lambda w: 0.02**2,
    "normal:0.3": lambda w: 0.3**2,
}


@pytest.mark.parametrize("scheme", sorted(VARIANCES))
def test_weights_have_the_variance_of_their_scheme(scheme: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="resnet8", width=32, init=scheme, norm="none"), (3, 32, 32), 100)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            n = module.weight.numel()
            ratio = float(module.weight.detach().square().mean()) / VARIANCES[scheme](module.weight)
            # The mean square of n normal numbers is off by sqrt(2/n), of uniform ones by less.
            assert abs(ratio - 1) < 4.5 * (2 / n) ** 0.5
            bound = (3 * VARIANCES[scheme](module.weight)) ** 0.5
            assert (float(module.weight.detach().abs().max()) <= bound * 1.0001) == ("uniform" in scheme)
            assert module.bias is not None
            assert not module.bias.detach().any()


def test_orthogonal_rows_or_columns() -> None:
    model = build_model(ModelConfig(name="cnn", width=6, init="orthogonal"), (1, 8, 8), 10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            matrix = module.weight.detach().flatten(1)
            small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
            assert torch.allclose(small, torch.eye(len(small)), atol=1e-5)


def test_default_changes_nothing_and_norms_and_positions_are_left_alone() -> None:
    torch.manual_seed(3)
    plain = build_model(ModelConfig(name="vit", width=16), (1, 8, 8), 10)
    kept = {k: v.clone() for k, v in plain.state_dict().items()}
    assert initialise(plain, "default") is plain
    assert all(torch.equal(v, kept[k]) for k, v in plain.state_dict().items())
    initialise(plain, "normal:0.5")
    unchanged = {k for k, v in plain.state_dict().items() if torch.equal(v, kept[k])}
    assert unchanged == {k for k in kept if "norm" in k or k == "positions"}


def test_each_map_of_an_attention_layer_has_its_own_fan() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(128, 4)
    initialise(layer, "xavier_normal")
    for part in layer.in_proj_weight.detach().chunk(3):
        assert float(part.square().mean()) == pytest.approx(2 / 256, rel=0.05)


# ---------------------------------------------------------------- refusals

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "resnet", "depth": 9}, "depth: 9 is no whole number of resnet's two-layer blocks; use 8 or 10"),
    ({"name": "resnet", "depth": 6}, "depth: 6 layers are too few for resnet; use at least 8"),
    ({"name": "mlp", "depth": 0}, "depth: 0 layers are too few for mlp; use at least 1"),
    ({"name": "vit", "depth": 1001}, "depth: 1001 layers are too many; use at most 1000"),
    ({"name": "cnn", "depth": 5}, "depth: cnn does not let it be chosen, so not 5 .*null, or one of .*'vit'"),
    ({"name": "resnet8", "depth": 8}, "depth: resnet8 does not let it be chosen"),
    ({"name": "mlp", "norm": "batch"}, "norm: mlp does not let it be chosen, .*'resnet'"),
    (
        {"name": "cnn", "skips": True},
        r"skips: cnn does not let it be chosen, .*\['resnet8', 'resnet'\]",
    ),
    (
        {"name": "resnet", "norm": "group", "width": 12},
        "width: 12 is not a multiple of 8, the groups .*use 8 or 16",
    ),
    ({"name": "resnet", "norm": "group", "width": 3}, "width: 3 is not a multiple of 8, .*use 8 or 16"),
    (
        {"name": "vit", "width": 40},
        "width: 40 is not a multiple of 16, the units of an attention head; use 32 or 48",
    ),
    ({"width": 10**6}, "width: 1000000 units are too many; use at most 65536"),
    ({"init": "kaimin_normal"}, "init: 'kaimin_normal' is not known.* Did you mean 'kaiming_normal'"),
    ({"init": "orthogonal:2"}, "init: 'orthogonal:2' is not known"),
    ({"init": "normal:-1"}, "init: 'normal:-1' needs a standard deviation above 0"),
    ({"init": "normal:wide"}, "init: 'normal:wide' needs a standard deviation above 0"),
    (
        {"name": "torchvision:resnet19"},
        "name: torchvision has no classifier 'resnet19'.*Did you mean 'resnet18'",
    ),
    ({"name": "torchvision:inception_v3"}, "name: inception_v3 gives several outputs"),
    (
        {"name": "torchvision:resnet18", "width": 8},
        "width: torchvision:resnet18 has its own, 8 cannot be set",
    ),
    ({"name": "torchvision:resnet18", "dropout": 0.1}, "dropout: torchvision:resnet18 has its own"),
]


@pytest.mark.parametrize(("choice", "message"), REFUSED, ids=[str(c) for c, _ in REFUSED])
def test_what_cannot_be_is_refused_with_the_fix(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ModelConfig(**choice)


@pytest.mark.parametrize(
    ("choice", "shape", "message"),
    [
        ({"name": "vit"}, (3, 30, 30), "name: vit cuts the image into patches of 4 pixels, .* into 30"),
        ({"width": 40_000}, (3, 32, 32), "width: cnn of width 40000 has .* more than the 1e[+]09 allowed"),
        (
            {"name": "torchvision:alexnet"},
            (3, 32, 32),
            "name: torchvision:alexnet cannot take images of 3 x 32 x 32",
        ),
        (
            {"name": "torchvision:vit_b_16"},
            (3, 32, 32),
            "name: torchvision:vit_b_16 cannot take .*Expected 224",
        ),
        (
            {"name": "torchvision:resnet18"},
            (2, 32, 32),
            "name: torchvision:resnet18 takes images with 1 or 3",
        ),
    ],
)
def test_what_the_image_does_not_allow_is_refused_before_training(
    choice: dict[str, Any], shape: tuple[int, int, int], message: str
) -> None:
    config = ModelConfig(**choice)
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        build_model(config, shape, 10)
    assert isinstance(caught.value, UserError), "the command line shows the message alone"


@settings(max_examples=120, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(sorted(MODELS)),
            "width": st.none() | st.integers(-1, 24),
            "depth": st.none() | st.integers(-1, 15),
            "norm": st.sampled_from([None, "batch", "group", "none"]),
            "skips": st.sampled_from([None, True, False]),
            "dropout": st.sampled_from([0.0, 0.5]),
            "init": st.sampled_from(["default", "normal:0.1", *INITIALISATIONS]),
        }
    ),
    st.sampled_from([(1, 8, 8), (1, 28, 28), (3, 12, 9), (1, 1, 40), (3, 1, 1), (2, 2, 5)]),
)
def test_a_model_is_refused_by_name_or_trains(choice: dict[str, Any], shape: tuple[int, int, int]) -> None:
    try:
        model = build_model(ModelConfig(**choice), shape, 3)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = ""
        logits = model(torch.randn(4, *shape))
        assert logits.shape == (4, 3)
        logits.square().mean().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert refusal == "" or refusal.partition(":")[0] in choice
