"""A child Python process that takes orders over a pipe, so that its work blocks neither interpreter nor caller.

Both ends are here: :class:`Child` is the parent's, :class:`Post` that of the process itself. Orders and reports are
JSON, one per line. The parent never waits for the process: it writes what the pipe takes and keeps the rest for the
next time, with no thread. To the parent an order costs its JSON text and one write, some 30 microseconds for a row.

The process is made by starting the interpreter anew on one module, so the caller's script is not run again, whether it
has a ``__main__`` guard or not, and nothing is imported that the module does not ask for. It has a session of its own
and ignores the signals that stop a run, so that it can still write down how the run ended. It ends when the parent
closes the pipe or is gone, even by ``kill -9`` and with other processes that hold the pipe by inheritance.

Caveat: POSIX only (pipes that do not block, ``poll``).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["Child", "Post"]

_BOOT = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[1])
importlib.import_module(sys.argv[2]).main()
"""
_PIECE = 1 << 16
_CAPACITY = 1 << 26  # bytes that may wait in the parent; more and the process is taken to hang
_ORDERS = 10_000  # that may wait in the process, before it leaves the others in the pipe
_LAST_WORDS = 500  # characters
_DROPPED = 1.0  # seconds for a process to end once its pipe is closed
_KILLED = 1.0  # seconds for a killed process to be gone
_SURE = 0.2  # seconds until a parent that dies is seen to be gone; its pipes close a moment before


class Child:
    """Starts the process and speaks with it. No call waits, unless it says for how long.

    Args:
        module: Name of a module whose ``main()`` the process runs; ``main`` makes a :class:`Post`.
        environment: The process's environment variables.
        capacity: Bytes of orders that may wait here. With more, the process is taken to hang.

    Raises:
        OSError: The process could not be started.
    """

    def __init__(
        self, module: str, environment: Mapping[str, str] | None = None, *, capacity: int = _CAPACITY
    ) -> None:
        if not sys.executable:
            raise OSError("this Python does not know its own interpreter (sys.executable is empty)")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, json.dumps([str(entry) for entry in sys.path]), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._reports = self._process.stdin, self._process.stdout
        os.set_blocking(self._orders.fileno(), False)
        os.set_blocking(self._reports.fileno(), False)
        self._capacity = capacity
        self._unsent = bytearray()
        self._heard = b""
        self._last_words = ""

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def gone(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def send(self, *order: object) -> None:
        """Hand over an order, now or as soon as the pipe takes it.

        Args:
            order: Anything that JSON knows; what has a ``tolist`` (numpy, torch) is taken by it, all else as text.

        Raises:
            TimeoutError: The process has not taken its orders for long.
        """
        self._unsent += json.dumps(order, default=_plain).encode() + b"\n"
        self._push()
        if len(self._unsent) > self._capacity:
            raise TimeoutError(f"it does not answer: {len(self._unsent)} bytes are waiting")

    def reports(self) -> list[list[Any]]:
        """The reports of the process since the last call."""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._reports.fileno(), _PIECE):
                self._heard += piece
        *lines, self._heard = self._heard.split(b"\n")
        heard = []
        for line in lines:
            if line.startswith(b"["):
                heard.append(json.loads(line))
            else:  # not from the child: the interpreter's own message, where it could not start
                self._last_words = (self._last_words + " " + line.decode(errors="replace"))[-_LAST_WORDS:]
        return heard

    def wait(self, seconds: float) -> None:
        """Wait until the process reports or ends, ``seconds`` at most, and hand over what is still here."""
        deadline = time.monotonic() + seconds
        waiting = select.poll()
        waiting.register(self._reports.fileno(), select.POLLIN)
        if self._unsent:
            waiting.register(self._orders.fileno(), select.POLLOUT)
        waiting.poll(max(0.0, 1e3 * (deadline - time.monotonic())))
        self._push()

    def obituary(self) -> str:
        """How the process came to its end, in words."""
        words = f":{self._last_words}" if self._last_words else ""
        return f"its process ended with exit code {self._process.returncode}{words}"

    def end(self, patience: float) -> None:
        """See to it that the process ends.

        Args:
            patience: Seconds that it has to end by itself. After them the pipe is closed, which makes it drop what it
                is at, and a second later the process is killed.
        """
        for seconds, step in (
            (patience, self._orders.close),
            (_DROPPED, self._process.kill),
            (_KILLED, self._reports.close),
        ):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                break
            step()
        self._orders.close()
        self._reports.close()

    def _push(self) -> None:
        # A process that is gone takes nothing: `gone` tells.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._unsent:
                del self._unsent[: os.write(self._orders.fileno(), self._unsent[:_PIECE])]


class Post:
    """The process's own end: orders come in, reports go out.

    Orders are taken from the pipe as they come, however long the one before them takes.

    Args:
        last_resort: Called before the process is ended although an order has not come back.
        patience: Seconds for the orders that are left when the parent is gone; one that is there and has closed the
            pipe waits for nothing any more.
    """

    def __init__(self, last_resort: Callable[[], object], *, patience: float = 5.0) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # The pipes are for this module alone: neither a stray print nor a process that is started here may hold them.
        self._in, self._out = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        self.parent = os.getppid()
        """Number of the process that gives the orders."""
        self._last_resort = last_resort
        self._patience = patience
        self._waiting: queue.Queue[list[Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def orders(self) -> Iterator[list[Any]]:
        """Every order in turn, until the parent closes the pipe or is gone."""
        while (order := self._waiting.get()) is not None:
            yield order

    def report(self, *words: object) -> None:
        """Tell the parent, if it is still there."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._out, json.dumps(words).encode() + b"\n")

    def _listen(self) -> None:
        for line in self._lines():
            self._waiting.put(json.loads(line))
        self._waiting.put(None)
        time.sleep(_SURE)
        if self._orphaned():
            time.sleep(self._patience)
        self._last_resort()
        os._exit(1)

    def _orphaned(self) -> bool:
        return os.getppid() != self.parent

    def _lines(self) -> Iterator[bytes]:
        rest = b""
        while True:
            full = self._waiting.qsize() >= _ORDERS
            there = select.poll()
            there.register(self._in, 0 if full else select.POLLIN)  # a hang-up is told in either case
            events = dict(there.poll(100 if full else 1000)).get(self._in, 0)
            if not events & select.POLLIN:
                # Other processes may hold the pipe open: the children that a killed parent had forked.
                if events or self._orphaned():
                    return
                continue
            piece = os.read(self._in, _PIECE)
            if not piece:
                return
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
