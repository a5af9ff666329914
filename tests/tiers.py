"""Which parameters of a test belong to the slow tier."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["slow"]

wanted = True
"""Whether this run may come to the slow tier; making its parameters for nothing takes a third of the collection."""


def slow(*values: Any) -> list[Any]:
    """Parameters that repeat a check at another size or in another combination; ``make test-all`` runs them.

    A test of several arguments is given one tuple for each of its cases.
    """
    if not wanted:
        return []
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
        for value in values
    ]
