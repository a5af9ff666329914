"""CIFAR-10, CIFAR-100 and SVHN through torchvision, in the folders that torchvision uses, checked by its md5 sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optland.train.data.fetch import FileSet, damaged, data_root, fetch_once, missing
from optland.train.data.raw_images import RawImages

__all__ = ["cifar", "svhn"]


def cifar(name: str, root: str | None, download: bool) -> RawImages:
    """50,000 colour images ``(n, 3, 32, 32)`` of 10 or 100 classes to train on, and 10,000 for the test, as bytes.

    Args:
        name: ``cifar10`` or ``cifar100``.
        root: The folder of the data that the configuration names; None where it names none.
        download: Whether to fetch them where they are not there.

    Returns:
        Images and labels, with the official test split.

    Raises:
        UserError: The files are not there, or one of them is damaged.
    """
    from torchvision import datasets

    files = FileSet(name, root, download)
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    fetch_once(files, lambda folder: kind(str(folder), download=True))
    folder = data_root(files)
    meta = (kind.meta["filename"], kind.meta["md5"])
    _check(files, folder / kind.base_folder, [*kind.train_list, *kind.test_list, meta])

    def split(train: bool) -> tuple[Tensor, Tensor]:
        part = kind(str(folder), train=train)
        return torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)

    return RawImages(*split(True), num_classes=int(name.removeprefix("cifar")), test=split(False))


def svhn(root: str | None, download: bool) -> RawImages:
    """73,257 colour images ``(n, 3, 32, 32)`` of house numbers to train on, and 26,032 for the test, as bytes.

    Args:
        root: The folder of the data that the configuration names; None where it names none.
        download: Whether to fetch them where they are not there.

    Returns:
        Images and labels 0 to 9, with the official test split; the 531,131 easier extra images are left out.

    Raises:
        UserError: The files are not there, or one of them is damaged.
    """
    from torchvision import datasets

    files = FileSet("svhn", root, download)

    def fetch(folder: Path) -> None:
        for name in ("train", "test"):
            url, file, md5 = datasets.SVHN.split_list[name]
            datasets.utils.download_url(url, str(folder), file, md5)  # unless it is there and intact

    fetch_once(files, fetch)
    folder = data_root(files)
    _check(files, folder, [datasets.SVHN.split_list[name][1:] for name in ("train", "test")])

    def split(name: str) -> tuple[Tensor, Tensor]:
        part = datasets.SVHN(str(folder), split=name)
        return torch.from_numpy(part.data).contiguous(), torch.from_numpy(part.labels)

    return RawImages(*split("train"), num_classes=10, test=split("test"))


def _check(files: FileSet, folder: Path, sums: list[Any]) -> None:
    """Distinguish 'not found' from 'corrupted', which are one error in torchvision: they need different advice."""
    from torchvision.datasets.utils import check_md5

    for name, md5 in sums:
        path = folder / name
        if not path.is_file():
            raise missing(files, f"{folder} (the file {name} is not there)")
        if not check_md5(str(path), md5):
            raise damaged(files, path, "its md5 sum is not the known one")
