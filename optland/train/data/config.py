"""The configuration of the data: which, from where, how many, how split, how augmented, how noisy."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from optland.config import did_you_mean
from optland.config.imports import given, is_import_path
from optland.train.data.registry import DATASETS, SETTINGS, source_of
from optland.train.data.synthetic import FAKE_SIZE, NUM_CLASSES, NUM_SAMPLES

__all__ = ["DataConfig"]

_LEAST_SAMPLES = 20
"""A tenth for validation and a fifth for the test must be at least one sample each, and some left to train on."""

_MOST_PIXELS = 1_000_000_000


@dataclass(frozen=True)
class DataConfig:
    """Which data, how they are split, and how many labels are replaced.

    Attributes:
        name: A key of :data:`DATASETS`, or ``package.module:name``, a function of your own that returns samples and
            labels; its parameters are those of ``root``, ``download``, ``image_size``, ``num_samples``,
            ``num_classes`` and ``seed`` that it takes.
        root: Folder of the data, for those that lie in files; null takes ``OPTLAND_DATA``, else
            ``~/.cache/optland``. For ``image_folder`` the folder that holds one folder per class.
        download: Whether to fetch them where they are not there; off, so that a run never waits for a network that
            it was not meant to use.
        subset: Keep only this many training samples, classes in proportion; validation and test stay whole. Null,
            or more than there are, keeps all.
        augment: ``standard`` cuts a random crop out of the image with 4 pixels of black around it and mirrors half of
            the images (not house numbers), in training only; ``none``.
        image_size: Pixels per side, for ``image_folder`` (null: 32), ``teacher`` (8) and ``fake`` (32).
        num_samples: All samples of ``teacher`` and ``fake``, before the split: 70 % to train on, 10 % validation, 20 %
            test; null: 5000.
        num_classes: Classes of ``teacher`` and ``fake``; null: 10.
        seed: Seed from which ``teacher`` and ``fake`` are made.
        label_noise: Share of the training labels replaced by labels drawn uniformly from all classes, in [0, 1].
            With C classes a share of ``label_noise * (1 - 1/C)`` is then wrong.
        noise_seed: Seed of the label noise, apart from the training seed: two runs can share their noise.
        split_seed: Seed of the train / validation / test split and of the subset.

    Raises:
        ValueError: A value that cannot be, or a setting that this data set does not take.
    """

    name: str = "digits"
    root: str | None = None
    download: bool = False
    subset: int | None = None
    augment: Literal["none", "standard"] = "none"
    image_size: int | None = None
    num_samples: int | None = None
    num_classes: int | None = None
    seed: int = 0
    label_noise: float = 0.0
    noise_seed: int = 0
    split_seed: int = 0

    def __post_init__(self) -> None:
        if is_import_path(self.name):
            self._check_own()
        elif self.name not in DATASETS:
            hint = did_you_mean(self.name, DATASETS)
            raise ValueError(
                f"name: data set {self.name!r} is not known; choose from {sorted(DATASETS)}, or "
                f"package.module:name for your own.{hint}"
            )
        if not 0.0 <= self.label_noise <= 1.0:
            raise ValueError(f"label_noise: {self.label_noise} is not a share; use a number from 0 to 1")
        if self.subset is not None and self.subset < 2:
            raise ValueError(
                f"subset: {self.subset} training samples are too few; use at least 2, or null for all"
            )
        for key in ("seed", "noise_seed", "split_seed"):
            if not 0 <= getattr(self, key) < 2**63:
                raise ValueError(
                    f"{key}: {getattr(self, key)} is no seed; use a whole number from 0 to 2^63 - 1"
                )
        self._check_source()
        self._check_sizes()

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width that the images will have; None for data of one's own, which have to be read.

        Example:
            >>> DataConfig("mnist1d").image_shape, DataConfig("fake", image_size=16).image_shape
            ((1, 1, 40), (3, 16, 16))
        """
        shape = None if is_import_path(self.name) else DATASETS[self.name].shape
        side = self.image_size
        return shape if shape is None or side is None else (shape[0], side, side)

    def _check_own(self) -> None:
        try:
            given(self.name, source_of(self.name).read, {key: getattr(self, key) for key in SETTINGS})
        except ValueError as error:
            raise ValueError(f"name: {error}") from error

    def _check_source(self) -> None:
        """Settings that this data set does not take."""
        source = source_of(self.name)
        defaults = {field.name: field.default for field in fields(self)}
        for key in SETTINGS:
            value = getattr(self, key)
            if value != defaults[key] and key not in source.takes:
                having = [name for name, other in DATASETS.items() if key in other.takes]
                raise ValueError(
                    f"{key}: {value!r} means nothing for {self.name}, only for {having}; leave it out"
                )
        if self.augment == "standard" and not source.crop:
            raise ValueError(
                f"augment: standard (crop and mirror) would change what an image of {self.name} is; use none"
            )
        if self.name == "image_folder" and self.root is None:
            raise ValueError(
                "root: image_folder needs the folder that holds one folder of images for each class"
            )
        if self.root is not None and not self.root.strip():
            raise ValueError(f"root: {self.root!r} is no folder; name one, or use null for the default")

    def _check_sizes(self) -> None:
        side = self.image_size or FAKE_SIZE
        samples = self.num_samples or NUM_SAMPLES
        if self.image_size is not None and not 1 <= self.image_size <= 1024:
            raise ValueError(f"image_size: {self.image_size} pixels per side; use 1 to 1024")
        if self.num_samples is not None and self.num_samples < _LEAST_SAMPLES:
            raise ValueError(
                f"num_samples: {self.num_samples} are too few to split; use at least {_LEAST_SAMPLES}"
            )
        if self.num_classes is not None and not 2 <= self.num_classes <= samples:
            raise ValueError(
                f"num_classes: {self.num_classes} classes; use 2 to {samples}, the number of samples, "
                f"or null for {NUM_CLASSES}"
            )
        if "num_samples" in source_of(self.name).takes and samples * side * side > _MOST_PIXELS:
            raise ValueError(
                f"num_samples: {samples} images of {side} x {side} pixels do not fit into memory; use fewer"
            )
