"""The folder of one run: resolved configuration, log, checkpoint, figure, summary.

A folder is never written over: a second run of the same name gets the next free number, and ``--resume`` goes on in
the newest one. One process at a time writes to a folder. Secrets are hidden in everything that is written.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optland.config import UserError, redact_item, redact_text, to_yaml
from optland.log import ConsoleLogger, JsonlLogger, Logger, LoggerGroup, WandbLogger, read_jsonl
from optland.train.claim import claim, release
from optland.train.interrupt import RESUMABLE
from optland.train.resume import Resumption, named_on_the_command_line
from optland.train.settings import LogConfig

__all__ = ["RunFolder"]

_INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended


class RunFolder:
    """Where a run keeps everything, and its log.

    Args:
        out: Folder asked for; a number is added when it holds a run already.
        config: The resolved configuration, saved as ``config.yaml``.
        log: The log section of the configuration.
        recipe: Name of the recipe, for the saved configuration and wandb's grouping.
        length: Samples the whole run will see, for the progress display.
        resume: Go on in the newest folder of this name.

    Raises:
        UserError: Nothing to resume, a resume with another configuration or without its checkpoint, or a run that is
            still going on.
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
    ) -> None:
        text = to_yaml(config, recipe=recipe, secrets=False)
        self.path, self._claim = _newest(Path(out)) if resume else _free(Path(out))
        self.jsonl = JsonlLogger(self.path / "log.jsonl")
        try:
            if resume:
                self._take_up(config, text, recipe)
            else:
                _write(self.path / "config.yaml", text)
        except BaseException:
            self._release()
            raise
        self._go_on = _resume_command(recipe, self.path)
        self.wandb = None
        loggers: list[Logger] = [self.jsonl]
        if log.wandb != "disabled" and not self.finished:
            self.wandb = WandbLogger(
                self.path, project=log.project, mode=log.wandb, config=_plain(text), group=log.group or recipe,
                job_type="train", tags=log.tags, name=self.path.name,
            )  # fmt: skip
            loggers.append(self.wandb)
        if log.console:
            loggers.append(ConsoleLogger(length, every=5 * log.every))
        self.log = LoggerGroup(loggers)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close a run that broke off: as stopped, with the command that goes on with it, or as failed."""
        if isinstance(error, KeyboardInterrupt):
            how = "by Ctrl-C within a step; its last checkpoint is there"
            self._stopped(how, _INTERRUPTED)
        elif isinstance(error, SystemExit) and error.code == RESUMABLE:
            self._stopped("after a whole step, with a checkpoint", RESUMABLE)
        elif isinstance(error, SystemExit) and isinstance(error.code, int):
            self.log.finish({"summary/stopped": f"exit code {error.code}"}, exit_code=error.code)
        elif kind is not None:
            reason = redact_text(f"{kind.__name__}: {error}")
            self.log.finish({"summary/error": reason}, exit_code=1)
        self._release()

    def _stopped(self, how: str, exit_code: int) -> None:
        summary = {"summary/stopped": f"{how}; go on with: {self._go_on}"}
        self.log.finish(summary, exit_code=exit_code)

    def _release(self) -> None:
        release(self._claim)
        self._claim = None

    def _take_up(self, config: object, text: str, recipe: str) -> None:
        """Go on with the run as it is configured now, where that is the same training; say what is other."""
        resumption = Resumption(
            self.path, text, config, finished=self.finished, named=named_on_the_command_line(recipe)
        )
        self._require_checkpoint()
        if resumption.ended:
            return
        for line in resumption.lines():
            sys.stderr.write(f"{line}\n")
        if resumption.longer is not None and self.finished:
            # Before the new configuration: a run that is killed in between is one that has yet to end.
            self._summary.rename(self.path / f"summary-{resumption.longer.before}-epochs.json")
        _write(self.path / "config.yaml", text)

    def _require_checkpoint(self) -> None:
        """A log with rows and no checkpoint is a run whose state was lost, not one that has yet to begin."""
        kept = [self.checkpoint, *self.path.glob(f"{self.checkpoint.name}.previous*")]
        if self.finished or any(file.exists() for file in kept) or not self.rows():
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
        return self._summary.exists()

    @property
    def _summary(self) -> Path:
        return self.path / "summary.json"

    def rows(self) -> list[dict[str, Any]]:
        """The rows logged so far."""
        return read_jsonl(self.jsonl.path, kind="row")

    def events(self) -> list[dict[str, Any]]:
        """The decisions logged so far."""
        return read_jsonl(self.jsonl.path, kind="event")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the log with the summary and say where everything is; ``summary.json`` marks the run as done."""
        self.log.finish(summary)
        content = {key: None if _is_nonfinite(value) else value for key, value in summary.items()}
        text = json.dumps(content, indent=2, allow_nan=False, default=str)
        _write(self._summary, text + "\n")

    def where(self) -> str:
        """Where to look now, a line each."""
        lines = [f"run folder   {self.path}"]
        if (self.path / "curves.png").exists():
            lines.append(f"figure       {self.path / 'curves.png'}")
        command = self.wandb.view_command() if self.wandb is not None else None
        if command:
            lines.append(f"wandb run    {command}")
        return "\n".join(lines)


def _candidates(out: Path) -> Iterator[Path]:
    """The folders ``out``, ``out-2``, ``out-3`` ..."""
    yield out
    yield from (out.with_name(f"{out.name}-{number}") for number in itertools.count(2))


def _free(out: Path) -> tuple[Path, int | None]:
    """The first folder that holds no run, claimed for this process."""
    if not out.name:
        raise UserError(f"out: '{out}' names no folder of its own; use for example runs/mine")
    for folder in _candidates(out):
        try:
            if (folder / "config.yaml").exists():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            handle = claim(folder)
        except (OSError, ValueError) as error:
            raise _unusable(folder, error) from error
        if handle is not None and not (folder / "config.yaml").exists():
            return folder, handle
        release(handle)  # another process was faster
    raise AssertionError("there is always another number")


def _newest(out: Path) -> tuple[Path, int | None]:
    """The last folder that holds a run, claimed for this process."""
    try:
        held = list(itertools.takewhile(lambda folder: (folder / "config.yaml").exists(), _candidates(out)))
        handle = claim(held[-1]) if held else None
    except (OSError, ValueError) as error:
        raise _unusable(out, error) from error
    if not held:
        raise UserError(f"there is no run to resume in {out}; start it without --resume")
    if handle is None:
        raise UserError(
            f"another process is still running in {held[-1]}; wait for it, or end it, then resume"
        )
    return held[-1], handle


def _unusable(folder: Path, error: Exception) -> UserError:
    return UserError(f"out: '{str(folder)[:200]}' cannot be used ({error}); name a folder that can be")


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    aside = file.with_name(f"{file.name}.writing")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, file)


def _resume_command(recipe: str, folder: Path) -> str:
    """What to type to go on: the script of this process with its arguments; elsewhere, the folder's own config."""
    script, *arguments = sys.argv or [""]
    if Path(script).stem == recipe and script.endswith(".py"):
        given = [redact_item(item) for item in arguments if item != "--resume"]
        return shlex.join(["optland", "run", script, *given, "--resume"])
    return shlex.join(["optland", "run", recipe, str(folder / "config.yaml"), "--resume"])


def _is_nonfinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _plain(text: str) -> dict[str, Any]:
    """The resolved configuration as wandb wants it."""
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(OmegaConf.create(text))
    return {str(k): v for k, v in content.items()} if isinstance(content, dict) else {}
