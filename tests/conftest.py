"""What every test relies on, however the tests were started."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Ctrl-C interrupts: a job that a shell has put into the background starts with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
