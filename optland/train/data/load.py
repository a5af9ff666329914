"""Load the configured images into memory: read, split, cap, standardise, add label noise to training."""

from __future__ import annotations

import torch
from torch import Tensor

from optland.config import UserError
from optland.train.data.config import DataConfig
from optland.train.data.images import ImageData
from optland.train.data.raw_images import RawImages
from optland.train.data.registry import source_of
from optland.train.data.splits import add_label_noise, stratified_split

__all__ = ["load_data"]


def load_data(config: DataConfig) -> ImageData:
    """The configured data set.

    Validation is the same for every ``subset`` and ``label_noise``; the mean and deviation are those of the training
    samples that are kept.

    Args:
        config: Name, folder and splits. Nothing is downloaded unless it says so.

    Returns:
        Training, validation and test samples on the CPU, images (n, channels, height, width) or the rows of a table,
        and the mean and deviation that ``normalise`` uses.

    Raises:
        UserError: The data are not there, damaged, or too few to split.

    Example:
        >>> data = load_data(DataConfig("teacher", num_samples=100))
        >>> tuple(data.train_x.shape), len(data.val_y), len(data.test_y)
        ((70, 1, 8, 8), 10, 20)
    """
    source = source_of(config.name)
    raw = source.read(**{key: getattr(config, key) for key in source.takes})
    train, val, test = _split(config, raw)
    x, y = raw.x, raw.y
    test_x, test_y = raw.test if raw.test is not None else (x[test], y[test])
    train_x, val_x = x[train], x[val]
    mean, std = _moments_of_columns(train_x) if raw.table else _moments(train_x)
    if train_x.dtype != torch.uint8:
        train_x, val_x, test_x = ((part - mean) / std for part in (train_x, val_x, test_x))
    train_y, noisy = add_label_noise(y[train], config.label_noise, raw.num_classes, config.noise_seed)
    standard = config.augment == "standard"
    return ImageData(
        config.name, raw.num_classes, train_x, train_y, val_x, y[val], test_x, test_y, noisy, mean, std,
        crop=standard and source.crop, flip=standard and source.flip,
    )  # fmt: skip


def _split(config: DataConfig, raw: RawImages) -> list[Tensor]:
    """Indices of training (capped by ``subset``), validation and test samples."""
    n, num_test = len(raw.y), raw.num_test
    num_val = n // 10 if raw.num_val is None else raw.num_val
    num_train = n - num_val - num_test
    if num_val < 1 or num_train < 2 or (raw.test is None and num_test < 1):
        raise UserError(f"{config.name}: {n} samples are too few to split; at least 20 are needed")
    train, val, test = stratified_split(raw.y, (num_train, num_val, num_test), config.split_seed)
    if config.subset is not None and config.subset < num_train:
        (kept,) = stratified_split(raw.y[train], (config.subset,), config.split_seed)
        train = train[kept]
    return [train, val, test]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation per channel ``(c, 1, 1)``, without a copy of the whole set in floating point."""
    if x.dtype != torch.uint8:
        if x.shape[1] == 1:
            return x.mean().reshape(1, 1, 1), _or_one(x.std().reshape(1, 1, 1))
        channels = x.transpose(0, 1).flatten(1)
        return channels.mean(1).reshape(-1, 1, 1), _or_one(channels.std(1).reshape(-1, 1, 1))
    values = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([torch.bincount(x[:, c].flatten(), minlength=256) for c in range(x.shape[1])])
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    mean = share @ values
    std = (share @ values.square() - mean.square()).clamp(min=0).sqrt()
    return mean.float().reshape(-1, 1, 1), _or_one(std).float().reshape(-1, 1, 1)


def _moments_of_columns(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every column of a table ``(n, 1, 1, columns)``."""
    return x.mean(0), _or_one(x.std(0))


def _or_one(std: Tensor) -> Tensor:
    """A channel that never changes carries nothing: it becomes zero, not NaN."""
    return torch.where(std > 0, std, torch.ones_like(std))
