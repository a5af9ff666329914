"""What the command line says, and its exit codes."""

from __future__ import annotations

import sys

__all__ = ["DONE", "FAILED", "INTERRUPTED", "REFUSED", "STOPPED", "complain", "say"]

DONE = 0
FAILED = 1
"""Something of what was asked for did not come out, such as members of a grid."""
REFUSED = 2
"""The user's input cannot be used."""
STOPPED = 75
"""Stopped by a signal with a checkpoint of the last step; ``optland.train.interrupt.RESUMABLE``, without its torch."""
INTERRUPTED = 130
"""Ctrl-C where there was nothing to save."""


def say(text: str) -> None:
    """A line on standard output, shown at once also where that is a file."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """A line on standard error."""
    sys.stderr.write(f"{text}\n")
