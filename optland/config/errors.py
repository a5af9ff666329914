"""Errors that are the user's to put right, and the suggestion that helps with most of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right: the command line shows its message alone and exits with code 2.

    Recipes raise it, or a subclass, for bad input found while setting up, such as a data set that is not
    there. Any other exception is taken for a defect and keeps its traceback.
    """


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used, said in one message with its fix."""


def closest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``name``; None when nothing is close."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A sentence with a leading space that suggests the closest choice; empty when none is close."""
    found = closest(name, choices)
    return f" Did you mean '{found}'?" if found else ""
