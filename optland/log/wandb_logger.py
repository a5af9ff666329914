"""A run in Weights & Biases, offline by default.

The run starts with the first row, so that a resumed run knows its id by then. Offline, a resumed run makes
a second folder with the same id: ``wandb sync`` joins them. The axis of every chart is our own key
``step``; wandb's counter is never used, because a rewound or resumed run could not go back on it.

wandb's environment variables win over the arguments: ``WANDB_MODE``, ``WANDB_PROJECT``, ``WANDB_ENTITY``,
``WANDB_NAME``, ``WANDB_TAGS``, ``WANDB_RUN_GROUP``, ``WANDB_JOB_TYPE``, ``WANDB_RUN_ID``, ``WANDB_DIR``,
and all others that wandb itself reads; one that is empty is as unset, and one that cannot be used is refused
before training. The exception is ``WANDB_SERVICE``: a run has a service process of
its own, because one that another process started may be gone, or go while the run needs it. Mode ``online``
without a login, or with a server that does not answer, becomes ``offline`` with a warning.

Nothing here holds up training. wandb runs in this process, in a thread (:mod:`optland.log.wandb_run`) that
is fed by a queue: the first row imports wandb and starts the thread, every other costs the caller some 30
microseconds, and neither starting, connecting, a server that hangs nor a service that does costs it
anything. The end of the run waits a few seconds and no more; then the thread is left behind, and wandb's
service ended. A run that ends without ``finish``, by an exception or Ctrl-C, is closed as failed before the
interpreter goes. When the process is killed, wandb's service writes down what had reached it. What is on
the disk stays readable and can be sent later with ``wandb sync``.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from optland.config.secrets import redact, redact_item, redact_text
from optland.log.decisions import EVENT_COLUMNS, EVENTS, event_alert, event_row, loss_alert
from optland.log.logger import change_in_words
from optland.log.vocabulary import STEP, Scalar
from optland.log.wandb_environment import check_environment, labels, setting
from optland.log.wandb_run import ELSEWHERE, Run, new_id, prepare
from optland.log.worker import Worker

__all__ = ["WandbLogger"]

Mode = Literal["offline", "online", "disabled"]

_SUMMARY_EVENTS = 100  # a wandb value should stay below a megabyte
_ERROR = "summary/error"
_STARTING = 2.5  # seconds from the first row that wandb has to start, before its time to finish runs
_LOOK = 0.25  # seconds until it is seen that the main thread has ended


class WandbLogger:
    """Writes a run to wandb.

    Args:
        directory: Folder under which wandb makes its ``wandb`` folder.
        project: Project name.
        mode: ``offline`` writes to disk only, ``online`` sends as it goes, ``disabled`` does nothing.
        config: The resolved configuration, shown beside the run and used by wandb to filter and group.
        run_id: Id of the run; a fresh one by default.
        group: Runs to show together, such as one experiment's seeds.
        job_type: What kind of job it is, such as ``train`` or ``probe``.
        tags: Labels.
        name: Display name.
        timeout: Seconds to wait for wandb when the run finishes; what is not sent by then is sent by
            ``wandb sync``. The default keeps what a dead server costs, all in all, below 10 s.

    Raises:
        UserError: One of wandb's environment variables cannot be used.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        project: str = "optland",
        mode: Mode = "offline",
        config: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        name: str | None = None,
        timeout: float = 5.0,
    ) -> None:
        if mode != "disabled":
            check_environment()
        self._directory = Path(str(setting("WANDB_DIR", str(directory))))
        self._mode = str(setting("WANDB_MODE", mode))
        self._run_id = str(setting("WANDB_RUN_ID", run_id or new_id()))
        options = {
            "config": dict(config or {}),
            "project": setting("WANDB_PROJECT", project),
            "entity": setting("WANDB_ENTITY", None),
            "group": setting("WANDB_RUN_GROUP", group),
            "job_type": setting("WANDB_JOB_TYPE", job_type),
            "name": setting("WANDB_NAME", name),
            "tags": labels() or list(tags),
        }
        self._options = redact(options)
        self._timeout = timeout
        self._events: list[list[Any]] = []
        self._step = 0
        self._run: Run | None = None
        self._worker: Worker | None = None
        self._owner = os.getpid()
        self._started = 0.0  # when
        self._closed = threading.Event()
        self._lost = False  # the loss was not finite

    @property
    def run_dir(self) -> Path | None:
        """The run's own folder; None before it has begun and in mode ``disabled``."""
        return None if self._run is None else self._run.folder

    def view_command(self) -> str | None:
        """The shell command that shows the run in the terminal; None where there is nothing to show.

        Returns:
            A line to be typed in the folder that this process was started in.
        """
        folder = self.run_dir
        if folder is None:
            return None
        wandb = Path(sys.executable).with_name("wandb")
        program = os.path.relpath(wandb) if wandb.exists() else "wandb"
        return f"{shlex.quote(program)} leet {shlex.quote(os.path.relpath(folder))}"

    def log(self, row: Mapping[str, Scalar]) -> None:
        """Write the scalars of one step; the first loss that is not finite also raises an alert.

        Args:
            row: The scalars of one step; what names a secret is hidden.

        Raises:
            RuntimeError: wandb has failed before, the run is over, or this process was forked from the run's own.
            TimeoutError: Too many rows are waiting for wandb.
            PermissionError: The folder cannot be written to.
        """
        self._note_step(row)
        self._send("log", {STEP: self._step, **redact(row)})
        alert = loss_alert(row, self._step)
        if alert is not None and not self._lost:
            self._lost = True
            self._alert(*alert)

    def event(self, event: Mapping[str, object]) -> None:
        """Keep a decision for the table ``ctl/events``; a rewind also raises an alert."""
        self._note_step(event)
        self._events.append(event_row(event))
        alert = event_alert(event, self._step)
        if alert is not None:
            self._alert(*alert)

    def image(self, name: str, path: Path) -> None:
        """Upload an image.

        Args:
            name: Its key.
            path: The file, read by the run's thread later: it has to stay there.

        Raises:
            FileNotFoundError: There is no such file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"image {name}: {path} is not a file")
        self._send("image", self._step, name, os.path.abspath(path))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Upload a table.

        Args:
            name: Its key.
            columns: A name for each column.
            rows: Cells of each row; what names a secret is hidden.
        """
        self._send("table", self._step, name, list(columns), redact([list(row) for row in rows]))

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Write the decisions and the summary, and wait for wandb, at most ``timeout`` seconds.

        Args:
            summary: Closing values.
            exit_code: Other than 0 marks the run as failed.

        Raises:
            TimeoutError: wandb did not answer in that time.
            OSError: wandb's file is shorter than what was logged, or its disk is full.
            RuntimeError: Whatever wandb raised before, in words.
        """
        if self._mode == "disabled":
            return
        if self._events:
            self.table(EVENTS, EVENT_COLUMNS, self._events)
        texts = [_sentence(event) for event in self._events[-_SUMMARY_EVENTS:]]
        values = {**summary, **({f"{EVENTS}_text": "\n".join(texts)} if texts else {})}
        if _ERROR in summary:
            self._alert("run failed", str(summary[_ERROR]), "ERROR")
        self._send("finish", redact(values), exit_code)
        try:
            self._await_end()
        finally:
            self._close()

    def state_dict(self) -> dict[str, Any]:
        """The run's id and the decisions so far.

        Returns:
            ``run_id``, that of the run as wandb knows it (going offline may have changed it), and ``events``.
        """
        return {
            "run_id": self._run.run_id if self._run else self._run_id,
            "events": [list(event) for event in self._events],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the same run id.

        Args:
            state: From :meth:`state_dict`.

        Raises:
            RuntimeError: A row was logged before.
        """
        if self._started:
            raise RuntimeError("the wandb run has started already: load its state before the first row")
        self._run_id = state["run_id"]
        self._events = [list(event) for event in state["events"]]

    # ------------------------------------------------------------------ the thread

    def _send(self, *order: object) -> None:
        """Give an order; the first one starts the thread.

        Raises:
            Exception: Whatever an earlier order met with, once.
        """
        if self._mode == "disabled":
            return
        if os.getpid() != self._owner:
            raise RuntimeError(f"the wandb run belongs to process {self._owner}: log in that process alone")
        try:
            worker = self._worker or self._start()
            self._tell()
            _raise(worker.failure)
            worker.send(*order)
        except Exception:
            self._close()
            raise

    def _start(self) -> Worker:
        if self._started:
            raise RuntimeError("the wandb run is over; make a new WandbLogger")
        self._started = time.monotonic()
        self._directory.mkdir(parents=True, exist_ok=True)
        if not os.access(self._directory, os.W_OK):
            # wandb would quietly write to the system's temporary folder.
            raise PermissionError(f"{self._directory} cannot be written to. {ELSEWHERE}")
        prepare()
        self._started = time.monotonic()
        self._run = Run(self._run_id)
        worker = self._worker = Worker(self._run, last="finish")
        threading.Thread(target=self._at_the_end, name="optland-end").start()
        argv = [redact_item(item) for item in sys.argv]
        worker.send("start", self._mode, os.path.abspath(self._directory), argv, self._options)
        return worker

    def _await_end(self) -> None:
        """Wait until the run is finished.

        Raises:
            TimeoutError: It did not answer in time.
        """
        assert self._run is not None
        assert self._worker is not None
        self._run.ready.wait(max(0.0, self._started + _STARTING - time.monotonic()))
        if not self._worker.ended(self._timeout):
            self._run.notices.clear()  # one warning is enough
            raise TimeoutError(f"it did not answer for {self._timeout:g} s; {self._rest()}")
        _raise(self._worker.failure)

    def _close(self) -> None:
        """Leave nothing behind that could hold up the end of the process."""
        if not self._closed.is_set():
            self._closed.set()
            self._worker = None
            if self._run is not None:
                self._run.close()
        self._tell()

    def _at_the_end(self) -> None:
        """The process ends without `finish`, by a crash or Ctrl-C: that is when the decisions matter most.

        A thread that the interpreter waits for, because its hooks at exit come too late: wandb's own is among them,
        and no thread can be started any more.
        """
        main = threading.main_thread()
        while main.is_alive():
            if self._closed.wait(_LOOK):
                return
        try:
            self.finish({}, exit_code=1)
        except Exception as error:  # nobody is left to handle it: the interpreter is ending
            warnings.warn(f"wandb: {error}", RuntimeWarning, stacklevel=1)

    def _tell(self) -> None:
        """Give the warnings of the run to the caller."""
        while self._run is not None and self._run.notices:
            warnings.warn(redact_text(self._run.notices.popleft()), RuntimeWarning, stacklevel=5)

    def _rest(self) -> str:
        """The fate of the rows that were not sent, in words."""
        if self.run_dir is None:
            return "nothing of the run has reached wandb"
        return f"what it had written down can be sent with: wandb sync {shlex.quote(str(self.run_dir))}"

    def _alert(self, title: str, text: str, level: str) -> None:
        self._send("alert", redact_text(title), redact_text(text), level)

    def _note_step(self, row: Mapping[str, Any]) -> None:
        self._step = int(row.get(STEP, self._step))


def _raise(failure: BaseException | None) -> None:
    """Raise what the thread has met with, without secrets, and as an error that stops no process."""
    if failure is None:
        return
    if isinstance(failure, OSError) and type(failure).__module__ == "builtins":
        raise type(failure)(redact_text(str(failure)))
    raise RuntimeError(redact_text(repr(failure)))


def _sentence(event: Sequence[Any]) -> str:
    step, policy, actuator, old, new, reason, taken, _ = event
    return f"step {step}: {policy}: {change_in_words(actuator, old, new, taken=taken)}: {reason}"
