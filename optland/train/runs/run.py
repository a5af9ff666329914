"""The folder of one run: resolved configuration, log, checkpoint, summary, weights, figure.

A folder is never written over: a second run of the same name gets the next free number, and ``--resume`` goes on in
the newest one. One process at a time writes to a folder. Secrets are hidden in everything that is written.

The result comes first: :meth:`RunFolder.finish` writes and shows it, and whatever comes after it (weights, pictures,
wandb) can fail without costing it. What could not be written is said when it happens and once more at the end.

Of the processes that a launcher has started for a run the first has the folder, and the log. The others know its path,
and leave with the result: what comes after it is the work of one.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from optland import processes
from optland.config import UserError, to_yaml
from optland.config.scripts import ScriptRecord, recipe_name, roots
from optland.config.secrets import redact_item, redact_text
from optland.files import for_json, write_whole
from optland.log import ConsoleLogger, JsonlLogger, Logger, WandbLogger
from optland.log.logger import LoggerGroup
from optland.log.unwritten import Unwritten
from optland.log.wandb_environment import check_environment
from optland.train.loops.ema import Ema
from optland.train.loops.evaluate import Records
from optland.train.runs.checkpoint import Checkpoint, has_checkpoint, load_checkpoint, save_checkpoint
from optland.train.runs.interrupt import RESUMABLE
from optland.train.runs.launch import candidates, mark, newest
from optland.train.runs.lock import lock_folder, release
from optland.train.runs.resume import Resumption, named_on_the_command_line
from optland.train.runs.settings import LogConfig, RunConfig
from optland.train.runs.weights import Weights

__all__ = ["RunFolder"]

_INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended


class RunFolder:
    """Where a run keeps everything, and its log.

    Args:
        out: Folder asked for; a number is added when it holds a run already.
        config: The resolved configuration, saved as ``config.yaml``.
        log: The log section of the configuration.
        recipe: The recipe's script, ``__file__``, of which a record is kept as ``recipe.json``, so that
            ``optland probe`` and ``report`` find it again; or a name, for the saved configuration and wandb's grouping.
        length: Samples the whole run will see, for the progress display.
        resume: Go on in the newest folder of this name.
        member: Whether it is one of several runs of a program, whose processes go on together after it.

    Raises:
        UserError: An environment variable of wandb's that cannot be used, nothing to resume, a resume with another
            configuration or without its checkpoint, or a run that is still going on.
    """

    def __init__(
        self,
        out: str | Path,
        config: object,
        log: LogConfig,
        *,
        recipe: str,
        length: int,
        resume: bool,
        member: bool = False,
    ) -> None:
        self._lock: int | None = None
        self._writes, self._member = processes.leads(), member
        self._script = Path(recipe) if recipe.endswith(".py") else None
        self._recipe = recipe if self._script is None else recipe_name(self._script)
        self._text = to_yaml(config, recipe=self._recipe)
        self.path = Path()  # until the first process has found it
        self.path = processes.from_first(lambda: self._opened(Path(out), config, log, resume))
        self.jsonl = JsonlLogger(self.path / "log.jsonl")
        self._go_on = _resume_command(self._recipe, self.path)
        self.unwritten = Unwritten()
        """What the disk did not take."""
        self.weights: Weights | None = None
        self._made: list[str] = []
        self._left_out: list[str] = []
        self.summary: dict[str, Any] | None = None
        """What :meth:`finish` was given; None before."""
        self.wandb = self._console = None
        if not processes.leads():
            self.log = LoggerGroup([])
            return
        epochs = getattr(config, "epochs", None)
        self._console = ConsoleLogger(length, epochs=epochs, every=5 * log.every) if log.console else None
        loggers: list[Logger] = [self.jsonl]
        if log.wandb != "disabled" and not self._summary.exists():
            self.wandb = WandbLogger(
                self.path, project=log.project, mode=log.wandb, config=_plain(self._text),
                group=log.group or self._recipe, job_type="train", tags=log.tags, name=self.path.name,
            )  # fmt: skip
            loggers.append(self.wandb)
        if self._console is not None:
            loggers.append(self._console)
        self.log = LoggerGroup(loggers)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close the run: with its result, as stopped with the command that goes on with it, or as failed."""
        if not self._writes:
            return
        if self.summary is not None:
            self.log.only(self.wandb).finish(self.summary)
        elif isinstance(error, KeyboardInterrupt):
            self._stopped("by Ctrl-C within a step; its last checkpoint is there", _INTERRUPTED)
        elif isinstance(error, SystemExit) and error.code == RESUMABLE:
            saved = self.checkpoint.name not in self.unwritten.missing
            how = "with a checkpoint" if saved else "which could not be saved; its last checkpoint is there"
            self._stopped(f"after a whole step, {how}", RESUMABLE)
        elif isinstance(error, SystemExit) and isinstance(error.code, int):
            self.log.finish({"summary/stopped": f"exit code {error.code}"}, exit_code=error.code)
        elif kind is not None:
            reason = redact_text(f"{kind.__name__}: {error}")
            self.log.finish({"summary/error": reason}, exit_code=1)
        self._release()

    def _opened(self, out: Path, config: object, log: LogConfig, resume: bool) -> Path:
        """The folder, locked, with the configuration in it."""
        if log.wandb != "disabled":
            check_environment()
        self.path, self._lock = _newest(out) if resume else _free(out)
        self.jsonl = JsonlLogger(self.path / "log.jsonl")
        try:
            if resume:
                self._take_up(config)
            else:
                _write_config(self.path, self._text, self._script)
        except BaseException:
            self._release()
            raise
        return self.path

    def _stopped(self, how: str, exit_code: int) -> None:
        summary = {"summary/stopped": f"{how}; go on with: {self._go_on}"}
        self.log.finish(summary, exit_code=exit_code)

    def _release(self) -> None:
        release(self._lock)
        self._lock = None

    def _take_up(self, config: object) -> None:
        """Go on with the run as it is configured now, where that is the same training; say what is other."""
        named = named_on_the_command_line(self._recipe)
        resumption = Resumption(self.path, self._text, config, finished=self._summary.exists(), named=named)
        self._require_checkpoint()
        if resumption.ended:
            return
        lines = list(resumption.lines())
        script, record = self._script, ScriptRecord.read(self.path)
        if script is not None and record is not None and not record.is_text_of(script):
            lines.append(f"resuming with {script}, which has been edited since the run was started")
        for line in lines:
            sys.stderr.write(f"{line}\n")
        if resumption.longer is not None and self._summary.exists():
            # Before the new configuration: a run that is killed in between is one that has yet to end.
            self._summary.rename(self.path / f"summary-{resumption.longer.before}-epochs.json")
        _write_config(self.path, self._text)

    def _require_checkpoint(self) -> None:
        """A log with rows and no checkpoint is a run whose state was lost, not one that has yet to begin."""
        if self._summary.exists() or has_checkpoint(self.checkpoint) or not self.jsonl.read("row"):
            return
        raise UserError(
            f"cannot resume {self.path}: its log has rows, but {self.checkpoint.name} is not there; put it back, or "
            "start a new run without --resume"
        )

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file."""
        return self.path / "checkpoint.pt"

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return processes.from_first(self._summary.exists)

    @property
    def _summary(self) -> Path:
        return self.path / "summary.json"

    def rows(self) -> list[dict[str, Any]]:
        """The rows logged so far.

        Returns:
            Dictionaries with ``step`` and the metric names of :mod:`optland.log.vocabulary`, oldest first; in every
            process of the run those that the first has read.
        """
        return processes.from_first(lambda: self.jsonl.read("row"))

    def events(self) -> list[dict[str, Any]]:
        """The decisions logged so far.

        Returns:
            Dictionaries of the decisions' fields, oldest first; in every process those that the first has read.
        """
        return processes.from_first(lambda: self.jsonl.read("event"))

    def saved(self) -> dict[str, Any]:
        """The state that :meth:`save` kept; empty before the first.

        Returns:
            The newest state that can be read.

        Raises:
            CheckpointError: There are files of one, and none can be read.
        """
        there = processes.from_first(lambda: has_checkpoint(self.checkpoint))
        return load_checkpoint(self.checkpoint) if there else {}

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep what a recipe without a :class:`Checkpoint` has so far; a full disk does not end it.

        Args:
            state: Tensors and plain Python values.
        """
        if not processes.leads():
            return
        with self.unwritten.attempt(self.checkpoint.name):
            save_checkpoint(self.checkpoint, state)

    def checkpoints(self, config: RunConfig, **parts: Any) -> Checkpoint:
        """The run's checkpoint, as often as the configuration says; ``parts`` as for :class:`Checkpoint`.

        Args:
            config: Says how often, in steps and in seconds.
            parts: Objects with a state, by the name that it is saved under.
        """
        every, seconds = config.checkpoint_every, config.checkpoint_seconds
        return Checkpoint(
            self.checkpoint, every=every, every_seconds=seconds, unwritten=self.unwritten, **parts
        )

    def give_away(
        self, model: nn.Module, average: Ema | None, history: Records, inputs: Mapping[str, str],
        make: Callable[..., nn.Module], *arguments: Any,
    ) -> Weights:  # fmt: skip
        """Give the weights of this run away, from now on.

        Args:
            model: The module that is trained.
            average: The average of its weights that the run evaluates instead, if any.
            history: Its evaluations.
            inputs: What the model takes, in words, under ``input``, and what is needed to make it.
            make: Makes such a model.
            *arguments: What it was given.

        Returns:
            The two files; the loop calls ``keep`` at every epoch's end, and :meth:`finish` writes the last.
        """
        self.weights = Weights(self.path, self.unwritten, model, average, history, inputs, make, *arguments)
        return self.weights

    def go_on_alone(self) -> None:
        """Let the other processes of the run leave here: what comes now is the work of one."""
        processes.dismiss()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Keep the result and show it; ``summary.json`` marks the run as done.

        Pictures and reports come after it, each in an :meth:`attempt`; the log is closed with the run.

        Args:
            summary: The closing table. Numbers that are not finite are written as null, and shown as they are.
        """
        if not self._member:
            processes.dismiss()
        self.summary = dict(summary)
        if not processes.leads():
            return
        text = json.dumps(for_json(summary), indent=2, allow_nan=False, default=str)
        with self.unwritten.attempt(self._summary.name, left="the result is below"):
            write_whole(self._summary, f"{text}\n", flush=True)
        with self.unwritten.attempt(self.jsonl.path.name):
            self.jsonl.finish(summary)
        self.log.only(self._console).finish(summary)
        if self.weights is not None:
            self.weights.finish()

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[Path]:
        """A block that makes the file ``name`` beside the result: its failure is noted, whatever it is.

        Args:
            name: File name in the run's folder.

        Returns:
            A context manager that gives the file's path.
        """
        with self.unwritten.attempt(name, Exception):
            try:
                yield self.path / name
                self._made.append(name)
            except UserError as error:  # a package that is not installed, which was said before training
                self._left_out.append(f"left out     {name}: {error}")

    @property
    def exit_code(self) -> int:
        """0; or 1 where something that the run promises could not be written."""
        return 1 if self.unwritten.missing else 0

    def where(self) -> str:
        """The places to look at now, one per line, and the files that are missing."""
        lines = [f"run folder   {self.path}"]
        kinds = {".html": "report", ".png": "figure"}
        made = [self.path / name for name in self._made]
        lines += [f"{kinds[path.suffix]:<12} {path}" for path in made if path.suffix in kinds]
        command = self.wandb.view_command() if self.wandb is not None else None
        if command:
            lines.append(f"wandb run    {command}")
        if self.weights is not None and (described := self.weights.describe()):
            lines.append(described)
        lines += [*self._left_out, *self.unwritten.lines()]
        if "summary.json" in self.unwritten.missing:
            lines += [f"{key}: {value}" for key, value in (self.summary or {}).items()]
            lines.append(f"make room, then write it with: {self._go_on}")
        return "\n".join(lines)


def _write_config(folder: Path, config: str, script: Path | None = None) -> None:
    """Write what was run, and with what configuration, which makes a folder that of a run."""
    try:
        if script is not None:
            write_whole(folder / ScriptRecord.FILE, ScriptRecord.of(script, folder).text())
        write_whole(folder / "config.yaml", config)
        mark(folder)
    except OSError as error:
        raise _unusable(folder, error) from error


def _free(out: Path) -> tuple[Path, int | None]:
    """The first folder that holds no run, locked for this process."""
    if not out.name:
        raise UserError(f"out: '{out}' names no folder of its own; use for example runs/mine")
    for folder in candidates(out):
        try:
            if (folder / "config.yaml").exists():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            handle = lock_folder(folder)
        except (OSError, ValueError) as error:
            raise _unusable(folder, error) from error
        if handle is not None and not (folder / "config.yaml").exists():
            return folder, handle
        release(handle)  # another process was faster
    raise AssertionError("there is always another number")


def _newest(out: Path) -> tuple[Path, int | None]:
    """The last folder that holds a run, locked for this process."""
    try:
        folder = newest(out)
        handle = None if folder is None else lock_folder(folder)
    except (OSError, ValueError) as error:
        raise _unusable(out, error) from error
    if folder is None:
        raise UserError(f"there is no run to resume in {out}; start it without --resume")
    if handle is None:
        raise UserError(f"another process is still running in {folder}; wait for it, or end it, then resume")
    return folder, handle


def _unusable(folder: Path, error: Exception) -> UserError:
    """The error for a folder that cannot be made, read or locked."""
    return UserError(f"out: '{str(folder)[:200]}' cannot be used ({error}); name a folder that can be")


def _resume_command(recipe: str, folder: Path) -> str:
    """The command that resumes: the script of this process with its arguments; elsewhere, the folder's own config."""
    script, *arguments = sys.argv or [""]
    if script.endswith(".py") and recipe_name(script) == recipe:
        given = [redact_item(item) for item in arguments if item != "--resume"]
        named = recipe if _is_ours(Path(script)) else script
        return shlex.join(["optland", "run", named, *given, "--resume"])
    return shlex.join(["optland", "run", recipe, str(folder / "config.yaml"), "--resume"])


def _is_ours(script: Path) -> bool:
    """Whether a recipe's name finds this script: it came with the package, and none of the user's goes before it."""
    own = Path.cwd() / "recipes" / script.name
    is_shipped = script.resolve().parent == roots()[-1] / "recipes"
    return is_shipped and (not own.is_file() or own.samefile(script))


def _plain(text: str) -> dict[str, Any]:
    """The resolved configuration as wandb wants it."""
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(OmegaConf.create(text))
    return {str(k): v for k, v in content.items()} if isinstance(content, dict) else {}
