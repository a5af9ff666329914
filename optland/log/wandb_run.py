"""A run in Weights & Biases, offline by default.

The run starts with the first row, so that a resumed run knows its id by then. Offline, a resumed run makes
a second folder with the same id: ``wandb sync`` joins them. The axis of every chart is our own key
``step``; wandb's counter is never used, because a rewound or resumed run could not go back on it.

wandb's environment variables win over the arguments: ``WANDB_MODE``, ``WANDB_PROJECT``, ``WANDB_ENTITY``,
``WANDB_NAME``, ``WANDB_TAGS``, ``WANDB_RUN_GROUP``, ``WANDB_JOB_TYPE``, ``WANDB_RUN_ID``, ``WANDB_DIR``,
and all others that wandb itself reads. The exception is ``WANDB_SERVICE``: a run has a service process of
its own, because one that another process started may be gone, or go while the run needs it. Mode ``online``
without a login, or with a server that does not answer, becomes ``offline`` with a warning.

Nothing here holds up training. Connecting and every call are made in the background; the end of the run
waits a few seconds and no more. wandb hands its data to a service process that it waits for without limit
when the interpreter exits, so a service that hangs is ended. What had reached the disk by then stays
readable and can be sent later with ``wandb sync``.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import shlex
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from optland.config import redact, redact_text
from optland.log.background import Background
from optland.log.greeting import silence
from optland.log.vocabulary import GROUPS, STEP, Scalar

Mode = Literal["offline", "online", "disabled"]

_EVENTS = "ctl/events"
_EVENT_COLUMNS = [STEP, "policy", "actuator", "old", "new", "reason", "taken", "signals"]
_ALARMING = ("rewind", "rollback")
_SUMMARY_EVENTS = 100  # a wandb value should stay below a megabyte
_ERROR = "summary/error"
_LOSS = "train/loss"
_ONLINE_TIMEOUT = 6.0  # seconds for wandb.init, unless WANDB_INIT_TIMEOUT says otherwise
_FLUSH_TIMEOUT = 1.0  # the service writes the last block a moment after the run is finished
_TEARDOWN_TIMEOUT = 1.0
_ROOM = 16 * 1024  # bytes; a disk with less has hardly taken the last rows
_ELSEWHERE = "Set WANDB_DIR to a folder with room"

_DEFAULTS = {
    "WANDB_ERROR_REPORTING": "false",  # goes to the server even offline, and holds up the exit when that hangs
    "WANDB__SERVICE_WAIT": "8",  # seconds for the service to start; wandb's own 30 would be lost for training
    "WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": "1",  # seconds of rows that die with the service; wandb's own: 15
}
"""What is set for wandb where the user has not set it."""


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
        self._directory = Path(_setting("WANDB_DIR", str(directory)))
        self._mode: Any = _setting("WANDB_MODE", mode)
        self._run_id = _setting("WANDB_RUN_ID", run_id or _new_id())
        self._config = redact(dict(config or {}))
        labels = os.environ.get("WANDB_TAGS")
        self._named = {
            "project": _setting("WANDB_PROJECT", project),
            "entity": _setting("WANDB_ENTITY", None),
            "group": _setting("WANDB_RUN_GROUP", group),
            "job_type": _setting("WANDB_JOB_TYPE", job_type),
            "name": _setting("WANDB_NAME", name),
            "tags": labels.split(",") if labels else list(tags),
        }
        self._named = redact(self._named)
        self._timeout = timeout
        self._background = Background()
        self._events: list[list[Any]] = []
        self._step = 0
        self._started = False
        self._notices: list[str] = []
        self._written = 0  # bytes of the keys logged: the least that wandb's file must have
        self._stuck = False  # the service still waits for a server
        self._lost = False  # the loss was not finite
        self._run: Any = None  # set in the background once wandb.init is through

    @property
    def run_dir(self) -> Path | None:
        """The run's own folder; None before the first row and in mode ``disabled``."""
        if self._run is None or self._run.disabled:
            return None
        return Path(self._run.settings.sync_dir)

    def view_command(self) -> str | None:
        """The shell command that shows the run in the terminal; None where there is nothing to show."""
        if self.run_dir is None:
            return None
        wandb = Path(sys.executable).with_name("wandb")
        program = os.path.relpath(wandb) if wandb.exists() else "wandb"
        return f"{shlex.quote(program)} leet {shlex.quote(os.path.relpath(self.run_dir))}"

    def log(self, row: Mapping[str, Scalar]) -> None:
        """Write the scalars of one step; the first loss that is not finite also raises an alert."""
        self._note_step(row)
        self._send(redact(row))
        loss = row.get(_LOSS)
        if isinstance(loss, float) and not math.isfinite(loss) and not self._lost:
            self._lost = True
            self._alert(f"the loss is {loss} at step {self._step}", f"{_LOSS} is not finite", "ERROR")

    def event(self, event: Mapping[str, object]) -> None:
        """Keep a decision for the table ``ctl/events``; a rewind also raises an alert."""
        self._note_step(event)
        self._events.append([_cell(column, event.get(column)) for column in _EVENT_COLUMNS])
        if event.get("actuator") in _ALARMING:
            title = f"{event.get('policy')}: {event.get('actuator')} at step {self._step}"
            self._alert(title, str(event.get("reason")), "WARN")

    def image(self, name: str, path: Path) -> None:
        """Upload an image."""
        import wandb

        self._send({name: wandb.Image(str(path))})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Upload a table."""
        import wandb

        data = redact([list(row) for row in rows])
        self._send({name: wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)})

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Write the decisions and the summary, and wait for wandb, at most ``timeout`` seconds.

        Raises:
            TimeoutError: wandb did not answer in that time.
            OSError: wandb's file is shorter than what was logged, or its disk is full.
            Exception: Whatever wandb raised before.
        """
        if self._events:
            self.table(_EVENTS, _EVENT_COLUMNS, self._events)
        texts = [_sentence(event) for event in self._events[-_SUMMARY_EVENTS:]]
        values = {**summary, **({f"{_EVENTS}_text": "\n".join(texts)} if texts else {})}
        self._submit(lambda: self._run.summary.update(redact(values)))
        if _ERROR in summary:
            self._alert("run failed", str(summary[_ERROR]), "ERROR")
        self._submit(lambda: self._run.finish(exit_code=exit_code))
        try:
            self._background.drain(self._timeout)
            self._check_file()
        except TimeoutError as error:
            self._notices.clear()  # one warning is enough
            raise TimeoutError(f"{error}; {self._rest()}") from error
        finally:
            self._close()

    def state_dict(self) -> dict[str, Any]:
        """The run's id and the decisions so far."""
        return {"run_id": self._run_id, "events": [list(event) for event in self._events]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the same run id."""
        if self._started:
            raise RuntimeError("the wandb run has started already: load its state before the first row")
        self._run_id = state["run_id"]
        self._events = [list(event) for event in state["events"]]

    def _abandon(self) -> None:
        """The process ends without `finish`, by a crash or Ctrl-C: that is when the decisions matter most."""
        if self._background.failed:
            self._close()
            return
        try:
            self.finish({}, exit_code=1)
        except Exception as error:  # nobody is left to handle it: the interpreter is ending
            warnings.warn(f"wandb: {error}", RuntimeWarning, stacklevel=1)

    def _close(self) -> None:
        """Leave nothing behind that could hold up the end of the process."""
        atexit.unregister(self._abandon)
        # Also after an error that wandb tells politely: the service may still try to reach a server.
        if self._stuck or self._background.failed:
            had_its_time = isinstance(self._background.error, TimeoutError)
            _end_service(self._run, patience=0.0 if had_its_time else _TEARDOWN_TIMEOUT)
        self._tell()

    def _check_file(self) -> None:
        """Look for what was logged, and for room: wandb says nothing when its disk did not take a row."""
        if self.run_dir is None:
            return
        file = Path(self._run.settings.sync_file)
        deadline = time.monotonic() + _FLUSH_TIMEOUT
        while (size := file.stat().st_size if file.exists() else 0) < self._written:
            if time.monotonic() > deadline:
                found = f"{size} bytes for rows of more than {self._written}"
                raise OSError(f"{file} is cut short ({found}): is its disk full? {_ELSEWHERE}")
            time.sleep(0.02)
        room = file.with_name("room")
        try:
            room.write_bytes(bytes(_ROOM))
        except OSError as error:
            raise OSError(f"{file} may be cut short: is its disk full? {_ELSEWHERE} ({error})") from error
        finally:
            room.unlink(missing_ok=True)

    def _rest(self) -> str:
        """What became of the rows that were not sent."""
        if self.run_dir is None:
            return "nothing of the run has reached wandb"
        return f"what it had written down can be sent with: wandb sync {shlex.quote(str(self.run_dir))}"

    def _send(self, content: dict[str, Any]) -> None:
        row = {STEP: self._step, **content}
        self._written += sum(len(key) for key in row)
        self._submit(lambda: self._run.log(row))

    def _alert(self, title: str, text: str, level: str) -> None:
        self._submit(lambda: self._run.alert(title=redact_text(title), text=redact_text(text), level=level))

    def _note_step(self, row: Mapping[str, Any]) -> None:
        self._step = int(row.get(STEP, self._step))

    def _submit(self, call: Callable[[], object]) -> None:
        if not self._started:
            self._started = True
            self._start()
        self._tell()
        self._background.submit(call)

    def _tell(self) -> None:
        """Give the warnings of the background to the caller, in whose thread warnings can be caught."""
        while self._notices:
            warnings.warn(self._notices.pop(0), RuntimeWarning, stacklevel=5)

    def _start(self) -> None:
        """Start what is local; connecting, which can hang, is left to the background."""
        self._directory.mkdir(parents=True, exist_ok=True)
        if not os.access(self._directory, os.W_OK):
            # wandb would quietly write to the system's temporary folder.
            raise PermissionError(f"{self._directory} cannot be written to. {_ELSEWHERE}")
        _start_service(self._mode)
        atexit.register(self._abandon)  # after wandb's own hook, and so called before it
        self._background.submit(self._connect)

    def _connect(self) -> None:
        run = self._run = self._connected()
        for handler in logging.getLogger("wandb").handlers:
            # On a full disk wandb's own log would print a traceback for every line of it.
            setattr(handler, "handleError", lambda record: None)  # noqa: B010
        run.define_metric(STEP)
        for pattern in ["samples", "epoch", *(f"{group}/*" for group in GROUPS)]:
            run.define_metric(pattern, step_metric=STEP)

    def _connected(self) -> Any:
        import wandb

        if self._mode == "online" and not wandb.login(prompt=False, verify=False):
            self._go_offline("no login was found (run `wandb login` once, or set WANDB_API_KEY)")
        if self._mode == "online" and (why := silence(str(wandb.setup().settings.base_url))):
            self._go_offline(f"the server did not answer ({why})")
        try:
            return self._init()
        except wandb.Error as error:
            if self._mode != "online" or self._background.failed:  # nobody waits any more
                raise
            self._go_offline(f"the server did not answer ({str(error).partition(chr(10))[0]})")
            self._stuck, self._run_id = True, _new_id()  # the service holds on to the first one
            return self._init()

    def _go_offline(self, reason: str) -> None:
        self._notices.append(f"wandb: {redact_text(reason)}; the run is written offline")
        self._mode = "offline"

    def _init(self) -> Any:
        import wandb

        options: dict[str, Any] = {"console": "off", "silent": True, "quiet": True}
        if "WANDB_INIT_TIMEOUT" not in os.environ:
            options["init_timeout"] = _ONLINE_TIMEOUT
        return wandb.init(
            dir=str(self._directory),
            mode=self._mode,
            id=self._run_id,
            resume="allow",
            reinit="create_new",
            config=self._config,
            settings=wandb.Settings(**options),
            **self._named,
        )


def _start_service(mode: str) -> None:
    """Import wandb and start its service process: local work, and the only part that training waits for."""
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    os.environ.pop("WANDB_SERVICE", None)
    import wandb

    if mode != "disabled":
        # Unless it is silent, wandb asks the server for the user's name to greet with, and waits for the answer.
        wandb.setup(wandb.Settings(silent=True))


def _end_service(own: Any, patience: float) -> None:
    """End wandb's service process, for which the interpreter would otherwise wait without limit at its exit.

    It has ``patience`` seconds to write down what it holds. One that also serves another run of this process is left
    alone: ``own`` is the run that is over.
    """
    wandb = sys.modules.get("wandb")
    if wandb is None:
        return
    # wandb has no public way to end a service that does not answer; without these attributes nothing is ended.
    singleton = getattr(wandb.sdk.wandb_setup, "_singleton", None)
    if any(run is not own for run in getattr(singleton, "_active_runs", ())):
        return
    connection = getattr(singleton, "_connection", None)
    process = getattr(getattr(connection, "_proc", None), "_process", None)
    farewell = threading.Thread(target=_teardown, args=(wandb,), daemon=True)
    farewell.start()
    farewell.join(patience)
    if isinstance(process, subprocess.Popen):
        process.kill()
    farewell.join(_TEARDOWN_TIMEOUT)


def _teardown(wandb: Any) -> None:
    # Where the service is gone, wandb says so by whatever exception comes first: that is no news here.
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


def _setting(variable: str, value: Any) -> Any:
    """The environment's word, read here because wandb reads its variables once a process only."""
    return os.environ.get(variable) or value


def _new_id() -> str:
    return uuid.uuid4().hex[:8]


def _cell(column: str, value: object) -> object:
    """One type a column, which wandb's tables want: the step a number, ``taken`` a boolean, all else text."""
    return value if column in (STEP, "taken") else redact_text(str(value))


def _sentence(event: Sequence[Any]) -> str:
    step, policy, actuator, old, new, reason, taken, _ = event
    return f"step {step}: {policy}: {'' if taken else 'would set '}{actuator} {old} -> {new}: {reason}"
