"""A thread that takes orders, so that whoever gives them never waits for work that may hang.

Orders wait in memory as JSON, so a value that changes later is written as it was. The thread is a daemon: one that
hangs is left behind, and holds up neither the caller nor the end of the process.
"""

from __future__ import annotations

import json
import queue
import threading
from typing import Any

__all__ = ["Worker"]

_CAPACITY = 1 << 26  # characters that may wait; with more, the work is taken to hang


class Worker:
    """Has an object obey orders, one after the other, in a thread of its own.

    Args:
        receiver: The object; an order is the name of one of its methods and the arguments.
        last: The order after which the thread ends.
        capacity: Characters of orders that may wait, until the work is taken to hang.

    Attributes:
        failure: What an order raised, after which no other is obeyed; None where all is well.

    Example:
        >>> heard = []
        >>> worker = Worker(heard, last="append")
        >>> worker.send("extend", (1, 2))
        >>> worker.send("append", 3)
        >>> worker.ended(10), heard, worker.failure
        (True, [1, 2, 3], None)
    """

    def __init__(self, receiver: object, *, last: str, capacity: int = _CAPACITY) -> None:
        self.failure: BaseException | None = None
        self._receiver, self._last, self._capacity = receiver, last, capacity
        self._orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        # One end counts up each: a difference that both changed would need a lock.
        self._given = self._done = 0
        self._thread = threading.Thread(target=self._obey, name="optland-orders", daemon=True)
        self._thread.start()

    def send(self, *order: object) -> None:
        """Hand over an order; returns at once.

        Args:
            order: Anything that JSON knows; what has a ``tolist`` (numpy, torch) is taken by it, all else as text.

        Raises:
            TimeoutError: Too many orders are waiting.
        """
        text = json.dumps(order, default=_plain)
        self._given += len(text)
        self._orders.put(text)
        if (waiting := self._given - self._done) > self._capacity:
            raise TimeoutError(f"it does not answer: orders of {waiting} characters are waiting")

    def ended(self, seconds: float) -> bool:
        """Whether the thread ends within so many seconds: the last order is obeyed, or one has failed.

        Args:
            seconds: How long to wait; 0 or less only looks.
        """
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def _obey(self) -> None:
        name = ""
        try:
            while name != self._last:
                text = self._orders.get()
                name, *arguments = json.loads(text)
                getattr(self._receiver, name)(*arguments)
                self._done += len(text)
        except (Exception, SystemExit) as error:  # whatever it was, the caller decides what it means
            self.failure = error


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
