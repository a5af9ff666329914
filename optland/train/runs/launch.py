"""The folders of a run, and which of them the present launcher has begun.

A launcher that starts its processes anew after one has died gives them the command of before, without ``--resume``. The
run to go on with is then the one that this launcher began, and no older one of the same name; so its folder says which.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from optland import processes
from optland.files import write_whole

__all__ = ["begun", "candidates", "mark", "newest"]

_FILE = ".launch"
_RUN = "TORCHELASTIC_RUN_ID"


def candidates(out: Path) -> Iterator[Path]:
    """The folders ``out``, ``out-2``, ``out-3`` ..., without end.

    Example:
        >>> [folder.name for folder in itertools.islice(candidates(Path("runs/digits")), 3)]
        ['digits', 'digits-2', 'digits-3']
    """
    yield out
    yield from (out.with_name(f"{out.name}-{number}") for number in itertools.count(2))


def newest(out: Path) -> Path | None:
    """The last of those folders that holds a run; None where the first holds none."""
    found = None
    for folder in itertools.takewhile(lambda folder: (folder / "config.yaml").exists(), candidates(out)):
        found = folder
    return found


def mark(folder: Path) -> None:
    """Note the launcher in a folder that holds a run now; nothing is written without one."""
    if processes.asked() > 1 or _RUN in os.environ:
        write_whole(folder / _FILE, _launcher())


def begun(out: str | Path) -> bool:
    """Whether the newest folder of this name is one that the present launcher has begun.

    Args:
        out: The folder that was asked for, without a number.

    Returns:
        False where no folder of the name holds a run, and where another launcher, or none, has begun the newest.
    """
    folder = newest(Path(out))
    noted = None if folder is None else folder / _FILE
    return noted is not None and noted.exists() and noted.read_text(encoding="utf-8") == _launcher()


def _launcher() -> str:
    """The launch and the launcher's process, which outlives those that it starts."""
    return f"{os.environ.get(_RUN, '')} {os.getppid()}"
