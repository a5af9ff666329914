"""One wandb run, in a thread of this process: with the guest's module, the only place that imports wandb.

:class:`optland.log.WandbLogger` gives the orders below to a :class:`optland.log.worker.Worker`, in whose thread the
run lives: most of wandb's calls wait for its service process, and a service that hangs would hold up whoever asks.

=========  ============================================  ==============================================================
order      arguments                                     meaning
=========  ============================================  ==============================================================
start      see :meth:`Run.start`                         start wandb's service, connect
log        row                                           one history row
image      step, name, path                              an image file as a history row
table      step, name, columns, rows                     a table as a history row
alert      title, text, level                            a notice to the user
finish     summary, exit code                            write the summary and close; the last order
=========  ============================================  ==============================================================

What each fault does to wandb 0.31 itself, and what meets it here:

- *No server, or one that hangs*: :func:`wandb.init` waits for ``init_timeout``; the server is asked for a word before.
- *A service that dies*: every call raises at once.
- *A service that hangs*: ``log`` goes on until a socket is full, then blocks; ``finish`` and ``teardown`` block without
  limit, ``finish_timeout`` or not. The thread is left behind. wandb's hook at the interpreter's exit would wait
  without limit too: :func:`wandb.teardown` in one more thread takes the hook away before it blocks. On Linux the
  service is then killed, by its number in the system's list of this process's children.
- *A full disk, a read-only folder*: wandb says nothing; the file and its disk are looked at when the run is finished.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optland.log.greeting import silence
from optland.log.meanings import GROUPS
from optland.log.vocabulary import STEP, without_chart
from optland.log.wandb_environment import without_empty

__all__ = ["ELSEWHERE", "Run", "new_id", "prepare"]

ELSEWHERE = "Set WANDB_DIR to a folder with room"
"""What to do about a disk that does not take a run."""

_ONLINE_TIMEOUT = 6.0  # seconds for wandb.init, unless WANDB_INIT_TIMEOUT says otherwise
_FLUSH_TIMEOUT = 1.0  # the service writes the last block a moment after the run is finished
_FAREWELL = 1.0  # seconds for the service of a finished run to end
_NO_FAREWELL = 0.1  # for one that has had its time
_KILLED = 1.0  # seconds for wandb to see that its service is gone
_ROOM = 16 * 1024  # bytes; a disk with less has hardly taken the last rows

_DEFAULTS = {
    "WANDB_ERROR_REPORTING": "false",  # goes to the server even offline, and holds up the exit when that hangs
    "WANDB__SERVICE_WAIT": "8",  # seconds for the service to start; wandb's own 30 would be lost for training
    "WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": "0.1",  # seconds of rows that die with the process; wandb's own: 15
}
"""What is set for wandb where the user has not set it."""


_open: set[Run] = set()  # runs of this process that are not closed yet; they share one service


def prepare() -> None:
    """Import wandb, in the thread that calls: a process forked in the middle of an import could not import either."""
    for variable in os.environ.keys() - without_empty(os.environ).keys():
        del os.environ[variable]  # wandb refuses some that are empty
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    import wandb  # noqa: F401


class Run:
    """The wandb run that the orders act on; see the module's table.

    Args:
        run_id: Id of the run.

    Attributes:
        ready: Set once wandb's service is up: what is left to wait for is the server.
        folder: The run's own; None before it has begun and in mode ``disabled``.
        run_id: Id of the run, which a server that does not answer may cost its first one.
        notices: Texts for the user.
        finished: Whether all of it is on the disk.
    """

    def __init__(self, run_id: str) -> None:
        self.ready = threading.Event()
        self.folder: Path | None = None
        self.run_id = run_id
        self.notices: deque[str] = deque()
        self.finished = False
        self._closed = False
        self._run: Any = None
        self._mode: Any = None
        self._options: dict[str, Any] = {}
        self._owns_service = False
        self._services: set[int] = set()
        self._written = 0  # bytes of the keys logged: the least that wandb's file must have

    def start(self, mode: str, directory: str, argv: Sequence[str], options: Mapping[str, Any]) -> None:
        """Start the local part, then connect.

        Args:
            mode: wandb's mode.
            directory: Folder under which wandb makes its own.
            argv: The command line to record.
            options: Everything else for ``wandb.init``.

        Raises:
            TimeoutError: The run was closed before it had begun.
        """
        _open.add(self)
        self._mode, self._options = mode, {"dir": directory, **options}
        before = _service_processes()
        self._owns_service = _start_service()
        self._services = _service_processes() - before
        self.ready.set()
        with _command_line(argv):
            run = self._run = self._connected()
        if self._closed:  # while it was connected; close() may have come too early to see it
            run.finish(exit_code=1)
            raise TimeoutError("it took too long to start")
        for handler in logging.getLogger("wandb").handlers:
            # On a full disk wandb's own log would print a traceback for every line of it.
            setattr(handler, "handleError", lambda record: None)  # noqa: B010
        run.define_metric(STEP)
        for pattern in ["epoch", *(f"{group}/*" for group in GROUPS)]:
            run.define_metric(pattern, step_metric=STEP)
        for name in ["samples", *without_chart()]:
            run.define_metric(name, step_metric=STEP, hidden=True)
        self.folder = None if run.disabled else Path(run.settings.sync_dir)

    def log(self, row: Mapping[str, Any]) -> None:
        """Write one row."""
        self._written += sum(len(key) for key in row)
        self._run.log(dict(row))

    def image(self, step: int, name: str, path: str) -> None:
        """Upload an image."""
        import wandb

        self.log({STEP: step, name: wandb.Image(path)})

    def table(self, step: int, name: str, columns: list[str | int], rows: list[list[Any]]) -> None:
        """Upload a table."""
        import wandb

        self.log({STEP: step, name: wandb.Table(columns=columns, data=rows, allow_mixed_types=True)})

    def alert(self, title: str, text: str, level: str) -> None:
        """Notify the user.

        Args:
            title: What has happened.
            text: The details.
            level: ``INFO``, ``WARN`` or ``ERROR``.
        """
        self._run.alert(title=title, text=text, level=level)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Write the summary, close the run, and look whether it is on the disk.

        Args:
            summary: Closing values.
            exit_code: Other than 0 marks the run as failed.

        Raises:
            OSError: wandb's file is shorter than what was logged, or its disk is full.
        """
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=exit_code)
        if not self._run.disabled:
            self._check_file()
        self.finished = True

    def close(self) -> None:
        """End the service, if it is this run's alone, or else the run; one that hangs is not waited for."""
        self._closed = True
        _open.discard(self)
        if not self._owns_service or not self._alone():
            if self._run is not None and not self.finished:
                # It failed. wandb.init would give a run that is left open to whoever asks for one next.
                _farewell(lambda: self._run.finish(exit_code=1)).join(_NO_FAREWELL)
            return
        import wandb

        farewell = _farewell(wandb.teardown)
        farewell.join(_FAREWELL if self.finished else _NO_FAREWELL)
        for service in self._services & _service_processes():
            os.kill(service, signal.SIGKILL)
        farewell.join(_KILLED)

    def _alone(self) -> bool:
        """Whether no other run of this process, ours or the user's, is at the service."""
        import wandb

        latest = getattr(wandb.setup(), "most_recent_active_run", None) if self.ready.is_set() else None
        return not _open and wandb.run is None and (latest is None or latest is self._run)

    def _connected(self) -> Any:
        import wandb

        if self._mode == "online" and not wandb.login(prompt=False, verify=False):
            self._go_offline("no login was found (run `wandb login` once, or set WANDB_API_KEY)")
        if self._mode == "online" and (why := silence(str(wandb.setup().settings.base_url))):
            self._go_offline(f"the server did not answer ({why})")
        try:
            return self._init()
        except wandb.Error as error:
            if self._mode != "online":
                raise
            self._go_offline(f"the server did not answer ({str(error).partition(chr(10))[0]})")
            self.run_id = new_id()  # the service holds on to the first one
            return self._init()

    def _go_offline(self, reason: str) -> None:
        self.notices.append(f"wandb: {reason}; the run is written offline")
        self._mode = "offline"

    def _init(self) -> Any:
        """Begin the run in wandb, without its console capture and without questions."""
        import wandb

        if self._closed:
            raise TimeoutError("it took too long to start")  # nobody waits for this run any more
        settings: dict[str, Any] = {"console": "off", "silent": True, "quiet": True}
        if "WANDB_INIT_TIMEOUT" not in os.environ:
            settings["init_timeout"] = _ONLINE_TIMEOUT
        return wandb.init(
            mode=self._mode,
            id=self.run_id,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**settings),
            **self._options,
        )

    def _check_file(self) -> None:
        """Look for what was logged, and for room: wandb says nothing when its disk did not take a row."""
        file = Path(self._run.settings.sync_file)
        deadline = time.monotonic() + _FLUSH_TIMEOUT
        while (size := file.stat().st_size if file.exists() else 0) < self._written:
            if time.monotonic() > deadline:
                found = f"{size} bytes for rows of more than {self._written}"
                raise OSError(f"{file} is cut short ({found}): is its disk full? {ELSEWHERE}")
            time.sleep(0.02)
        room = file.with_name("room")
        try:
            room.write_bytes(bytes(_ROOM))
        except OSError as error:
            raise OSError(f"{file} may be cut short: is its disk full? {ELSEWHERE} ({error})") from error
        finally:
            room.unlink(missing_ok=True)


def new_id() -> str:
    """A fresh id of a run.

    Returns:
        Eight hexadecimal digits, as wandb's own.
    """
    return uuid.uuid4().hex[:8]


def _start_service() -> bool:
    """Start wandb's service process, unless this process has one; returns whether it was started."""
    import wandb

    # That of another process may be gone, or go while the run needs it.
    foreign = os.environ.pop("WANDB_SERVICE", None)
    # Unless it is silent, wandb asks the server for the user's name to greet with, and waits for the answer.
    wandb.setup(wandb.Settings(silent=True))
    started = "WANDB_SERVICE" in os.environ  # where wandb notes the one that it starts
    if foreign is not None:
        os.environ.setdefault("WANDB_SERVICE", foreign)
    return started


def _service_processes() -> set[int]:
    """Numbers of the services that this process has started; empty where the system does not list them."""
    found = set()
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread or a process that has just ended
            for number in children.read_text().split():
                if Path(f"/proc/{number}/comm").read_text() == "wandb-core\n":
                    found.add(int(number))
    return found


@contextlib.contextmanager
def _command_line(argv: Sequence[str]) -> Iterator[None]:
    """Have wandb read this command line, of which it has no setting; as a rule it is the process's own."""
    before = sys.argv
    if before == argv:
        yield
        return
    sys.argv = list(argv)
    try:
        yield
    finally:
        sys.argv = before


def _farewell(last: Callable[[], object]) -> threading.Thread:
    """Say the last word to wandb's service, in a thread of its own."""

    def say() -> None:
        # Where the service is gone, wandb says so by whatever exception comes first: that is no news here.
        with contextlib.suppress(Exception, SystemExit):
            last()

    thread = threading.Thread(target=say, name="optland-farewell", daemon=True)
    thread.start()
    return thread
