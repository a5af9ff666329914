"""Where data lie on disk, who fetches them, and what is said when they are missing or damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optland.config import UserError

if TYPE_CHECKING:
    from optland.train.data.config import DataConfig

__all__ = ["ROOT_VARIABLE", "damaged", "data_root", "fetch_command", "fetch_once", "missing"]

ROOT_VARIABLE = "OPTLAND_DATA"


def data_root(config: DataConfig) -> Path:
    """The folder of the data: ``root`` of the configuration, else ``OPTLAND_DATA``, else ``~/.cache/optland``."""
    named = config.root or os.environ.get(ROOT_VARIABLE) or "~/.cache/optland"
    return Path(named).expanduser()


def fetch_command(config: DataConfig) -> str:
    """The one command that fetches a data set and does nothing else."""
    root = "" if config.root is None else f", root={config.root!r}"
    arguments = f"{config.name!r}{root}, download=True"
    return f'python -c "from optland.train import *; load_data(DataConfig({arguments}))"'


def fetch_once(config: DataConfig, fetch: Callable[[Path], None]) -> None:
    """Fetch where ``download`` is on: one process does, the others wait until it is done.

    Several processes that write the same files at once leave them damaged (torchvision says so in its documentation).

    Args:
        config: The configuration; nothing happens where ``download`` is off.
        fetch: Puts the files into the folder it is given, unless they are there.

    Raises:
        UserError: The data cannot be fetched.
    """
    if not config.download:
        return
    distributed = torch.distributed
    several = distributed.is_available() and distributed.is_initialized()
    try:
        if not several or distributed.get_rank() == 0:
            _fetch(config, fetch)
    finally:  # also when it failed: the others find no data then, instead of waiting for ever
        if several:
            distributed.barrier()


def _fetch(config: DataConfig, fetch: Callable[[Path], None]) -> None:
    root = data_root(config)
    try:
        root.mkdir(parents=True, exist_ok=True)
        fetch(root)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{config.name} could not be fetched into {root}: {error}. Fetch it where there is a network with: "
            f"{fetch_command(config)} and name its folder here with data.root=FOLDER"
        ) from error


def missing(config: DataConfig, places: str) -> UserError:
    """What is said when a data set is not there."""
    return UserError(f"{config.name} is not in {places}. Fetch it once with: {fetch_command(config)}")


def damaged(config: DataConfig, file: Path, reason: str) -> UserError:
    """What is said when a file is not what it must be."""
    return UserError(
        f"{config.name}: {file} is damaged ({reason}). Delete it and fetch it again with: {fetch_command(config)}"
    )
