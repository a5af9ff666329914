"""The folder of one run: resolved configuration, log, checkpoint, figure, summary.

A folder is never written over: a second run of the same name gets the next free number, and ``--resume`` goes on in
the newest one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optland.config import UserError, to_yaml
from optland.log import ConsoleLogger, JsonlLogger, Logger, LoggerGroup, WandbLogger, read_jsonl
from optland.train.settings import LogConfig

__all__ = ["RunFolder"]


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
        UserError: Nothing to resume, or a resume with another configuration.
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
        text = to_yaml(config, recipe=recipe)
        self.path = _newest(Path(out)) if resume else _free(Path(out))
        self.path.mkdir(parents=True, exist_ok=True)
        saved = self.path / "config.yaml"
        if resume:
            _same_config(saved, text)
        else:
            saved.write_text(text, encoding="utf-8")
        self.jsonl = JsonlLogger(self.path / "log.jsonl")
        self.wandb = None
        loggers: list[Logger] = [self.jsonl]
        if log.wandb != "disabled":
            self.wandb = WandbLogger(
                self.path, project=log.project, mode=log.wandb, config=_plain(text), group=recipe,
                job_type="train", name=self.path.name,
            )  # fmt: skip
            loggers.append(self.wandb)
        if log.console:
            loggers.append(ConsoleLogger(length, every=5 * log.every))
        self.log = LoggerGroup(loggers)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """A run that broke off is closed as failed; its checkpoint stays for ``--resume``."""
        if kind is not None:
            self.log.finish({"summary/error": f"{kind.__name__}: {error}"}, exit_code=1)

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file."""
        return self.path / "checkpoint.pt"

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return (self.path / "summary.json").exists()

    def rows(self) -> list[dict[str, Any]]:
        """The rows logged so far."""
        return read_jsonl(self.jsonl.path, kind="row")

    def events(self) -> list[dict[str, Any]]:
        """The decisions logged so far."""
        return read_jsonl(self.jsonl.path, kind="event")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the log with the summary and say where everything is; ``summary.json`` marks the run as done."""
        self.log.finish(summary)
        text = json.dumps(dict(summary), indent=2, allow_nan=False, default=str)
        (self.path / "summary.json").write_text(text + "\n", encoding="utf-8")

    def where(self) -> str:
        """Where to look now, a line each."""
        lines = [f"run folder   {self.path}"]
        if (self.path / "curves.png").exists():
            lines.append(f"figure       {self.path / 'curves.png'}")
        command = self.wandb.view_command() if self.wandb is not None else None
        if command:
            lines.append(f"wandb run    {command}")
        return "\n".join(lines)


def _numbered(out: Path) -> list[Path]:
    """The folders ``out``, ``out-2``, ``out-3`` ... that hold a run, oldest first."""
    numbers = itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
    folders = (out.with_name(out.name + number) for number in numbers)
    return list(itertools.takewhile(lambda folder: (folder / "config.yaml").exists(), folders))


def _free(out: Path) -> Path:
    taken = len(_numbered(out))
    return out if taken == 0 else out.with_name(f"{out.name}-{taken + 1}")


def _newest(out: Path) -> Path:
    found = _numbered(out)
    if not found:
        raise UserError(f"there is no run to resume in {out}; start it without --resume")
    return found[-1]


def _same_config(saved: Path, text: str) -> None:
    """A resumed run must be the one that was started."""
    old, new = saved.read_text(encoding="utf-8").splitlines(), text.splitlines()
    changed = [f"'{b.strip()}' (was '{a.strip()}')" for a, b in zip(old, new, strict=False) if a != b]
    if old != new:
        what = ", ".join(changed[:3]) or "the set of keys"
        raise UserError(
            f"cannot resume {saved.parent} with another configuration: {what}; start a new run instead"
        )


def _plain(text: str) -> dict[str, Any]:
    """The resolved configuration as wandb wants it."""
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(OmegaConf.create(text))
    return {str(k): v for k, v in content.items()} if isinstance(content, dict) else {}
