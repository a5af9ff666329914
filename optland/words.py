"""Verdicts in words that are constants too."""

from __future__ import annotations

from enum import StrEnum


class Words(StrEnum):
    """A set of verdicts, each of which is equal to its text and is printed, compared and written as that.

    Example:
        >>> class Weather(Words):
        ...     DRY = "dry"
        ...     WET = "wet"
        >>> Weather.DRY, Weather.DRY == "dry", f"it is {Weather.WET}"
        ('dry', True, 'it is wet')
    """

    def __repr__(self) -> str:
        return repr(self.value)
