"""Errors that the user can fix, and the suggestion of a similar name for them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix: the command line shows its message alone and exits with code 2.

    Recipes raise it, or a subclass, for bad input found while setting up, such as a data set that is not
    there. Any other exception is taken for a defect and keeps its traceback.
    """

    exit_code = 2


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used, said in one message with its fix."""


RENAMED = {"products": "max_matvecs", "max_products": "max_matvecs"}
"""New names of keys and options by their old ones, which no likeness of the letters would find."""


def closest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that ``name`` was renamed to, or else is most like it; None when nothing is close.

    Args:
        name: What was written, with or without dashes.
        choices: What could have been meant.

    Example:
        >>> closest("desity", ["points", "density"]), closest("products", ["points", "max_matvecs"])
        ('density', 'max_matvecs')
        >>> closest("--products", ["--points", "--max-matvecs"])
        '--max-matvecs'
    """
    choices = list(choices)
    new = RENAMED.get(name.lstrip("-"))
    for choice in choices:
        if new is not None and choice.lstrip("-").replace("-", "_") == new:
            return choice
    found = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A sentence with a leading space that suggests the closest choice; empty when none is close.

    Args:
        name: What was written.
        choices: What could have been meant.

    Returns:
        To be appended to the message of an error.

    Example:
        >>> did_you_mean("epoch", ["epochs", "seed"])
        " Did you mean 'epochs'?"
        >>> did_you_mean("xyz", ["epochs", "seed"])
        ''
    """
    found = closest(name, choices)
    return f" Did you mean '{found}'?" if found else ""
