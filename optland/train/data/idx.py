"""MNIST and Fashion-MNIST from a folder of idx files, plain or gzipped, each checked against its known sha256.

torchvision fetches them, but reads unpacked files alone, and does not check what it reads. The checksum is that of the
uncompressed bytes, so it holds for every way of packing them, vouches for the header, and tells the two sets apart,
whose files have the same names.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from optland.train.data.fetch import FileSet, damaged, data_root, fetch_once, missing
from optland.train.data.raw_images import RawImages

__all__ = ["FILES", "FOLDERS", "SHA256", "idx_images"]

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

FOLDERS = {"mnist": ("", "MNIST/raw"), "fashion_mnist": ("", "fashion-mnist", "FashionMNIST/raw")}
"""Where the files may lie under the root; the last is where torchvision puts them."""

SYSTEM_FOLDERS = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
"""Where Debian's package dataset-fashion-mnist puts them; looked into where no root is given."""

SHA256 = {
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion_mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
"""Of the uncompressed :data:`FILES`, in their order."""


def idx_images(name: str, root: str | None, download: bool) -> RawImages:
    """60,000 grey images ``(n, 1, 28, 28)`` to train on and 10,000 for the test, as bytes.

    Args:
        name: ``mnist`` or ``fashion_mnist``.
        root: The folder of the data that the configuration names; None where it names none.
        download: Whether to fetch them where they are not there.

    Returns:
        Images and labels 0 to 9, with the official test split; the validation split is carved from the others later.

    Raises:
        UserError: The files are not there, or one of them is damaged.
    """
    files = FileSet(name, root, download)
    fetch_once(files, lambda root: _download(files, root))
    folder = _folder(files)
    if folder is None:
        raise missing(files, f"{data_root(files)} (nor in its folder {FOLDERS[name][-1]})")
    paths = [folder / stem for stem in FILES]
    x, y, test_x, test_y = (_read(files, *pair) for pair in zip(paths, SHA256[name], strict=True))
    return RawImages(x.unsqueeze(1), y.long(), num_classes=10, test=(test_x.unsqueeze(1), test_y.long()))


def _folder(files: FileSet) -> Path | None:
    """The first folder that holds all four files."""
    places = [data_root(files) / folder for folder in FOLDERS[files.name]]
    if files.root is None and files.name in SYSTEM_FOLDERS:
        places.append(SYSTEM_FOLDERS[files.name])
    for place in places:
        if all(_packed(place / stem).is_file() for stem in FILES):
            return place
    return None


def _packed(path: Path) -> Path:
    """The file itself, else the one that holds it gzipped."""
    return path if path.is_file() else path.with_name(f"{path.name}.gz")


def _read(files: FileSet, path: Path, known: str) -> Tensor:
    """The array of a file: two zero bytes, the type (8: bytes), the rank, big-endian sides, then the values."""
    path = _packed(path)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(files, path, str(error)) from error
    if hashlib.sha256(content).hexdigest() != known:
        raise damaged(files, path, f"its sha256 is not that of {files.name}")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy())


def _download(files: FileSet, root: Path) -> None:
    if _folder(files) is not None:
        return
    from torchvision import datasets

    {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[files.name](str(root), download=True)
