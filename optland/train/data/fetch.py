"""Find and fetch data on disk, with the errors for missing and damaged files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from optland.config import UserError

__all__ = ["ROOT_VARIABLE", "FileSet", "damaged", "data_root", "fetch_command", "fetch_once", "missing"]

ROOT_VARIABLE = "OPTLAND_DATA"


@dataclass(frozen=True)
class FileSet:
    """A data set that lies in files.

    Attributes:
        name: Its name in a configuration.
        root: The folder that the configuration names; None where it names none.
        download: Whether it may be fetched where it is not there.
    """

    name: str
    root: str | None = None
    download: bool = False


def data_root(files: FileSet) -> Path:
    """The folder of the data: its ``root``, else ``OPTLAND_DATA``, else ``~/.cache/optland``.

    Args:
        files: The data set.

    Example:
        >>> data_root(FileSet("mnist", root="data/here")).as_posix()
        'data/here'
    """
    named = files.root or os.environ.get(ROOT_VARIABLE) or "~/.cache/optland"
    return Path(named).expanduser()


def fetch_command(files: FileSet) -> str:
    """The one command that fetches a data set and does nothing else.

    Args:
        files: The data set; its ``root`` is named in the command where it has one.

    Example:
        >>> print(fetch_command(FileSet("svhn")))
        python -c "from optland.train import *; load_data(DataConfig('svhn', download=True))"
    """
    root = "" if files.root is None else f", root={files.root!r}"
    arguments = f"{files.name!r}{root}, download=True"
    return f'python -c "from optland.train import *; load_data(DataConfig({arguments}))"'


def fetch_once(files: FileSet, fetch: Callable[[Path], None]) -> None:
    """Fetch where ``download`` is on: one process does, the others wait until it is done.

    Several processes that write the same files at once leave them damaged (torchvision says so in its documentation).

    Args:
        files: The data set; nothing happens where ``download`` is off.
        fetch: Puts the files into the folder it is given, unless they are there.

    Raises:
        UserError: The data cannot be fetched.
    """
    if not files.download:
        return
    distributed = torch.distributed
    several = distributed.is_available() and distributed.is_initialized()
    try:
        if not several or distributed.get_rank() == 0:
            _fetch(files, fetch)
    finally:  # also when it failed: the others find no data then, instead of waiting forever
        if several:
            distributed.barrier()


def _fetch(files: FileSet, fetch: Callable[[Path], None]) -> None:
    root = data_root(files)
    try:
        root.mkdir(parents=True, exist_ok=True)
        fetch(root)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{files.name} could not be fetched into {root}: {error}. Fetch it where there is a network with: "
            f"{fetch_command(files)} and name its folder here with data.root=FOLDER"
        ) from error


def missing(files: FileSet, places: str) -> UserError:
    """The error for a data set that is not there.

    Args:
        files: The data set.
        places: Where it was looked for, in words.

    Returns:
        The error, to be raised.
    """
    return UserError(f"{files.name} is not in {places}. Fetch it once with: {fetch_command(files)}")


def damaged(files: FileSet, file: Path, reason: str) -> UserError:
    """The error for a damaged file.

    Args:
        files: The data set.
        file: The damaged file.
        reason: How that was seen.

    Returns:
        The error, to be raised.
    """
    return UserError(
        f"{files.name}: {file} is damaged ({reason}). Delete it and fetch it again with: {fetch_command(files)}"
    )
