"""Images in memory, with normalisation and the standard augmentation of training batches.

Sets that come as bytes stay bytes (a quarter of the memory of float32) and are standardised when a batch is taken;
the small sets of real numbers are standardised once, on loading. :meth:`ImageData.normalise` treats both alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from optland.train.data.splits import random_draw

__all__ = ["CROP_PADDING", "ImageData", "crop_and_flip"]

CROP_PADDING = 4
"""Black pixels around an image from which a crop of its size is cut (He et al. 2016, arXiv:1512.03385)."""


LISTED = 3
"""Channels whose mean and deviation are said in words; a table has a channel for each column."""


@dataclass(frozen=True)
class ImageData:
    """Images ``(n, c, h, w)`` and integer labels ``(n,)`` of the three splits.

    Attributes:
        name: Name of the data set.
        num_classes: Number of classes C.
        train_x: Images, uint8 (to be standardised by :meth:`normalise`) or float32 (standardised already).
        noisy: Mask ``(n_train,)`` of the training samples whose label was redrawn.
        mean: What the pixels are standardised with, per channel ``(c, 1, 1)``, in the unit that they come in (0 to
            255 for bytes); taken over the training split.
        std: The deviation that goes with it.
        crop: Whether augmentation cuts a random crop.
        flip: Whether augmentation mirrors half of the images.
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
    mean: Tensor
    std: Tensor
    crop: bool = False
    flip: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image; a signal is an image of height 1."""
        c, h, w = self.train_x.shape[1:]
        return c, h, w

    @property
    def inputs(self) -> dict[str, str]:
        """What a model trained on these data takes, in words, with the numbers that make it.

        Returns:
            ``input``, one sentence with the mean and deviation rounded; ``mean`` and ``std``, lists of numbers as text,
            exact.
        """
        mean, std = (getattr(self, name).flatten().tolist() for name in ("mean", "std"))
        unit = "pixels from 0 to 255" if self.train_x.dtype == torch.uint8 else "in the data set's own unit"
        words = " and ".join(f"{' '.join(f'{v:.4g}' for v in values)}" for values in (mean, std))
        if len(mean) > LISTED:
            words = f"the {len(mean)} means and deviations in the metadata of the weights"
        return {"input": f"(x - mean) / std with {words}, {unit}", "mean": repr(mean), "std": repr(std)}

    @property
    def augments(self) -> bool:
        """Whether :meth:`transform` draws random numbers."""
        return self.crop or self.flip

    def normalise(self, x: Tensor) -> Tensor:
        r"""Standardised float32 images: bytes are standardised, real numbers are so already.

        Args:
            x: Images ``(n, c, h, w)``, as the splits keep them.

        Returns:
            :math:`(x - \mu) / \sigma` per channel, of the training split's :math:`\mu` and :math:`\sigma`.
        """
        if x.dtype != torch.uint8:
            return x
        return (x.to(torch.float32) - self.mean) / self.std

    def transform(
        self, batch: tuple[Tensor, Tensor], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """A training batch as the model takes it: augmented where that is on, then standardised.

        Args:
            batch: Images and labels as they are kept, on any device.
            generator: Source of the crops and mirrorings. The batch is a function of its state, so a loader that
                seeds it from epoch and position resumes exactly. Needed only where ``augments`` is true.

        Returns:
            Images, float32, and the labels as they were.

        Raises:
            ValueError: Augmentation is on and no generator is given.
        """
        x, y = batch
        if self.augments:
            if generator is None:
                raise ValueError(
                    "generator: augmentation draws random numbers; give transform() a torch.Generator"
                )
            x = crop_and_flip(x, generator, padding=CROP_PADDING if self.crop else 0, flip=self.flip)
        return self.normalise(x), y

    def size(self, split: Literal["train", "val", "test"]) -> int:
        """Number of samples of a split."""
        return len(getattr(self, f"{split}_y"))

    def sample(
        self, split: Literal["train", "val", "test"], num: int, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Images of a split, drawn at random without replacement, as the model takes them, and their labels.

        Args:
            split: Which split; its labels are those that a run sees, noisy ones included. Nothing is augmented.
            num: How many; all of them, in their order, where there are no more.
            seed: Seed of the draw.

        Returns:
            Images ``(num, c, h, w)``, float32, and labels ``(num,)``.

        Raises:
            ValueError: ``num`` is below 1.
        """
        chosen = random_draw(self.size(split), num, seed).to(self.train_y.device)
        x, y = getattr(self, f"{split}_x"), getattr(self, f"{split}_y")
        return self.normalise(x[chosen]), y[chosen]

    def to(self, device: torch.device | str) -> ImageData:
        """The same data on ``device``.

        Args:
            device: All tensors go there, mean and deviation too.
        """
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def crop_and_flip(x: Tensor, generator: torch.Generator, *, padding: int, flip: bool) -> Tensor:
    """Every image shifted by its own random offset (zeros move in), and half of them mirrored.

    Args:
        x: Images ``(n, c, h, w)`` of any type, on any device.
        generator: Its device need not be that of the images.
        padding: Largest shift in pixels, in each direction.
        flip: Whether to mirror left and right with probability 1/2.

    Returns:
        Images of the same shape and type.

    Example:
        >>> x = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> seen = [crop_and_flip(x, torch.Generator().manual_seed(s), padding=0, flip=True) for s in range(20)]
        >>> sorted({tuple(image.flatten().tolist()) for image in seen})
        [(0.0, 1.0, 2.0, 3.0), (1.0, 0.0, 3.0, 2.0)]
    """
    n, _, h, w = x.shape
    place = generator.device
    offsets = torch.randint(2 * padding + 1, (2, n, 1), generator=generator, device=place).to(x.device)
    mirrored = torch.rand((n, 1), generator=generator, device=place).to(x.device) < 0.5
    rows = offsets[0] + torch.arange(h, device=x.device)  # (n, h)
    columns = offsets[1] + torch.arange(w, device=x.device)  # (n, w)
    if flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(x, (padding, padding, padding, padding))
    image = torch.arange(n, device=x.device)[:, None, None]
    # Indices on both sides of the slice put the channels last.
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
