"""What every test relies on, however the tests were started."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import tiers

_threads = 0


def pytest_configure(config: pytest.Config) -> None:
    """Ctrl-C interrupts: a job that a shell has put into the background starts with SIGINT ignored."""
    tiers.wanted = config.option.markexpr != "not slow"
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """The number of threads that this run is for; nothing has been run yet."""
    global _threads
    if "torch" in sys.modules:
        _threads = sys.modules["torch"].get_num_threads()
        _seed_what_is_there(sys.modules["torch"])


def _seed_what_is_there(torch: Any) -> None:
    """``torch.manual_seed`` keeps the text of a whole stack for each accelerator that is not there: a millisecond."""
    for name in ("cuda", "xpu", "mtia"):
        accelerator = getattr(torch, name, None)
        if accelerator is not None and hasattr(accelerator, "_lazy_call") and not accelerator.is_available():
            accelerator._lazy_call = lambda *_, **__: None


@pytest.fixture(autouse=True)
def _as_many_threads() -> Iterator[None]:
    """A recipe that is run in this process sets the number of threads, and another number rounds otherwise."""
    _put_back()
    yield
    _put_back()


def _put_back() -> None:
    torch = sys.modules.get("torch")
    if _threads and torch is not None and torch.get_num_threads() != _threads:
        torch.set_num_threads(_threads)
