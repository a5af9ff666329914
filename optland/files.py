"""Write files atomically (beside their place, then moved into it in one step), and values as JSON has them."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ASIDE = ".writing"
"""Ending of a file that is not whole yet; what has it was left by a process that was killed."""


def write_whole(path: str | Path, content: bytes | memoryview | str, *, flush: bool = False) -> None:
    """Write a file, so that at every instant the old one or the new one is there.

    Args:
        path: The file; its folder has to exist.
        content: All of it; a text is written as UTF-8.
        flush: Wait until it is on the disk, for what has to survive a power cut.

    Raises:
        OSError: It could not be written. What was there is still there, and the half of the new one is gone.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder) / "a.txt", "whole")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    path = Path(path)
    aside = path.with_name(path.name + ASIDE)
    try:
        with aside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first failure is the one to tell
            aside.unlink(missing_ok=True)
        raise


def for_json(value: Any, digits: int = 17) -> Any:
    """The same value with None for numbers that JSON does not have, lists for tuples, and no more digits than these.

    Args:
        value: Mappings, lists, numbers, texts.
        digits: Significant ones; 17 leave every float as it is.

    Example:
        >>> for_json({"a": (float("nan"), 1 / 3)}, digits=3)
        {'a': [None, 0.333]}
    """
    if isinstance(value, Mapping):
        return {str(name): for_json(inner, digits) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(inner, digits) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value
