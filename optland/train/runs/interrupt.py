"""End a run on a signal after a whole step, with a checkpoint and an exit code that asks for a restart.

Schedulers send SIGTERM some seconds before they take a machine away, and Ctrl-C sends SIGINT. The first of either lets
the step finish; the loop then saves and leaves with exit code 75 (``EX_TEMPFAIL`` of BSD's sysexits: a temporary
failure, try again), which no other ending of a run uses, so that a script can go on by itself::

    until optland run landscape_train digits --resume; do [ $? -eq 75 ] || break; done

A second signal acts at once, as if this were not here: SIGTERM ends the process, SIGINT raises ``KeyboardInterrupt``.
The checkpoint of the last save is then what a resume starts from.

Of several processes of a run each may get the signal, or one of them, and none at the same step as another. So a
signal is a wish there, which :class:`~optland.train.runs.checkpoint.Checkpoint` tells to all: they leave after the
same step.
A launcher hands a signal on to processes that have got it themselves; what comes shortly after the first is no second.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
import warnings
from types import FrameType, TracebackType
from typing import Any, NoReturn, Protocol

from optland import processes

__all__ = ["RESUMABLE", "GracefulStop", "agree_to_stop", "leave_signals_to_main", "stop_asked"]

RESUMABLE = 75
"""Exit code of a run that was stopped with a checkpoint of its last step: run it again with ``--resume``."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

HANDED_ON = 10.0
"""Seconds in which a signal to one of several processes is taken for the first one, handed on by their launcher."""

_heeding: list[GracefulStop] = []


class Keeps(Protocol):
    """Anything that can save a run, such as :class:`~optland.train.runs.checkpoint.Checkpoint`."""

    def save(self, step: int) -> int | None:
        """Save the run as it is.

        Args:
            step: Steps made.

        Returns:
            The step that a resume would go on from: ``step`` where the save succeeded, an earlier one where it did not,
            None without a checkpoint.
        """


class GracefulStop:
    """Turns the first SIGTERM or SIGINT into a request that the loop answers after its step.

    In a loop::

        with GracefulStop() as stop:
            for batch in loader:
                ...
                checkpoint.after_step(step)
                if stop.requested:
                    stop.leave(checkpoint, step)

    Python lets only the main thread receive signals. In another thread this does nothing but warn once; there a signal
    acts at once, and the owner of the thread can call :meth:`request` instead.

    Example:
        >>> with GracefulStop() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.requested, stop.by
        (True, 'SIGTERM')
    """

    def __init__(self) -> None:
        self.requested = False
        """Whether the run should save and leave after this step."""
        self.by = ""
        """Name of the signal that asked; empty as long as none has."""
        self.asked_at: float | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is not threading.main_thread():
            warnings.warn(
                "signals reach the main thread only: in this thread SIGTERM and Ctrl-C cannot wait for the end of a "
                "step; train in the main thread, or call request() on the GracefulStop",
                RuntimeWarning,
                stacklevel=2,
            )
            return self
        for number in _SIGNALS:
            # A handler that was not set from Python reads as None and cannot be put back: the default is nearest.
            self._before[number] = signal.signal(number, self._on_signal) or signal.SIG_DFL
        _heeding.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def request(self, by: str = "request()") -> None:
        """Ask for the stop as a first signal does.

        Args:
            by: What the closing message names as the reason.
        """
        self.by, self.asked_at = by, time.monotonic()
        self.requested = processes.size() == 1  # of several, once they all know

    def leave(self, checkpoint: Keeps | None = None, step: int = 0) -> NoReturn:
        """Save, say what there is to go on from, and leave.

        Args:
            checkpoint: That of the run, or anything else that can save it; None where the caller has saved itself.
            step: Steps made.

        Raises:
            SystemExit: With code :data:`RESUMABLE`; with 1, where the disk has taken no checkpoint at all.
        """
        kept = step if checkpoint is None else checkpoint.save(step)
        if kept == step:
            how, code = "after a whole step; go on with --resume", RESUMABLE
        elif kept is not None:
            how = f"after step {step}, which could not be saved; --resume goes on from step {kept}"
            code = RESUMABLE
        else:
            how, code = f"after step {step}; no checkpoint could be written, so there is nothing to resume", 1
        if processes.leads():
            with contextlib.suppress(OSError):  # nobody reads it
                sys.stderr.write(f"stopped by {self.by} {how}\n")
        raise SystemExit(code)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked_at is not None:
            if processes.size() > 1 and time.monotonic() < self.asked_at + HANDED_ON:
                return
            self._release()
            signal.raise_signal(number)
            return
        self.request(signal.Signals(number).name)

    def _release(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if self in _heeding:
            _heeding.remove(self)


def stop_asked() -> bool:
    """Whether a signal to this process, or its own code, has asked for the end of the run.

    True from the signal on, also where :attr:`GracefulStop.requested` has to wait until the other processes know.
    """
    return any(stop.asked_at is not None for stop in _heeding)


def agree_to_stop() -> None:
    """Let this process leave with the others after the present step: one of them was asked to."""
    for stop in _heeding:
        stop.by = stop.by or "a signal to another process of the run"
        stop.requested = True


def leave_signals_to_main(worker: int = 0) -> None:
    """Let a loader's worker outlive the first signal: Ctrl-C and cluster schedulers signal the whole process group.

    A worker that died of it would break the step that the main process is about to finish. The main process ends its
    workers itself; to a second SIGTERM, which is how it insists, a worker gives way.

    Args:
        worker: Number of the worker, as a ``worker_init_fn`` is given it; not used.
    """

    def let_the_next_one_through(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, let_the_next_one_through)
