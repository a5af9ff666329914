"""Data without files: MNIST-1D, the teacher's and fake images; subsets; and what a configuration may not say."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from train.made_once import mnist1d_made_once

from optland.config import UserError
from optland.train.data import DataConfig, ImageData, load_data
from optland.train.data.fetch import fetch_command
from optland.train.data.registry import DATASETS
from optland.train.models import ModelConfig, build_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "landscape_train"

T = TypeVar("T")


def test_mnist1d_is_the_published_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import mnist1d.data

    make_dataset, asked = mnist1d.data.make_dataset, []

    def noted(args: Any) -> Any:
        asked.append((vars(args), make_dataset(args)))
        return asked[0][1]

    monkeypatch.setattr(mnist1d.data, "make_dataset", noted)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=True)[1].tolist()  # noqa: NPY002
    data = load_data(DataConfig("mnist1d"))
    after = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=True)[1].tolist()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:], "the package seeds the global generators; that must not leak"
    ((published, made),) = asked
    assert published == mnist1d.data.get_dataset_args(as_dict=True)
    assert data.image_shape == (1, 1, 40)
    assert [len(y) for y in (data.train_y, data.val_y, data.test_y)] == [3600, 400, 1000]
    signals = data.test_x.flatten(1) * data.std.flatten() + data.mean.flatten()
    assert torch.allclose(signals, torch.tensor(made["x_test"], dtype=torch.float32), atol=1e-5)
    assert data.test_y.tolist() == made["y_test"].tolist()
    # Sorted by their first number, the training and validation signals are the package's training signals.
    ours = torch.cat([data.train_x, data.val_x]).flatten(1) * data.std.flatten() + data.mean.flatten()
    theirs = torch.tensor(made["x"], dtype=torch.float32)
    assert torch.allclose(ours[ours[:, 0].argsort()], theirs[theirs[:, 0].argsort()], atol=1e-5)


def test_the_teachers_labels_can_be_learned_and_are_balanced() -> None:
    data = load_data(DataConfig("teacher", num_samples=4000, num_classes=4, image_size=6))
    assert data.image_shape == (1, 6, 6)
    assert data.num_classes == 4
    assert torch.bincount(data.train_y, minlength=4).min() > 0.15 * len(data.train_y)
    x, y = data.train_x.flatten(1), torch.nn.functional.one_hot(data.train_y, 4).float()
    guess = (data.test_x.flatten(1) @ torch.linalg.lstsq(x, y).solution).argmax(1)
    assert (guess == data.test_y).float().mean() > 0.6  # chance is 0.25, and a linear rule is not the teacher


def test_fake_labels_cannot_be_learned() -> None:
    data = load_data(DataConfig("fake", num_samples=2000, num_classes=4, image_size=4))
    x, y = data.normalise(data.train_x).flatten(1), torch.nn.functional.one_hot(data.train_y, 4).float()
    guess = (data.normalise(data.test_x).flatten(1) @ torch.linalg.lstsq(x, y).solution).argmax(1)
    assert (guess == data.test_y).float().mean() < 0.35


@pytest.mark.parametrize("name", ["teacher", "fake"])
def test_made_data_are_a_function_of_their_seed(name: str) -> None:
    one, again, other = (load_data(DataConfig(name, num_samples=60, seed=s)).train_x for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_subset_caps_training_alone_and_is_part_of_a_larger_one() -> None:
    def kept(data: ImageData) -> set[bytes]:
        return {image.numpy().tobytes() for image in data.train_x}

    base = {"name": "fake", "num_samples": 1000, "image_size": 4, "num_classes": 5}
    whole, large, small = (load_data(DataConfig(**base, subset=s)) for s in (None, 300, 60))
    assert [len(d.train_x) for d in (whole, large, small)] == [700, 300, 60]
    assert kept(small) < kept(large) < kept(whole)
    share = torch.bincount(whole.train_y, minlength=5) / 700
    counts = torch.bincount(small.train_y, minlength=5)
    assert (counts - 60 * share).abs().max() <= 2
    for data in (large, small):
        assert torch.equal(data.val_x, whole.val_x)
        assert torch.equal(data.test_x, whole.test_x)
    assert len(load_data(DataConfig(**base, subset=5000)).train_x) == 700
    assert len(load_data(DataConfig(**base, subset=60, label_noise=0.5)).noisy) == 60


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    with pytest.raises(UserError, match="pip install mnist1d"):
        load_data(DataConfig("mnist1d"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'optland\[recipes\]'"):
        load_data(DataConfig())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "cifar11"}, "name: data set 'cifar11' is not known.*Did you mean 'cifar10'"),
    ({"subset": 1}, "subset: 1 .*at least 2, or null"),
    ({"augment": "standard"}, "augment: standard .* digits is; use none"),
    ({"name": "mnist", "augment": "standard"}, "augment: standard"),
    ({"root": "x"}, "root: 'x' means nothing for digits, only for .*cifar10"),
    ({"name": "cifar10", "root": " "}, "root: ' ' is no folder"),
    ({"download": True}, "download: True means nothing for digits"),
    ({"name": "cifar10", "image_size": 16}, "image_size: 16 means nothing for cifar10"),
    ({"name": "image_folder"}, "root: image_folder needs the folder"),
    ({"name": "fake", "image_size": 0}, "image_size: 0 pixels per side; use 1 to 1024"),
    ({"name": "fake", "num_samples": 19}, "num_samples: 19 are too few to split; use at least 20"),
    ({"name": "fake", "num_classes": 1}, "num_classes: 1 classes; use 2 to 5000"),
    ({"name": "teacher", "num_samples": 10**9}, "num_samples: 1000000000 images .* use fewer"),
    ({"name": "teacher", "seed": -1}, "seed: -1 is no seed"),
    ({"split_seed": 2**63}, "split_seed: 9223372036854775808 is no seed"),
    ({"noise_seed": -4}, "noise_seed: -4 is no seed"),
]


@pytest.mark.parametrize(("settings_", "message"), REFUSED, ids=[str(k) for k, _ in REFUSED])
def test_what_cannot_be_is_refused_with_the_fix(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        DataConfig(**settings_)


def attempt(make: Callable[[], T]) -> tuple[T | None, str]:
    """What was made, or None and the refusal; any other error is a failure of the test."""
    try:
        return make(), ""
    except (ValueError, UserError) as error:
        return None, str(error)


MAYBE = st.none() | st.integers(-2, 60)


@settings(max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(sorted(DATASETS)),
            "root": st.none() | st.sampled_from(["nowhere", ""]),
            "subset": MAYBE,
            "augment": st.sampled_from(["none", "standard"]),
            "image_size": MAYBE,
            "num_samples": MAYBE,
            "num_classes": st.none() | st.integers(0, 12),
            "label_noise": st.floats(-0.2, 1.2),
        }
    )
)
def test_what_is_accepted_loads_or_is_not_there(choice: dict[str, Any]) -> None:
    config, refusal = attempt(lambda: DataConfig(**choice))
    if config is None:
        assert refusal.partition(":")[0] in choice, refusal  # it starts with the key
        return
    with mnist1d_made_once():
        data, refusal = attempt(lambda: load_data(config))
    if data is None:
        assert config.name not in ("digits", "mnist1d", "teacher", "fake"), refusal
        assert "nowhere" in refusal or config.root is None
        return
    assert min(len(y) for y in (data.train_y, data.val_y, data.test_y)) > 0
    generator = torch.Generator().manual_seed(0)
    x, y = data.transform((data.train_x[:3], data.train_y[:3]), generator)
    assert x.shape[1:] == data.image_shape
    assert bool(x.isfinite().all())
    assert int(y.max()) < data.num_classes


SHAPES = {"mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}
SHAPES |= {"svhn": (3, 32, 32), "image_folder": (3, 32, 32)}


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_data_set_has_a_config_whose_model_takes_its_images(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    first, second, *_ = path.read_text().splitlines()
    assert first == f"# optland run landscape_train configs/landscape_train/{name}.yaml"
    tree = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(tree, dict)
    config = DataConfig(**tree["data"])
    assert config.name == name
    with mnist1d_made_once():
        shape = SHAPES.get(name) or load_data(config).image_shape
    build_model(ModelConfig(**tree["model"]), shape, 10)
    if "download" in DATASETS[name].takes:
        assert second.endswith(f"Needs the data: {fetch_command(config)}")
