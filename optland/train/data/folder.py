"""Image folders of your own: ``root/CLASS/*.png``, or ``root/train/CLASS/*`` and ``root/test/CLASS/*``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from optland.config import UserError
from optland.train.data.raw_images import RawImages

__all__ = ["IMAGE_SIZE", "image_folder"]

IMAGE_SIZE = 32


def image_folder(root: str | None, image_size: int | None) -> RawImages:
    """Colour images ``(n, 3, s, s)`` as bytes, each resized to ``image_size`` pixels per side.

    Classes are the folders in alphabetical order. With the folders ``train`` and ``test`` the test split is the
    latter; otherwise a fifth of the images. The shorter side is not cut: pictures that are not square are squeezed.

    Args:
        root: The folder.
        image_size: Pixels per side; None takes 32.

    Returns:
        Images and labels; the label is the place of the folder in the alphabet, from 0.

    Raises:
        UserError: The folder or its images are not there, an image cannot be read, or the two splits have different
            classes.
    """
    folder = Path(root or "").expanduser()
    size = image_size or IMAGE_SIZE
    split = (folder / "train").is_dir() and (folder / "test").is_dir()
    x, y, classes = _read(folder / "train" if split else folder, size)
    if not split:
        return RawImages(x, y, len(classes), num_test=len(y) // 5)
    test_x, test_y, test_classes = _read(folder / "test", size)
    if classes != test_classes:
        only = sorted(set(classes) ^ set(test_classes))
        raise UserError(f"image_folder: {folder}/train and {folder}/test have different classes: {only}")
    return RawImages(x, y, len(classes), test=(test_x, test_y))


def _read(folder: Path, size: int) -> tuple[Tensor, Tensor, list[str]]:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import functional

    try:
        listing = ImageFolder(str(folder))
    except (FileNotFoundError, NotADirectoryError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"image_folder: {folder} does not hold one folder of images for each class ({reason}); "
            "set data.root to one that does"
        ) from error
    images = []
    for path, _ in listing.samples:
        try:
            picture = functional.resize(listing.loader(path), [size, size])
        except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
            raise UserError(f"image_folder: {path} cannot be read ({error}); mend or delete it") from error
        images.append(functional.pil_to_tensor(picture))
    return torch.stack(images), torch.tensor(listing.targets), listing.classes
