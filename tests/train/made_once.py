"""A data set that takes a second to make, for tests that want it made but once."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mnist1d.data
import pytest

__all__ = ["mnist1d_made_once"]

_make = mnist1d.data.make_dataset


@functools.cache
def _made() -> Any:
    return _make(mnist1d.data.get_dataset_args())


@contextmanager
def mnist1d_made_once() -> Iterator[None]:
    """Within it, the package gives what it made before, to this process, and draws no random number for it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mnist1d.data, "make_dataset", lambda args: _made())
        yield
