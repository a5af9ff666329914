"""Warnings to the user, given once each and reported at the user's own line."""

from __future__ import annotations

import inspect
import os
import warnings
from pathlib import Path

import torch

__all__ = ["Notices"]

_INSIDE = (str(Path(__file__).parents[1]) + os.sep, str(Path(torch.__file__).parent) + os.sep)
"""Files of this package and of PyTorch, whose wrappers lie between a loop and the engine."""


class Notices:
    """The notices that one optimizer has given."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def once(self, about: str, message: str) -> None:
        """Warn, unless this optimizer has done so already.

        Args:
            about: What tells notices apart.
            message: In words.
        """
        if about not in self._given:
            self._given.add(about)
            warnings.warn(message, RuntimeWarning, stacklevel=_level())


def _level() -> int:
    """The ``stacklevel``, counted from the caller, of the innermost line outside this package and PyTorch."""
    level, here = 1, inspect.currentframe()
    frame = here.f_back if here is not None else None
    while frame is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    return level
