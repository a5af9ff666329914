"""Keep finished results in files named by their subject, so that an interrupted report goes on from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from optland.archive import Archived, load
from optland.log.unwritten import Unwritten
from optland.objective import Objective

__all__ = ["Store", "key_of"]

T = TypeVar("T", bound=Archived)


class Store:
    """Results of one subject in a folder.

    Args:
        folder: Where; None keeps nothing.
        name: Of the subject.
        key: What else decides the results, see :func:`key_of`.

    Attributes:
        folder: Where; None keeps nothing.
        stem: What the names of its files begin with.
    """

    def __init__(self, folder: str | Path | None, name: str, key: str) -> None:
        self.folder, self.stem = None if folder is None else Path(folder), f"{_safe(name)}-{key}"
        self._unwritten = Unwritten()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, part: str) -> Path | None:
        """The file of a part, without its ending."""
        return None if self.folder is None else self.folder / f"{self.stem}-{part}"

    def of(self, part: str, kind: type[T], make: Callable[[], T]) -> T:
        """The result of that part, made now if it is not there, or was torn by an interruption.

        Args:
            part: Name of the part.
            kind: Its type, by which it is read again.
            make: Measures it.
        """
        path = self.path(part)
        if path is None:
            return make()
        try:
            return load(path, kind)
        except (FileNotFoundError, ValueError, TypeError):
            found = make()
            with self._unwritten.attempt(path.parent.name):  # it is kept for after an interruption alone
                found.save(path)
            return found


def key_of(settings: Mapping[str, object], *objectives: Objective) -> str:
    """Eight digits that distinguish subjects by weights, data and settings.

    Args:
        settings: What else decides the results, by name.
        objectives: The losses at their present weights; of each parameter sum and norm count, not every entry.

    Returns:
        Eight hexadecimal digits of a SHA-256.
    """
    sums = [
        [(float(p.detach().double().sum()), float(p.detach().double().norm())) for p in o.params]
        for o in objectives
    ]
    data = [(o.data, o.num_samples, o.mode, o.dtype, o.seed) for o in objectives]
    return hashlib.sha256(repr((sums, data, sorted(settings.items()))).encode()).hexdigest()[:8]


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:60] or "point"
