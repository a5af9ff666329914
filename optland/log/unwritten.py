"""Record files that a run could not write (full disk, quota, read-only folder); it trains on and says so twice.

The first failure of each file is a warning when it happens; at the end of the run all of them are listed once more,
with whether the file is there by now.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Unwritten"]


@dataclass
class _Failures:
    """Failures of one file: the last reason, how many, and whether the file is missing or old now."""

    reason: str = ""
    count: int = 0
    missing: bool = True


class Unwritten:
    """The files of a run that could not be written.

    Example:
        >>> unwritten = Unwritten()
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     for _ in range(2):
        ...         with unwritten.attempt("summary.json"):
        ...             raise OSError(28, "No space left on device")
        >>> len(caught), unwritten.missing
        (1, ['summary.json'])
        >>> unwritten.lines()
        ['NOT WRITTEN  summary.json: [Errno 28] No space left on device']
    """

    def __init__(self) -> None:
        self._files: dict[str, _Failures] = {}

    @contextlib.contextmanager
    def attempt(self, name: str, *kinds: type[Exception], left: str = "") -> Iterator[None]:
        """Run the block that writes ``name``; that the disk does not take it is noted, and not raised.

        Args:
            name: The file, as the user knows it.
            kinds: What else than ``OSError`` is no reason to end.
            left: What is there instead.

        Returns:
            A context manager; a failure of another kind goes through it.
        """
        noted: tuple[type[Exception], ...] = (OSError, *kinds)
        try:
            yield
        except noted as error:
            reason = f"{error}" or type(error).__name__
            failures = self._files.setdefault(name, _Failures())
            failures.reason, failures.missing = f"{reason}; {left}" if left else reason, True
            failures.count += 1
            if failures.count == 1:
                message = f"{name} cannot be written ({failures.reason}); the run goes on without it"
                warnings.warn(message, RuntimeWarning, stacklevel=3)  # where it was to be written
        else:
            if name in self._files:
                self._files[name].missing = False

    @property
    def missing(self) -> list[str]:
        """Files that are not there, or only in an earlier state."""
        return [name for name, failures in self._files.items() if failures.missing]

    def lines(self) -> list[str]:
        """One for each file that failed, those that are missing first.

        Returns:
            Empty where every file was written at its first attempt.
        """
        lost = [f"NOT WRITTEN  {name}: {self._files[name].reason}" for name in self.missing]
        late = [
            f"written late {name}: {failures.count} earlier attempts failed ({failures.reason})"
            for name, failures in self._files.items()
            if not failures.missing
        ]
        return [*lost, *late]
