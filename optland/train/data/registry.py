"""The data sets by name: how each is read, which settings it takes, how it may be augmented."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from optland.config.imports import is_import_path
from optland.train.data.folder import IMAGE_SIZE, image_folder
from optland.train.data.idx import idx_images
from optland.train.data.own import own_reader
from optland.train.data.packages import digits, mnist1d
from optland.train.data.raw_images import RawImages
from optland.train.data.synthetic import FAKE_SIZE, TEACHER_SIZE, fake, teacher
from optland.train.data.torchvision_sets import cifar, svhn

__all__ = ["DATASETS", "SETTINGS", "DataSource", "source_of"]

SETTINGS = ("root", "download", "image_size", "num_samples", "num_classes", "seed")
"""What a reader may have a parameter for."""


@dataclass(frozen=True)
class DataSource:
    """A data set.

    Attributes:
        read: Gives all images and labels; its arguments are the settings that it takes.
        shape: Channels, height and width of an image, where ``image_size`` does not say; None where only reading tells.
        crop: Whether ``augment: standard`` cuts random crops.
        flip: Whether it mirrors; not where a mirrored image is another thing, as with digits.
    """

    read: Callable[..., RawImages]
    shape: tuple[int, int, int] | None = None
    crop: bool = False
    flip: bool = False

    @property
    def takes(self) -> tuple[str, ...]:
        """Settings of :class:`DataConfig` that mean something for it, beside those that do for all."""
        return tuple(name for name in inspect.signature(self.read).parameters if name in SETTINGS)


DATASETS: dict[str, DataSource] = {
    "digits": DataSource(digits, (1, 8, 8)),
    "mnist1d": DataSource(mnist1d, (1, 1, 40)),
    "mnist": DataSource(partial(idx_images, "mnist"), (1, 28, 28)),
    "fashion_mnist": DataSource(partial(idx_images, "fashion_mnist"), (1, 28, 28), crop=True, flip=True),
    "cifar10": DataSource(partial(cifar, "cifar10"), (3, 32, 32), crop=True, flip=True),
    "cifar100": DataSource(partial(cifar, "cifar100"), (3, 32, 32), crop=True, flip=True),
    "svhn": DataSource(svhn, (3, 32, 32), crop=True),
    "image_folder": DataSource(image_folder, (3, IMAGE_SIZE, IMAGE_SIZE), crop=True, flip=True),
    "teacher": DataSource(teacher, (1, TEACHER_SIZE, TEACHER_SIZE)),
    "fake": DataSource(fake, (3, FAKE_SIZE, FAKE_SIZE), crop=True, flip=True),
}
"""Data sets by name."""


def source_of(name: str) -> DataSource:
    """The data set of a name, or the user's own at an import path.

    Args:
        name: A key of :data:`DATASETS`, or ``package.module:name``.

    Returns:
        How it is read. The user's own is neither cropped nor mirrored: what that would make of it is not known.

    Raises:
        KeyError: No data set has that name.
        ValueError: The import path leads nowhere.
    """
    return DataSource(own_reader(name)) if is_import_path(name) else DATASETS[name]
