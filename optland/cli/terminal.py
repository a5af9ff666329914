"""Output of the command line, and its exit codes."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "REFUSED",
    "STOPPED",
    "UNREAD",
    "complain",
    "hanging",
    "say",
    "table_console",
]

DONE = 0
FAILED = 1
"""Something of what was asked for did not come out, such as members of a grid."""
REFUSED = 2
"""The user's input cannot be used."""
STOPPED = 75
"""Stopped by a signal, with a checkpoint of the last step: ``RESUMABLE`` of optland.train, without its torch."""
INTERRUPTED = 130
"""Ctrl-C where there was nothing to save."""
UNREAD = 141
"""A command that does nothing but print, and whose reader has left: what a shell reports of SIGPIPE."""

_FILE_WIDTH = 120  # columns of a table in a file, which has no width of its own


def say(text: str) -> None:
    """A line on standard output, shown at once also where that is a file."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def hanging(text: str, indent: int) -> str:
    """A long line broken at the terminal's width, its other lines set in; whole in a file, where it is searched for.

    Args:
        text: One line.
        indent: Columns by which its other lines are set in.
    """
    if not sys.stdout.isatty():
        return text
    width = max(shutil.get_terminal_size().columns, indent + 30)
    return textwrap.fill(
        text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def complain(text: str) -> None:
    """A line on standard error."""
    sys.stderr.write(f"{text}\n")


def table_console() -> Console:
    """A rich console for tables on standard output, to which every text is only a text: ``[recipes]`` is no markup."""
    from rich.console import Console

    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console
