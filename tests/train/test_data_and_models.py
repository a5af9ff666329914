"""Digits, splits, label noise and the small models."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import slow

from optland.train.data import DataConfig, load_data
from optland.train.data.splits import add_label_noise, stratified_split
from optland.train.models import ModelConfig, build_model
from optland.train.models.registry import MODELS


def test_digits_are_the_real_ones() -> None:
    data = load_data(DataConfig())
    assert data.image_shape == (1, 8, 8)
    assert data.num_classes == 10
    assert [len(y) for y in (data.train_y, data.val_y, data.test_y)] == [1200, 197, 400]
    assert data.train_x.mean().abs() < 1e-4
    assert data.train_x.std() == pytest.approx(1.0, abs=1e-4)
    # A nearest-class-mean rule gets most real digits right: labels and images belong together.
    means = torch.stack([data.train_x[data.train_y == c].mean(0) for c in range(10)]).flatten(1)
    guess = torch.cdist(data.test_x.flatten(1), means).argmin(1)
    assert (guess == data.test_y).float().mean() > 0.85


def test_splits_are_disjoint_and_noise_touches_the_training_labels_alone() -> None:
    clean, noisy = load_data(DataConfig()), load_data(DataConfig(label_noise=0.4, noise_seed=1))
    images = torch.cat([clean.train_x, clean.val_x, clean.test_x]).flatten(1)
    assert len(torch.unique(images, dim=0)) == 1797
    assert torch.equal(clean.val_y, noisy.val_y)
    assert torch.equal(clean.test_y, noisy.test_y)
    assert torch.equal(clean.train_x, noisy.train_x)
    assert int(noisy.noisy.sum()) == 480
    changed = clean.train_y != noisy.train_y
    assert not bool((changed & ~noisy.noisy).any())
    assert 0.3 < changed.float().mean() < 0.42  # 0.4 x 9/10 on average


def test_noise_has_its_own_seed() -> None:
    labels = torch.zeros(1000, dtype=torch.long)
    one, mask = add_label_noise(labels, 0.25, 10, seed=5)
    again, _ = add_label_noise(labels, 0.25, 10, seed=5)
    other, _ = add_label_noise(labels, 0.25, 10, seed=6)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert int(mask.sum()) == 250
    assert torch.bincount(one[mask], minlength=10).min() > 10  # uniform over all classes


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(20, 200), st.integers(0, 9))
def test_stratified_split_is_exact_and_balanced(classes: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    sizes = (n // 2, n // 4, n // 8)
    sets = stratified_split(labels, sizes, seed)
    assert [len(s) for s in sets] == list(sizes)
    assert len(torch.unique(torch.cat(sets))) == sum(sizes)
    share = torch.bincount(labels, minlength=classes) / n
    for s in sets:
        counts = torch.bincount(labels[s], minlength=classes)
        assert (counts - share * len(s)).abs().max() <= 2


def test_split_refuses_more_than_there_is() -> None:
    with pytest.raises(ValueError, match="needs 12 samples, but there are 10"):
        stratified_split(torch.zeros(10), (6, 6), 0)


@pytest.mark.parametrize("name", [*sorted(MODELS.keys() - {"resnet"}), *slow("resnet")])
def test_models_map_images_to_logits_and_can_be_trained(name: str) -> None:
    """A gradient for every parameter, and a small step against it lowers the loss by as much as its slope says."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=name, width=16 if name == "vit" else 8), (1, 8, 8), 10).double()
    x, y = torch.randn(32, 1, 8, 8, dtype=torch.float64), torch.randint(10, (32,))
    assert model(x).shape == (32, 10)
    before = torch.nn.functional.cross_entropy(model(x), y)
    before.backward()
    params = list(model.parameters())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in params)
    square = sum(float(p.grad.square().sum()) for p in params if p.grad is not None)
    assert square > 0
    step = 1e-5 * float(before.detach()) / square
    with torch.no_grad():
        for p in params:
            p -= step * p.grad
        after = torch.nn.functional.cross_entropy(model(x), y)
    assert float(before.detach() - after) == pytest.approx(step * square, rel=0.05)


def test_resnet8_has_eight_weight_layers_on_its_longest_path_and_batch_norm() -> None:
    model = build_model(ModelConfig(name="resnet8", width=4), (3, 8, 8), 5)
    convolutions = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and "skip" not in n]
    assert len(convolutions) + 1 == 8
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


def test_the_cnn_has_no_normalisation() -> None:
    model = build_model(ModelConfig(), (1, 8, 8), 10)
    assert not any("Norm" in type(m).__name__ for m in model.modules())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(name="digit"), "data set 'digit' is not known.*Did you mean 'digits'"),
        (lambda: DataConfig(label_noise=1.5), "label_noise: 1.5 is not a share"),
        (lambda: ModelConfig(name="resnet9"), "model 'resnet9' is not known.*Did you mean 'resnet'"),
        (lambda: ModelConfig(width=0), "width: 0"),
        (lambda: ModelConfig(dropout=1.0), "dropout: 1.0"),
    ],
)
def test_bad_configuration_is_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
