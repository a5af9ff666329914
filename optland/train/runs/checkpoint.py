"""Write and read checkpoints atomically, with a checksum: a file is whole or not there.

A file is a ``torch.save`` archive with its SHA-256 as the archive's comment, so ``torch.load(file)`` reads it too. It
is written next to its final place, flushed to the disk, and moved over the checkpoint before it, which stays as
``<name>.previous``: at every instant at least one of the two is whole. Loading accepts tensors and plain Python values
only (``weights_only``), so a file cannot run code. A disk that takes no checkpoint does not end the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from optland import processes
from optland.config import UserError
from optland.context.rng import load_rng_state, rng_state
from optland.failpoints import reach
from optland.files import ASIDE
from optland.log.unwritten import Unwritten
from optland.train.runs.interrupt import agree_to_stop, stop_asked

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Stateful",
    "has_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]

_MAGIC = b"optland-checkpoint-2 "
_MAGIC_BEFORE = b"optland-checkpoint-1 "  # the sum in a line before the archive, which torch.load cannot read
_SUM = len(_MAGIC) + hashlib.sha256().digest_size * 2 + 1  # bytes of the comment, its end of line included
_ARCHIVE, _ARCHIVE_END = b"PK\x03\x04", b"PK\x05\x06"  # what a zip file begins with, and its last record
_ARCHIVE_END_SIZE = 22


class CheckpointError(UserError):
    """Raised where no usable checkpoint is found."""


class Stateful(Protocol):
    """Anything with a state: module, optimizer, scheduler, loader, pilot, gradient scaler, logger."""

    def state_dict(self) -> Mapping[str, Any]:
        """The state: tensors and plain Python values, nested in dictionaries and lists.

        What else it holds can be saved, and is refused when it is loaded (``weights_only``).
        """

    def load_state_dict(self, state_dict: Any) -> Any:
        """Put the state back.

        Args:
            state_dict: What :meth:`state_dict` gave, its tensors on the device that they came from, or on the CPU
                without CUDA.
        """


# Files ---------------------------------------------------------------------------------------------


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` to ``path`` atomically; what was there stays readable behind it, as ``<name>.previous``.

    Args:
        path: The file; its folder is made where missing.
        state: Tensors and plain Python values, nested in dictionaries and lists.

    Raises:
        OSError: The disk does not take it. What was there is untouched, and the half of the new one is gone.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint.pt"
        >>> for step in (1, 2):
        ...     save_checkpoint(path, {"step": step})
        >>> load_checkpoint(path), load_checkpoint(path.with_name("checkpoint.pt.previous"))
        ({'step': 2}, {'step': 1})
    """
    path = Path(path)
    payload = _with_sum(state)
    reach("checkpoint.before_write")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _beside(path, ASIDE)
    try:
        _write(aside, payload)
        reach("checkpoint.before_rename")
        _put_in_place(aside, path)
    except OSError:
        _clear_away(aside, _beside(path, ".behind"))
        raise
    reach("checkpoint.after")


def _with_sum(state: Mapping[str, Any]) -> memoryview:
    """The archive with its sum as its comment.

    The sum is over the archive with the comment's length already in its last two bytes, so every byte but the comment's
    own is covered.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    archive = buffer.getbuffer()
    if bytes(archive[-_ARCHIVE_END_SIZE:][:4]) != _ARCHIVE_END:
        raise ValueError(
            "torch.save has written another kind of file than a zip archive; keep torch's own default"
        )
    archive[-2:] = _SUM.to_bytes(2, "little")  # the length of the comment
    comment = _MAGIC + hashlib.sha256(archive).hexdigest().encode() + b"\n"
    archive.release()
    buffer.seek(0, io.SEEK_END)
    buffer.write(comment)
    return buffer.getbuffer()


def _write(file: Path, payload: memoryview) -> None:
    """All of it, on the disk when this returns."""
    with file.open("wb") as out:
        half = len(payload) // 2
        out.write(payload[:half])
        out.flush()
        reach("checkpoint.mid_write")
        out.write(payload[half:])
        out.flush()
        os.fsync(out.fileno())


def _clear_away(aside: Path, behind: Path) -> None:
    """Leave nothing of a save that failed; once the new file is in place, ``behind`` is the one before it."""
    with contextlib.suppress(OSError):  # the first failure is the one to tell
        if aside.exists():
            behind.unlink(missing_ok=True)
        aside.unlink(missing_ok=True)


def _put_in_place(aside: Path, path: Path) -> None:
    """The new file first, in one move; only then does the one before it go back.

    The other order would have an instant with the previous file alone, and that one may be damaged.
    """
    behind = _beside(path, ".behind")
    behind.unlink(missing_ok=True)  # from a process that was killed between the two moves
    if path.exists():
        _second_name(path, behind)
    os.replace(aside, path)
    reach("checkpoint.between_renames")
    if behind.exists():
        os.replace(behind, _previous(path))
    _flush_folder(path.parent)


def _second_name(path: Path, name: Path) -> None:
    """Give a file a second name, at no cost in time or room where the file system has hard links."""
    try:
        os.link(path, name)
    except OSError:  # a file system without links
        shutil.copyfile(path, name)


def _flush_folder(folder: Path) -> None:
    """Make the moves themselves survive a power cut, where folders can be opened at all."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _previous(path: Path) -> Path:
    return _beside(path, ".previous")


def has_checkpoint(path: Path) -> bool:
    """Whether there is a file to be read at ``path`` or behind it, whole or not."""
    return path.exists() or _previous(path).exists()


def load_checkpoint(
    path: str | Path, accept: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Read the newest usable checkpoint at ``path``: the file itself, or an older one with a warning.

    Args:
        path: The file that :func:`save_checkpoint` was given.
        accept: Called with each candidate's state; raises :class:`CheckpointError` to refuse it.

    Returns:
        The state as it was saved. Tensors lie on the device that they were saved from; on the CPU where there is no
        CUDA; of several processes of a run each has those of ``cuda:0`` on its own device.

    Raises:
        CheckpointError: None can be used; the message says why for each.
    """
    return _for_all(Path(path), accept)[1]


def _for_all(path: Path, accept: Callable[[dict[str, Any]], None] | None) -> tuple[Path, dict[str, Any]]:
    """The newest usable checkpoint; of several processes of a run the first reads it, from its own disk."""
    if processes.size() == 1:
        return _newest_usable(path, accept)

    def read() -> tuple[str, bytes]:
        used, _ = _newest_usable(path, accept)
        return str(used), used.read_bytes()

    used, content = processes.from_first(read)
    return Path(used), _decoded(content)


def _newest_usable(
    path: Path, accept: Callable[[dict[str, Any]], None] | None
) -> tuple[Path, dict[str, Any]]:
    """The first candidate that can be read and is accepted; a warning says what was wrong with the newest one."""
    problems = []
    for candidate in (path, _previous(path)):
        try:
            state = _read(candidate)
            if accept is not None:
                accept(state)
        except (OSError, CheckpointError) as error:
            problems.append(f"{candidate.name}: {error}")
            continue
        if path.exists() and problems:
            warnings.warn(f"checkpoint {problems[0]}; using {candidate.name}", RuntimeWarning, stacklevel=3)
        return candidate, state
    raise CheckpointError(f"no usable checkpoint in {path.parent}: " + "; ".join(problems))


def _read(path: Path) -> dict[str, Any]:
    """One checkpoint file, its sum verified before anything of it is decoded."""
    if not path.exists():
        raise CheckpointError("there is no such file")
    return _decoded(path.read_bytes())


def _decoded(content: bytes) -> dict[str, Any]:
    """The state in a file's bytes, after its sum has been found right."""
    archive, summed, found = _taken_apart(content)
    if hashlib.sha256(summed).hexdigest().encode() != found:
        raise CheckpointError("its checksum does not match: the file is damaged or cut short")
    # A checkpoint from a machine with CUDA can be read on one without; of several processes each has its own device.
    where: Any = None if torch.cuda.is_available() else "cpu"
    if where is None and processes.size() > 1:
        where = {"cuda:0": f"cuda:{torch.cuda.current_device()}"}
    try:
        return dict(torch.load(io.BytesIO(archive), map_location=where, weights_only=True))
    except pickle.UnpicklingError as error:
        raise CheckpointError("it holds more than tensors and plain values, which is refused") from error
    except Exception as error:  # whatever a decoder makes of a foreign archive
        raise CheckpointError(f"it is not what save_checkpoint writes ({error})") from error


def _taken_apart(content: bytes) -> tuple[memoryview, memoryview, bytes]:
    """The archive, what of the file the sum is of, and the sum that was written."""
    whole = memoryview(content)
    if content.startswith(_MAGIC_BEFORE):
        header = content.partition(b"\n")[0]
        archive = whole[len(header) + 1 :]
        return archive, archive, header.removeprefix(_MAGIC_BEFORE)
    comment = content[-_SUM:]
    if content.startswith(_ARCHIVE) and comment.startswith(_MAGIC):
        return whole, whole[:-_SUM], comment.removeprefix(_MAGIC).rstrip(b"\n")
    if content.startswith(_ARCHIVE):
        raise CheckpointError(
            "its checksum does not match: the file is damaged or cut short, or is another program's"
        )
    raise CheckpointError("this is not an optland checkpoint, or its first line is damaged")


# Runs ----------------------------------------------------------------------------------------------


class Checkpoint:
    """The state of a run's parts, all random generators included, in one file.

    The processes of a run save together, in the same step: the first writes its state, and all random generators.

    Args:
        path: The checkpoint file.
        every: Steps between two saves; None saves by time alone.
        every_seconds: Seconds between two saves; None saves by step alone. When a save is made has no influence on
            the training, so the clock may decide here.
        unwritten: Takes down the saves that failed; the run's own, so that its end names them.
        parts: Named objects with ``state_dict`` and ``load_state_dict``; None is left out. A scheduler must come
            before its optimizer, because making one overwrites the learning rate that the optimizer's state holds.

    Raises:
        ValueError: No interval, or one that is not positive.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        every: int | None = None,
        every_seconds: float | None = None,
        unwritten: Unwritten | None = None,
        **parts: Stateful | None,
    ) -> None:
        if every is None and every_seconds is None:
            raise ValueError("a checkpoint interval is missing; give every (steps), every_seconds or both")
        if every is not None and every < 1:
            raise ValueError(f"checkpoint interval {every} must be at least 1 step")
        if every_seconds is not None and not every_seconds > 0:
            raise ValueError(f"checkpoint interval {every_seconds} s must be above 0")
        self.path = Path(path)
        self.every = every
        self.every_seconds = every_seconds
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.unwritten = unwritten or Unwritten()
        self.kept: int | None = None
        """Step that a resume would go on from; None where no checkpoint is there."""
        self._saved_at = time.monotonic()

    def after_step(self, step: int) -> None:
        """Save when an interval has passed; and let all processes of a run know that one of them is to stop.

        All processes of a run have to call it after the same step: it exchanges two numbers between them, and the clock
        of the first alone decides whether the time has come.

        Args:
            step: Steps made, this one included.
        """
        waited = time.monotonic() - self._saved_at
        due = self.every_seconds is not None and waited >= self.every_seconds and processes.leads()
        by_time, asked = processes.maximum([float(due), float(stop_asked())])
        if (self.every is not None and step % self.every == 0) or by_time:
            self.save(step)
        if asked:
            agree_to_stop()

    def save(self, step: int) -> int | None:
        """Save now; a disk that does not take it costs a warning, and the checkpoint before it stays.

        Args:
            step: Steps made, which is where a resume goes on.

        Returns:
            The step that a resume would go on from: this one, or that of the last save that succeeded, if any.
        """
        state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        generators = processes.gathered(rng_state())
        self.kept = processes.from_first(lambda: self._written(step, state, generators))
        self._saved_at = time.monotonic()
        return self.kept

    def _written(self, step: int, state: Mapping[str, Any], generators: list[dict[str, Any]]) -> int | None:
        others = {"rng_of_others": generators[1:]} if len(generators) > 1 else {}
        whole = {"step": step, "rng": generators[0], "parts": state, **others}
        left = "there is none yet" if self.kept is None else f"the one of step {self.kept} stays"
        with self.unwritten.attempt(self.path.name, left=left):
            save_checkpoint(self.path, whole)
            return step
        return self.kept

    def begin(self, *, resume: bool) -> int:
        """Load where a run is resumed, else save its step 0; returns the steps made.

        A run that died before its first save was whole has no checkpoint and nothing to lose: it begins anew.

        Args:
            resume: Whether the run is resumed. False saves over what is there; the checkpoint of before is kept behind
                it.

        Returns:
            Steps made: 0, or the step of the checkpoint that was loaded.

        Raises:
            CheckpointError: There are checkpoints, and none can be used.
        """
        if processes.from_first(lambda: resume and has_checkpoint(self.path)):
            return self.load()
        self.save(0)
        return 0

    def load(self) -> int:
        """Put every part back; returns the step the checkpoint was taken after.

        Nothing is changed before the whole checkpoint is known to fit. A newest file that cannot be used is kept as
        ``<name>.unusable``: in its place, the next save would push the last good checkpoint out behind it.

        Returns:
            The step that the checkpoint was taken after; the run's next step is the one after it.

        Raises:
            CheckpointError: No readable checkpoint, or one of another model or another set of parts.
        """
        used, saved = _for_all(self.path, self._accept)
        if processes.leads() and used != self.path and self.path.exists():
            os.replace(self.path, _beside(self.path, ".unusable"))
        for name, part in self.parts.items():
            part.load_state_dict(saved["parts"][name])
        generators = [saved["rng"], *saved.get("rng_of_others", [])]
        if processes.rank() < len(generators):  # else it was saved by fewer, and this one keeps those it has
            load_rng_state(generators[processes.rank()])
        self._saved_at = time.monotonic()
        self.kept = int(saved["step"])
        return self.kept

    def _accept(self, saved: Mapping[str, Any]) -> None:
        """Refuse what does not belong to this run."""
        if not {"step", "rng", "parts"} <= set(saved):
            raise CheckpointError("it is not the checkpoint of a run: step, rng or parts are missing")
        if set(saved["parts"]) != set(self.parts):
            raise CheckpointError(
                f"it holds {sorted(saved['parts'])}, this run has {sorted(self.parts)}; "
                "resume with the configuration that the run was started with"
            )
        for name, part in self.parts.items():
            if isinstance(part, nn.Module):
                _same_model(saved["parts"][name], part.state_dict())


def _same_model(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse the weights of another model, naming the first that does not fit."""
    for name in [*here, *there]:
        if name not in there:
            difference = f"{name!r} of this run's model is missing in it"
        elif name not in here:
            difference = f"its {name!r} is unknown to this run's model"
        elif _shape(there[name]) != _shape(here[name]):
            difference = (
                f"{name!r} has shape {_shape(there[name])} in it and {_shape(here[name])} in this run"
            )
        else:
            continue
        raise CheckpointError(
            f"it is of another model: {difference}; resume with the model configuration that the run was "
            "started with, or start a new run"
        )


def _shape(value: Any) -> tuple[int, ...] | None:
    """None for what a module keeps as extra state."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None
