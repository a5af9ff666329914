"""Results in a file of JSON lines, one per finished piece of work, so that interrupted work goes on where it was.

A line is written in one call when its work has ended. A process that is killed leaves at most one torn line at the end,
which is dropped when the file is opened again: that piece is done anew. A file belongs to one process at a time; any
number of others may read it meanwhile.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optland.files import write_whole

__all__ = ["Kept", "kept_lines"]


def kept_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The results in a file; of a torn line it is told that it is left out, and a file that is not there has none.

    Args:
        path: A file of JSON lines.

    Returns:
        An iterator over the results, oldest first; a warning for each torn line.
    """
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            warnings.warn(
                f"{path}: a torn line is dropped, its run is made again", RuntimeWarning, stacklevel=2
            )


@dataclass
class Kept:
    """Finished results by key, in a file of JSON lines.

    Attributes:
        path: The file; its folder is made.
        key: What a result is found by.
        done: The results.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "kept.jsonl"
        ...     _ = Kept(file).of("two", lambda: {"square": 4})
        ...     Kept(file).of("two", lambda: {"square": 5})  # it is there already
        {'square': 4}
    """

    path: Path
    key: Callable[[dict[str, Any]], str] = lambda found: str(found["key"])
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.done |= {self.key(found): found for found in kept_lines(self.path)}
        whole = "".join(f"{json.dumps(f)}\n" for f in self.done.values())
        if not self.path.exists() or self.path.read_text(encoding="utf-8") != whole:
            write_whole(self.path, whole)  # anew: the next line must not be glued to a torn one

    def add(self, found: dict[str, Any]) -> None:
        """Keep one more result.

        Args:
            found: Values that JSON has; under the key of an older result it takes its place.
        """
        self.done[self.key(found)] = found
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")

    def of(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of that key, measured now if it is not there.

        Args:
            key: What the result is found by, the ``key`` of its line.
            measure: Called where the result is not there; what it gives is kept.

        Returns:
            The result without its key.
        """
        if key not in self.done:
            self.add({"key": key, **measure()})
        return {name: value for name, value in self.done[key].items() if name != "key"}
