"""Image data sets as tensors in memory: train, clean validation and test splits, label noise with its seed.

The embedded default is scikit-learn's digits (Alpaydin and Kaynak 1998, 1797 images of 8 x 8 pixels), which needs no
download. Validation and test labels are always clean: label noise is put into the training split alone, so early
stopping on the validation split is an honest competitor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from optland.config import UserError, did_you_mean

__all__ = ["DATASETS", "DataConfig", "ImageData", "add_label_noise", "load_data", "stratified_split"]


@dataclass(frozen=True)
class DataConfig:
    """Which data, how they are split, and how many labels are replaced.

    Attributes:
        name: A key of :data:`DATASETS`.
        label_noise: Share of the training labels replaced by labels drawn uniformly from all classes, in [0, 1].
            With C classes a share of ``label_noise * (1 - 1/C)`` is then wrong.
        noise_seed: Seed of the label noise, apart from the training seed: two runs can share their noise.
        split_seed: Seed of the train / validation / test split.
    """

    name: str = "digits"
    label_noise: float = 0.0
    noise_seed: int = 0
    split_seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            hint = did_you_mean(self.name, DATASETS)
            raise ValueError(
                f"name: data set {self.name!r} is not known; choose from {sorted(DATASETS)}.{hint}"
            )
        if not 0.0 <= self.label_noise <= 1.0:
            raise ValueError(f"label_noise: {self.label_noise} is not a share; use a number from 0 to 1")


@dataclass(frozen=True)
class ImageData:
    """Standardised images ``(n, c, h, w)`` and integer labels ``(n,)`` of the three splits.

    Attributes:
        num_classes: Number of classes C.
        noisy: Mask ``(n_train,)`` of the training samples whose label was redrawn.
    """

    name: str
    num_classes: int
    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor
    test_y: Tensor
    noisy: Tensor

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        c, h, w = self.train_x.shape[1:]
        return c, h, w

    def to(self, device: torch.device | str) -> ImageData:
        """The same data on ``device``."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def stratified_split(labels: Tensor, sizes: tuple[int, ...], seed: int) -> list[Tensor]:
    """Disjoint index sets of the given sizes, each with the classes in their overall proportions.

    Samples are ordered by their random rank within their own class; every stretch of that order holds the classes in
    proportion, to within about one sample, so the sets are consecutive stretches.

    Raises:
        ValueError: The sizes add up to more than there are samples.
    """
    if sum(sizes) > len(labels):
        raise ValueError(f"a split into {sizes} needs {sum(sizes)} samples, but there are {len(labels)}")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rank = torch.empty(len(labels), dtype=torch.float64)
    for c in torch.unique(labels):
        members = shuffled[labels[shuffled] == c]
        rank[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    order = shuffled[torch.argsort(rank[shuffled], stable=True)]
    return [torch.sort(part).values for part in torch.split(order[: sum(sizes)], list(sizes))]


def add_label_noise(labels: Tensor, share: float, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Replace a share of the labels by uniformly random ones; returns the new labels and the mask of redrawn ones."""
    generator = torch.Generator().manual_seed(seed)
    redrawn = torch.zeros(len(labels), dtype=torch.bool)
    redrawn[torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]] = True
    random = torch.randint(num_classes, labels.shape, generator=generator)
    return torch.where(redrawn, random, labels), redrawn


def _digits() -> tuple[Tensor, Tensor]:
    """Images ``(1797, 1, 8, 8)`` with pixels in [0, 1], and labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "the digits data come with scikit-learn, which is not installed; run: pip install 'optland[recipes]'"
        ) from error
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16.0
    return images, torch.tensor(bunch.target, dtype=torch.long)


DATASETS: dict[str, tuple[Callable[[], tuple[Tensor, Tensor]], tuple[int, int, int]]] = {
    "digits": (_digits, (1200, 197, 400)),
}
"""Loader and (train, validation, test) sizes by name."""


def load_data(config: DataConfig) -> ImageData:
    """Load, split, standardise with the training split's mean and deviation, and add label noise to training."""
    loader, sizes = DATASETS[config.name]
    x, y = loader()
    num_classes = int(y.max()) + 1
    train, val, test = stratified_split(y, sizes, config.split_seed)
    x = (x - x[train].mean()) / x[train].std()
    train_y, noisy = add_label_noise(y[train], config.label_noise, num_classes, config.noise_seed)
    return ImageData(config.name, num_classes, x[train], train_y, x[val], y[val], x[test], y[test], noisy)
