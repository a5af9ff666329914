"""The data sets by name: how each is read, which settings it takes, how it may be augmented."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optland.train.data.folder import image_folder
from optland.train.data.idx import idx_images
from optland.train.data.packages import digits, mnist1d
from optland.train.data.raw import RawImages
from optland.train.data.synthetic import fake, teacher
from optland.train.data.torchvision_sets import cifar, svhn

if TYPE_CHECKING:
    from optland.train.data.config import DataConfig

__all__ = ["DATASETS", "DataSource"]

_FILES = ("root", "download")
_MADE = ("image_size", "num_samples", "num_classes", "seed")


@dataclass(frozen=True)
class DataSource:
    """A data set.

    Attributes:
        read: Gives all images and labels.
        takes: Settings of :class:`DataConfig` that mean something for it, beside those that do for all.
        crop: Whether ``augment: standard`` cuts random crops.
        flip: Whether it mirrors; not where a mirrored image is another thing, as with digits.
    """

    read: Callable[[DataConfig], RawImages]
    takes: tuple[str, ...] = ()
    crop: bool = False
    flip: bool = False


DATASETS: dict[str, DataSource] = {
    "digits": DataSource(digits),
    "mnist1d": DataSource(mnist1d),
    "mnist": DataSource(idx_images, _FILES),
    "fashion_mnist": DataSource(idx_images, _FILES, crop=True, flip=True),
    "cifar10": DataSource(cifar, _FILES, crop=True, flip=True),
    "cifar100": DataSource(cifar, _FILES, crop=True, flip=True),
    "svhn": DataSource(svhn, _FILES, crop=True),
    "image_folder": DataSource(image_folder, ("root", "image_size"), crop=True, flip=True),
    "teacher": DataSource(teacher, _MADE),
    "fake": DataSource(fake, _MADE, crop=True, flip=True),
}
"""Data sets by name."""
