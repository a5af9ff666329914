"""Lock a run folder for one process at a time, until that process ends, however it ends.

Two processes that write to one folder would spoil its record and its checkpoints: a second ``--resume`` typed by
mistake, or a grid that is started again while a member of the killed one is still at work. The lock is POSIX's, so
child processes do not inherit it and ``kill -9`` leaves none behind. Where the system has no such locks nothing is
locked, and two processes are the user's to avoid.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["lock_folder", "release"]

_FILE = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = -1


def lock_folder(folder: Path) -> int | None:
    """Lock a folder for this process.

    Args:
        folder: An existing folder; the empty file ``.lock`` is left in it.

    Returns:
        A handle for :func:`release`; None where another process holds the folder.

    Raises:
        OSError: The file cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     handle = lock_folder(Path(folder))
        ...     release(handle)
        ...     handle is None
        False
    """
    try:
        import fcntl
    except ImportError:
        return _NO_LOCKS
    handle = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        return None if error.errno in _TAKEN else _NO_LOCKS
    return handle


def release(handle: int | None) -> None:
    """Give the folder free again.

    POSIX drops a process's lock on a file with the first handle of it that is closed, whichever that is.

    Args:
        handle: From :func:`lock_folder`; None, and the mark of a system without locks, do nothing.
    """
    if handle is not None and handle != _NO_LOCKS:
        os.close(handle)
