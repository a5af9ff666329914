"""One wandb run, in a process of its own: the only place that imports wandb.

wandb works in Python, some milliseconds for every row, and holds the interpreter meanwhile. Here it holds one that has
nothing else to do. :class:`optland.log.WandbLogger` starts this module with :mod:`optland.log.child`, gives it the
orders below in the form ``[name, argument, ...]``, and hears what became of them.

=========  ============================================  ==============================================================
order      arguments                                     meaning
=========  ============================================  ==============================================================
start      see :meth:`Run.start`                         import wandb, start its service, connect
log        row                                           one history row
image      step, name, path                              an image file as a history row
table      step, name, columns, rows                     a table as a history row
alert      title, text, level                            a notice to the user
finish     summary, exit code                            write the summary and close; the last order
=========  ============================================  ==============================================================

Reports: ``ready`` (the local part is up), ``begun`` with the run's folder and id, ``notice`` with a text for the user,
``failed`` with the name and the text of an error, ``finished``. Without ``finish``, because the process that gives the
orders is gone, the run is closed as failed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optland.log.child import Post
from optland.log.greeting import silence
from optland.log.meanings import GROUPS
from optland.log.vocabulary import STEP, without_chart

__all__ = ["ELSEWHERE", "Run", "main", "new_id"]

ELSEWHERE = "Set WANDB_DIR to a folder with room"
"""What to do about a disk that does not take a run."""

_ONLINE_TIMEOUT = 6.0  # seconds for wandb.init, unless WANDB_INIT_TIMEOUT says otherwise
_FLUSH_TIMEOUT = 1.0  # the service writes the last block a moment after the run is finished
_TEARDOWN_TIMEOUT = 1.0
_ROOM = 16 * 1024  # bytes; a disk with less has hardly taken the last rows

_DEFAULTS = {
    "WANDB_ERROR_REPORTING": "false",  # goes to the server even offline, and holds up the exit when that hangs
    "WANDB__SERVICE_WAIT": "8",  # seconds for the service to start; wandb's own 30 would be lost for training
    "WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": "1",  # seconds of rows that die with the service; wandb's own: 15
}
"""What is set for wandb where the user has not set it."""


def main() -> None:
    """Obey until the run is finished or nobody is left to give orders; never returns to the interpreter."""
    post = Post(end_service)
    run = Run(post.report, parent=post.parent)
    try:
        for name, *arguments in post.orders():
            getattr(run, name)(*arguments)
            if name == "finish":
                break
        else:
            run.finish({}, 1)
    except (Exception, SystemExit) as error:  # whatever it was, the parent decides what it means
        post.report("failed", type(error).__name__, f"{error}" if isinstance(error, OSError) else repr(error))
    end_service(patience=_TEARDOWN_TIMEOUT)
    os._exit(0)  # wandb's own hooks would wait without limit for a service that hangs


class Run:
    """The wandb run that the orders act on; see the module's table.

    Args:
        report: Takes the words of a report.
        parent: Number of the process whose use of memory and processor wandb is to show.
    """

    def __init__(self, report: Callable[..., object], *, parent: int) -> None:
        self._report = report
        self._parent = parent
        self._run: Any = None
        self._mode: Any = None
        self._options: dict[str, Any] = {}
        self._run_id = ""
        self._written = 0  # bytes of the keys logged: the least that wandb's file must have

    def start(
        self, mode: str, run_id: str, directory: str, argv: Sequence[str], options: Mapping[str, Any]
    ) -> None:
        """Start the local part, then connect.

        Args:
            mode: wandb's mode.
            run_id: Id of the run.
            directory: Folder under which wandb makes its own.
            argv: The command line to record.
            options: Everything else for ``wandb.init``.
        """
        self._mode, self._run_id = mode, run_id
        self._options = {"dir": directory, **options}
        sys.argv[:] = argv
        _start_service()
        self._report("ready")
        run = self._run = self._connected()
        for handler in logging.getLogger("wandb").handlers:
            # On a full disk wandb's own log would print a traceback for every line of it.
            setattr(handler, "handleError", lambda record: None)  # noqa: B010
        run.define_metric(STEP)
        for pattern in ["epoch", *(f"{group}/*" for group in GROUPS)]:
            run.define_metric(pattern, step_metric=STEP)
        for name in ["samples", *without_chart()]:
            run.define_metric(name, step_metric=STEP, hidden=True)
        self._report("begun", None if run.disabled else str(run.settings.sync_dir), self._run_id)

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
        """Notify the user."""
        self._run.alert(title=title, text=text, level=level)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Write the summary, close the run, and look whether it is on the disk.

        Raises:
            OSError: wandb's file is shorter than what was logged, or its disk is full.
        """
        if self._run is None:  # not one order came
            return
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=exit_code)
        if not self._run.disabled:
            self._check_file()
        self._report("finished")

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
            self._run_id = new_id()  # the service holds on to the first one
            return self._init()

    def _go_offline(self, reason: str) -> None:
        self._report("notice", f"wandb: {reason}; the run is written offline")
        self._mode = "offline"

    def _init(self) -> Any:
        import wandb

        settings: dict[str, Any] = {
            "console": "off",
            "silent": True,
            "quiet": True,
            "x_stats_pid": self._parent,
        }
        if "WANDB_INIT_TIMEOUT" not in os.environ:
            settings["init_timeout"] = _ONLINE_TIMEOUT
        return wandb.init(
            mode=self._mode,
            id=self._run_id,
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
    """A fresh id of a run."""
    return uuid.uuid4().hex[:8]


def _start_service() -> None:
    """Import wandb and start its service process: all local work."""
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    os.environ.pop("WANDB_SERVICE", None)
    import wandb

    # Unless it is silent, wandb asks the server for the user's name to greet with, and waits for the answer.
    wandb.setup(wandb.Settings(silent=True))


def end_service(patience: float = 0.0) -> None:
    """End wandb's service process; it has ``patience`` seconds to write down what it holds."""
    wandb = sys.modules.get("wandb")
    if wandb is None:
        return
    # wandb has no public way to end a service that does not answer; without these attributes nothing is ended.
    singleton = getattr(getattr(wandb.sdk, "wandb_setup", None), "_singleton", None)
    process = getattr(getattr(getattr(singleton, "_connection", None), "_proc", None), "_process", None)
    farewell = threading.Thread(target=_teardown, args=(wandb,), daemon=True)
    farewell.start()
    farewell.join(patience)
    if isinstance(process, subprocess.Popen):
        process.kill()


def _teardown(wandb: Any) -> None:
    # Where the service is gone, wandb says so by whatever exception comes first: that is no news here.
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()
