"""Keep a command alive when standard output or error goes away: a reader that leaves, or a full disk.

``optland run ... | head -1`` trains to its end, and a batch job whose output file lies on a full disk does too. Nothing
is raised where the text is printed, whoever prints it (``print``, rich, a warning, the interpreter's own last flush):
the failure is met below all of them, where bytes go to the file, and is kept for the exit code.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import IO, TextIO

__all__ = ["Outcome", "let_go", "steady"]


class Outcome:
    """The outcome of writing to standard output.

    Attributes:
        closed: Whether its reader has left.
        failure: Why text was lost otherwise, such as a full disk; None where none was.
    """

    def __init__(self) -> None:
        self.closed = False
        self.failure: OSError | None = None


class _Sink(io.FileIO):
    """A descriptor whose write never fails: what cannot be written is dropped, and the outcome says so."""

    def __init__(self, descriptor: int, outcome: Outcome) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._outcome = outcome

    def write(self, data: object, /) -> int:
        """All of it, or nothing and a note."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError:
            self._outcome.closed = True
            _discard(self.fileno())
        except OSError as error:  # the disk may have room again for the next line
            self._outcome.failure = error
        return memoryview(data).nbytes  # type: ignore[arg-type]


@contextlib.contextmanager
def steady() -> Iterator[Outcome]:
    """Make the process's own standard output and error steady for as long as the block runs.

    Streams that were put in their place (a notebook's, a test's) are left alone; one that the caller had closed
    (``>&-``) is opened on the null device.

    Returns:
        A context manager that gives the outcome of standard output.
    """
    outcome = Outcome()
    with contextlib.ExitStack() as put_back:
        for name, about in (("stdout", outcome), ("stderr", Outcome())):
            before: TextIO | None = getattr(sys, name)
            if before is not getattr(sys, f"__{name}__"):
                continue
            now = _null() if before is None else _steadied(before, about)
            setattr(sys, name, now)
            put_back.callback(setattr, sys, name, before)
            put_back.callback(now.flush)
        yield outcome


def let_go(stream: IO[str]) -> None:
    """Send what a stream whose reader has left still holds, and all that comes after it, to the null device.

    Args:
        stream: A text stream with a descriptor; any other is left as it is.
    """
    with contextlib.suppress(OSError, ValueError):  # a stream of the user's own that has no descriptor
        _discard(stream.fileno())


def _steadied(stream: TextIO, outcome: Outcome) -> TextIO:
    raw = _Sink(stream.fileno(), outcome)
    try:
        stream.flush()
    except BrokenPipeError:
        outcome.closed = True
        _discard(raw.fileno())
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=getattr(stream, "write_through", False),
    )


def _null() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _discard(descriptor: int) -> None:
    """Point a descriptor at the null device, so that what buffers above it still hold is written without an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
