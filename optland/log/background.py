"""Calls that may hang, made in order on a thread of their own, so that training never waits for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Background:
    """Runs calls one after the other in a daemon thread.

    A failure is raised by the next :meth:`submit` or :meth:`drain`, and so reaches the caller, later but
    surely. The calls behind it are dropped.

    Args:
        capacity: Calls that may wait. When the queue is full, the receiving side is taken to hang.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        self._calls: queue.Queue[Callable[[], object]] = queue.Queue(capacity)
        self._error: Exception | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, name="optland-background", daemon=True).start()

    @property
    def failed(self) -> bool:
        """Whether a call has raised, or did not return in time."""
        return self._error is not None

    @property
    def error(self) -> Exception | None:
        """The first thing that went wrong; a :class:`TimeoutError` where a call did not return."""
        return self._error

    def submit(self, call: Callable[[], object]) -> None:
        """Queue a call.

        Raises:
            TimeoutError: If the queue is full.
            Exception: Whatever an earlier call raised.
        """
        self._raise_earlier()
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._error = TimeoutError(f"it does not answer: {self._calls.maxsize} calls are waiting")
            raise self._error from None

    def drain(self, timeout: float) -> None:
        """Wait until all queued calls are done.

        Args:
            timeout: Longest wait in seconds.

        Raises:
            TimeoutError: If calls are still waiting then.
            Exception: Whatever a call raised.
        """
        self._done.clear()
        self.submit(self._done.set)
        if not self._done.wait(timeout):
            self._error = self._error or TimeoutError(f"it did not answer for {timeout:g} s")
        self._raise_earlier()

    def _run(self) -> None:
        while True:
            call = self._calls.get()
            if self._error is not None:
                continue
            try:
                call()
            except Exception as error:  # handed to the caller by `_raise_earlier`
                self._error = self._error or error
                self._done.set()

    def _raise_earlier(self) -> None:
        if self._error is not None:
            raise self._error
