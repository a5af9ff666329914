"""A run in Weights & Biases, offline by default.

The run starts with the first row, so that a resumed run knows its id by then. Offline, a resumed run makes
a second folder with the same id: ``wandb sync`` joins them. The axis of every chart is our own key
``step``; wandb's counter is never used, because a rewound or resumed run could not go back on it.

wandb's environment variables win over the arguments: ``WANDB_MODE``, ``WANDB_PROJECT``, ``WANDB_ENTITY``,
``WANDB_NAME``, ``WANDB_TAGS``, ``WANDB_RUN_GROUP``, ``WANDB_JOB_TYPE``, ``WANDB_RUN_ID``, ``WANDB_DIR``,
and all others that wandb itself reads. Mode ``online`` without a login, or with a server that does not
answer, becomes ``offline`` with a warning. Calls are made in the background, so a server that hangs does
not hold up training.
"""

from __future__ import annotations

import atexit
import os
import shlex
import sys
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from optland.log.background import Background
from optland.log.vocabulary import GROUPS, STEP, Scalar

Mode = Literal["offline", "online", "disabled"]

_EVENTS = "ctl/events"
_EVENT_COLUMNS = [STEP, "policy", "actuator", "old", "new", "reason", "taken", "signals"]
_ALARMING = ("rewind", "rollback")
_SUMMARY_EVENTS = 100  # a wandb value should stay below a megabyte
_ONLINE_TIMEOUT = 30.0


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
        timeout: Seconds to wait for wandb when the run finishes.
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
        timeout: float = 60.0,
    ) -> None:
        self._directory = Path(_setting("WANDB_DIR", str(directory)))
        self._mode: Any = _setting("WANDB_MODE", mode)
        self._run_id = _setting("WANDB_RUN_ID", run_id or uuid.uuid4().hex[:8])
        self._config = dict(config or {})
        labels = os.environ.get("WANDB_TAGS")
        self._named = {
            "project": _setting("WANDB_PROJECT", project),
            "entity": _setting("WANDB_ENTITY", None),
            "group": _setting("WANDB_RUN_GROUP", group),
            "job_type": _setting("WANDB_JOB_TYPE", job_type),
            "name": _setting("WANDB_NAME", name),
            "tags": labels.split(",") if labels else list(tags),
        }
        self._timeout = timeout
        self._background = Background()
        self._events: list[list[Any]] = []
        self._step = 0
        self._run: Any = None

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
        """Write the scalars of one step."""
        self._send(dict(row))

    def event(self, event: Mapping[str, object]) -> None:
        """Keep a decision for the table ``ctl/events``; a rewind also raises an alert."""
        self._note_step(event)
        self._events.append([_cell(column, event.get(column)) for column in _EVENT_COLUMNS])
        if event.get("actuator") in _ALARMING:
            run = self._started()
            title = f"{event.get('policy')}: {event.get('actuator')} at step {self._step}"
            self._background.submit(
                lambda: run.alert(title=title, text=str(event.get("reason")), level="WARN")
            )

    def image(self, name: str, path: Path) -> None:
        """Upload an image."""
        import wandb

        self._send({name: wandb.Image(str(path))})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Upload a table."""
        import wandb

        data = [list(row) for row in rows]
        self._send({name: wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)})

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Write the decisions and the summary, and wait for wandb, at most ``timeout`` seconds."""
        run = self._started()
        atexit.unregister(self._abandon)
        if self._events:
            self.table(_EVENTS, _EVENT_COLUMNS, self._events)
        texts = [_sentence(event) for event in self._events[-_SUMMARY_EVENTS:]]
        values = {**summary, **({f"{_EVENTS}_text": "\n".join(texts)} if texts else {})}
        self._background.submit(lambda: run.summary.update(values))
        self._background.submit(lambda: run.finish(exit_code=exit_code))
        self._background.drain(self._timeout)

    def state_dict(self) -> dict[str, Any]:
        """The run's id and the decisions so far."""
        return {"run_id": self._run_id, "events": [list(event) for event in self._events]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the same run id."""
        if self._run is not None:
            raise RuntimeError("the wandb run has started already: load its state before the first row")
        self._run_id = state["run_id"]
        self._events = [list(event) for event in state["events"]]

    def _abandon(self) -> None:
        """The process ends without `finish`, by a crash or Ctrl-C: that is when the decisions matter most."""
        if not self._background.failed:
            self.finish({}, exit_code=1)

    def _send(self, row: dict[str, Any]) -> None:
        run = self._started()
        self._note_step(row)
        content = {STEP: self._step, **row}
        self._background.submit(lambda: run.log(content))

    def _note_step(self, row: Mapping[str, Any]) -> None:
        self._step = int(row.get(STEP, self._step))

    def _started(self) -> Any:
        if self._run is None:
            self._run = self._start()
            atexit.register(self._abandon)
            self._run.define_metric(STEP)
            for pattern in ["samples", *(f"{group}/*" for group in GROUPS)]:
                self._run.define_metric(pattern, step_metric=STEP)
        return self._run

    def _start(self) -> Any:
        import wandb

        if self._mode == "online" and not wandb.login(prompt=False):
            self._go_offline("no login was found (run `wandb login` once, or set WANDB_API_KEY)")
        try:
            return self._init()
        except wandb.Error as error:
            if self._mode != "online":
                raise
            self._go_offline(f"the server did not answer ({str(error).partition(chr(10))[0]})")
            return self._init()

    def _go_offline(self, reason: str) -> None:
        warnings.warn(f"wandb: {reason}; the run is written offline", RuntimeWarning, stacklevel=6)
        self._mode = "offline"

    def _init(self) -> Any:
        import wandb

        self._directory.mkdir(parents=True, exist_ok=True)
        quiet = wandb.Settings(console="off", silent=True, quiet=True, init_timeout=_ONLINE_TIMEOUT)
        return wandb.init(
            dir=str(self._directory),
            mode=self._mode,
            id=self._run_id,
            resume="allow",
            reinit="create_new",
            config=self._config,
            settings=quiet,
            **self._named,
        )


def _setting(variable: str, value: Any) -> Any:
    """The environment's word, read here because wandb reads its variables once a process only."""
    return os.environ.get(variable) or value


def _cell(column: str, value: object) -> object:
    """One type a column, which wandb's tables want: the step a number, ``taken`` a boolean, all else text."""
    return value if column in (STEP, "taken") else str(value)


def _sentence(event: Sequence[Any]) -> str:
    step, policy, actuator, old, new, reason, taken, _ = event
    return f"step {step}: {policy}: {'' if taken else 'would set '}{actuator} {old} -> {new}: {reason}"
