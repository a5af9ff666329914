"""The state of a pilot in the folder of a trainer's checkpoint: a file for each process."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from optland.files import write_whole
from optland.pilot import Pilot

__all__ = ["read_state", "write_state"]


def write_state(pilot: Pilot, folder: str | Path, rank: int) -> None:
    """Write the pilot's state; a folder that takes none costs a warning, since training is not to end for it.

    Args:
        pilot: Between two updates.
        folder: Of the checkpoint.
        rank: Number of this process.
    """
    content = BytesIO()
    torch.save(pilot.state_dict(), content)
    try:
        write_whole(_file(folder, rank), content.getbuffer())
    except OSError as error:
        _warn(f"the pilot's state is not in {folder}: {error}")


def read_state(folder: str | Path | None, rank: int) -> dict[str, Any] | None:
    """What :func:`write_state` wrote there.

    Args:
        folder: Of the checkpoint that a trainer goes on from; None where it goes on from none.
        rank: Number of this process.

    Returns:
        The state; None without a checkpoint, and with a warning for one that holds none.

    Raises:
        UnpicklingError: The file holds more than tensors and plain values.
    """
    if folder is None:
        return None
    if not (file := _file(folder, rank)).is_file():
        _warn(
            f"{file} is not there, so the pilot begins anew; weights and optimizer go on from the checkpoint"
        )
        return None
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def _file(folder: str | Path, rank: int) -> Path:
    return Path(folder) / f"pilot_{rank}.pt"


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
