"""The record of a run: one JSON object per line, complete after every line, whatever happens next.

Each line has a ``kind``: ``row``, ``event``, ``image``, ``table`` or ``summary``. JSON knows neither NaN
nor infinity; such a value is written as ``null`` and its key listed under ``nonfinite`` with what it was,
so every line is valid JSON for every tool, and :func:`read_jsonl` gives back the value that was logged.
"""

from __future__ import annotations

import errno
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optland.files import write_whole
from optland.log.vocabulary import Scalar

_NONFINITE = "nonfinite"


class JsonlLogger:
    """Appends to a JSON-lines file.

    A line that cannot be written, because the disk is full or away, is kept with one warning and written with
    the next that can: a disk that comes back finds the whole record.

    Args:
        path: The file; its folder is made where missing, and an existing file is continued.

    Attributes:
        path: The file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = JsonlLogger(Path(folder) / "log.jsonl")
        ...     log.log({"step": 1, "train/loss": float("inf")})
        ...     log.finish({})
        ...     read_jsonl(log.path)[0]
        {'kind': 'row', 'step': 1, 'train/loss': inf}
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._step: object = 0
        self._count: int | None = None  # lines in the file; None until it was looked at
        self._waiting: list[str] = []  # lines that the disk did not take yet
        self._size = 0  # bytes of the file's whole lines

    def log(self, row: Mapping[str, Scalar]) -> None:
        """Write the scalars of one step."""
        self._write("row", row)

    def event(self, event: Mapping[str, object]) -> None:
        """Write one decision."""
        self._write("event", event)

    def image(self, name: str, path: Path) -> None:
        """Write where an image is."""
        self._write("image", {"step": self._step, "name": name, "path": path})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Write a table as one object per row, so that its numbers keep their names.

        Args:
            name: Its key.
            columns: A name for each column.
            rows: As many cells each as there are columns.
        """
        named = [dict(zip(columns, row, strict=True)) for row in rows]
        self._write("table", {"step": self._step, "name": name, "rows": named})

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Write the summary.

        Args:
            summary: Closing values.
            exit_code: Kept under ``exit_code``.

        Raises:
            OSError: Lines of the record could not be written, and this was the last attempt.
        """
        self._write("summary", {**summary, "exit_code": exit_code})
        if self._waiting:
            self._append()

    def read(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The record as :func:`read_jsonl` reads it, with the lines that are not on the disk yet.

        Args:
            kind: Only lines of this kind, such as ``"row"``; None for all.

        Returns:
            In the order in which they were logged.
        """
        waiting = [_decode(json.loads(line)) for line in self._waiting]
        return read_jsonl(self.path, kind) + [item for item in waiting if kind in (None, item["kind"])]

    def state_dict(self) -> dict[str, Any]:
        """How many lines the record has now.

        Returns:
            The count under ``lines``; those that wait for the disk count too.
        """
        count = len(_lines(self.path)) if self._count is None else self._count
        return {"lines": count + len(self._waiting)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Drop every line that was written after the state was taken: the resumed run writes it again.

        Args:
            state: From :meth:`state_dict`; lines are counted, so that two rows of one step are told apart.
        """
        self._keep(lambda index, _: index < int(state["lines"]))

    def truncate_after(self, step: int) -> None:
        """Drop what is later than a step, and any summary, so that a resumed run leaves one clean record.

        Args:
            step: The step of the checkpoint; its own rows stay.
        """
        self._keep(lambda _, line: line["kind"] != "summary" and line.get("step", 0) <= step)

    def _write(self, kind: str, content: Mapping[str, object]) -> None:
        line = json.dumps(_encode({"kind": kind, **content}), allow_nan=False)
        self._step = content.get("step", self._step)
        self._waiting.append(line)
        try:
            self._append()
        except OSError as error:
            if len(self._waiting) == 1:
                message = f"{self.path} cannot be written ({error}); its lines are kept until it can"
                warnings.warn(message, RuntimeWarning, stacklevel=3)

    def _append(self) -> None:
        """Write all lines that wait, or none of them."""
        if self._count is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._keep(lambda *_: True)  # a torn last line would spoil the first new one
            self._count = len(_lines(self.path))
            self._size = self.path.stat().st_size if self.path.exists() else 0
        text = "".join(f"{line}\n" for line in self._waiting).encode()
        # Opened for every line: what was logged is in the file, and a run that dies leaves nothing open.
        try:
            with self.path.open("ab", buffering=0) as file:
                written = file.write(text)
                if written != len(text):
                    raise OSError(errno.ENOSPC, f"only {written} of {len(text)} bytes were taken")
        except OSError:
            if self.path.exists():
                os.truncate(self.path, self._size)  # half a line would spoil the record
            raise
        self._count += len(self._waiting)
        self._size += len(text)
        self._waiting.clear()

    def _keep(self, wanted: Callable[[int, dict[str, Any]], bool]) -> None:
        """Rewrite the file with the wanted lines only, in one atomic step."""
        if not self.path.exists():
            return
        self._count = None
        kept = [line for index, line in enumerate(_lines(self.path)) if wanted(index, json.loads(line))]
        text = "".join(f"{line}\n" for line in kept)
        if text.encode() != self.path.read_bytes():
            write_whole(self.path, text)


def read_jsonl(path: str | Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Every line of a record as a dictionary, non-finite values restored.

    Args:
        path: The file. A last line that a crash cut short is left out.
        kind: Only lines of this kind, such as ``"row"``.

    Returns:
        In the order of the file; none where there is no file.

    Raises:
        ValueError: If a line other than the last is not JSON: the file is then damaged, not cut short.
    """
    objects = [_decode(json.loads(line)) for line in _lines(Path(path))]
    return [item for item in objects if kind is None or item.get("kind") == kind]


def _lines(path: Path) -> list[str]:
    """The complete lines of a record; the last is complete only if it parses.

    A write that a crash cut short leaves a last line that does not, which is no fault of the file.
    """
    if not path.exists():
        return []
    *lines, tail = path.read_text(encoding="utf-8", errors="replace").split("\n")
    if tail and _parses(tail):
        return [*lines, tail]
    for number, line in enumerate(lines, 1):
        if not _parses(line):
            if number == len(lines) and not tail:
                return lines[:-1]
            raise ValueError(
                f"{path}, line {number} is not JSON: {line[:60]!r}. Restore the file or delete that line"
            )
    return lines


def _parses(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


def _encode(value: Any) -> Any:
    """JSON-ready, with non-finite numbers moved into ``nonfinite`` of the mapping that holds them."""
    if isinstance(value, Mapping):
        encoded = {str(key): _encode(item) for key, item in value.items()}
        lost = {key: str(item) for key, item in encoded.items() if _is_nonfinite(item)}
        return {**encoded, **dict.fromkeys(lost), _NONFINITE: lost} if lost else encoded
    if isinstance(value, (list, tuple)):
        return [None if _is_nonfinite(item) else item for item in map(_encode, value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return _encode(value.item()) if hasattr(value, "item") else str(value)


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    lost = value.get(_NONFINITE, {})
    restored = {key: float(lost[key]) if key in lost else _decode(item) for key, item in value.items()}
    restored.pop(_NONFINITE, None)
    return restored


def _is_nonfinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
