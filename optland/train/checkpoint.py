"""Checkpoints that are whole or not there: written aside, checked by a sum, put in place in one move.

A file is one header line with the SHA-256 of what follows, then the ``torch.save`` archive. It is written next to its
final place, flushed to the disk and renamed; the checkpoint before it stays as ``<name>.previous``. Loading accepts
tensors and plain Python values only (``weights_only``), so a file cannot run code.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from optland.config import UserError
from optland.context import load_rng_state, rng_state

__all__ = ["Checkpoint", "CheckpointError", "Stateful", "load_checkpoint", "save_checkpoint"]

_MAGIC = b"optland-checkpoint-1 "


class CheckpointError(UserError):
    """No readable checkpoint where one was asked for."""


class Stateful(Protocol):
    """Anything with a state: module, optimizer, scheduler, loader, pilot, logger."""

    def state_dict(self) -> Mapping[str, Any]:
        """The state."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Put the state back."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` to ``path`` atomically; what was there stays readable as ``<name>.previous``."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".writing")
    with aside.open("wb") as file:
        file.write(_MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n")
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        # Between these two moves only the previous file is in place; the loader looks there too.
        os.replace(path, path.with_name(path.name + ".previous"))
    os.replace(aside, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read the newest whole checkpoint at ``path``: the file itself, or the previous one with a warning.

    Raises:
        CheckpointError: Neither can be read; the message says why for each.
    """
    problems = []
    for candidate in (path, path.with_name(path.name + ".previous")):
        try:
            state = _read(candidate)
        except (OSError, CheckpointError) as error:
            problems.append(f"{candidate.name}: {error}")
            continue
        if problems and path.exists():
            warnings.warn(f"checkpoint {problems[0]}; using {candidate.name}", stacklevel=2)
        return state
    raise CheckpointError(f"no readable checkpoint in {path.parent}: " + "; ".join(problems))


def _read(path: Path) -> dict[str, Any]:
    """One checkpoint file, its sum verified before anything of it is decoded."""
    if not path.exists():
        raise CheckpointError("there is no such file")
    header, newline, payload = path.read_bytes().partition(b"\n")
    if not newline or not header.startswith(_MAGIC):
        raise CheckpointError("this is not an optland checkpoint, or its first line is damaged")
    if hashlib.sha256(payload).hexdigest().encode() != header.removeprefix(_MAGIC):
        raise CheckpointError("its checksum does not match: the file is damaged or cut short")
    try:
        return dict(torch.load(io.BytesIO(payload), weights_only=True))
    except pickle.UnpicklingError as error:
        raise CheckpointError("it holds more than tensors and plain values, which is refused") from error


class Checkpoint:
    """The state of a run's parts, all random generators included, in one file.

    Args:
        path: The checkpoint file.
        every: Steps between two saves.
        parts: Named objects with ``state_dict`` and ``load_state_dict``. A scheduler must come before its
            optimizer, because making one overwrites the learning rate that the optimizer's state holds.
    """

    def __init__(self, path: Path, *, every: int, **parts: Stateful | None) -> None:
        if every < 1:
            raise ValueError(f"checkpoint interval {every} must be at least 1 step")
        self.path = path
        self.every = every
        self.parts = {name: part for name, part in parts.items() if part is not None}

    def after_step(self, step: int) -> None:
        """Save when the interval has passed."""
        if step % self.every == 0:
            self.save(step)

    def save(self, step: int) -> None:
        """Save now."""
        state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        save_checkpoint(self.path, {"step": step, "rng": rng_state(), "parts": state})

    def load(self) -> int:
        """Put every part back; returns the step the checkpoint was taken after.

        Raises:
            CheckpointError: No readable checkpoint, or one of another set of parts.
        """
        saved = load_checkpoint(self.path)
        if set(saved["parts"]) != set(self.parts):
            raise CheckpointError(
                f"{self.path} holds {sorted(saved['parts'])}, this run has {sorted(self.parts)}; "
                "resume with the configuration that the run was started with"
            )
        for name, part in self.parts.items():
            part.load_state_dict(saved["parts"][name])
        load_rng_state(saved["rng"])
        return int(saved["step"])
