"""Keep secrets out of what a run writes down: its saved configuration, its log, the command line that wandb records.

A value is a secret by the name of its key (``api_key``, ``password``, ``hf_token``, ``aws_secret``), by being the
value of an environment variable with such a name, or by standing as the password in a URL. Names of the trade that
only sound like it (``pad_token``, ``max_tokens``, ``key_dim``) are left alone.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["HIDDEN", "is_secret", "redact", "redact_item", "redact_text"]

HIDDEN = "[redacted]"
"""The text that replaces a secret."""

_SECRET_NAME = re.compile(
    r"(^|.*[_.-])(passwords?|passwd|passphrase|secrets?|credentials?|api[_-]?keys?|"
    r"(access|private|secret|account|auth|ssh)[_-]?key|(secret|access)[_-](key|token)([_-]id)?|"
    r"(access|auth|api|bearer|hf|hub|github|wandb|session|refresh)[_-]?token)$|token$",
    re.IGNORECASE,
)
_ENVIRONMENT_NAME = re.compile(r".*(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_ID)?$", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)([^\s/:@]*):([^\s/@]+)(?=@)")
_SHORTEST = 8  # a shorter value would be found inside ordinary words


@functools.lru_cache(maxsize=4096)  # a log asks for the same keys in every row
def is_secret(key: str) -> bool:
    """Whether the last part of a dotted key is the name of a secret.

    Args:
        key: A key with dots between its parts, or the name of an option without dashes.

    Example:
        >>> [is_secret(key) for key in ("log.api_key", "hf_token", "token", "model.pad_token", "model.key_dim")]
        [True, True, True, False, False]
    """
    return _SECRET_NAME.match(key.rpartition(".")[2]) is not None


def redact(tree: Any) -> Any:
    """A configuration as plain data with every secret text hidden.

    Args:
        tree: Nested mappings, lists and scalars; it is not changed.

    Returns:
        The same with :data:`HIDDEN` for secrets; tuples become lists.

    Example:
        >>> redact({"lr": 0.1, "hub": {"token": "hf_abcdefgh", "url": "https://me:pass@host/x"}})
        {'lr': 0.1, 'hub': {'token': '[redacted]', 'url': 'https://[redacted]@host/x'}}
    """
    if isinstance(tree, int | float):
        return tree
    if isinstance(tree, Mapping):
        return {key: _entry(str(key), value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redact(item) for item in tree]
    return redact_text(tree) if isinstance(tree, str) else tree


def redact_item(item: str) -> str:
    """A ``key=value`` item of a command line, the value hidden where the key names a secret.

    Args:
        item: As it stands on the command line, with dashes or without.

    Example:
        >>> redact_item("hub.token=abc"), redact_item("epochs=3")
        ('hub.token=[redacted]', 'epochs=3')
    """
    key, equals, value = item.partition("=")
    if equals and value and is_secret(key.lstrip("-+")):
        return f"{key}={HIDDEN}"
    return redact_text(item)


def redact_text(text: str) -> str:
    """A text without passwords in URLs and without the values of secret environment variables.

    Args:
        text: Any text. A value shorter than 8 letters is not looked for: it would be found inside ordinary words.

    Example:
        >>> redact_text("from https://me:pass@host/data")
        'from https://[redacted]@host/data'
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _ENVIRONMENT_NAME.match(name):
            text = text.replace(value, HIDDEN)
    return _URL_PASSWORD.sub(HIDDEN, text)


def _entry(key: str, value: Any) -> Any:
    if is_secret(key) and not isinstance(value, Mapping) and value not in (None, "", False):
        return HIDDEN
    return redact(value)
