"""The members of a grid, and running them side by side in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from optland.cli.recipes import Recipe
from optland.cli.terminal import DONE, STOPPED, say
from optland.config import UserError, redact_text
from optland.log.wandb_environment import LONGEST_NAME, without_empty

__all__ = ["Member", "Pool"]

_POLL = 0.1  # seconds between two looks at the processes
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGINT,)


@dataclass
class Member:
    """One run of a grid.

    Attributes:
        recipe: The recipe.
        arguments: Config and overrides, seed and folder included.
        point: The grid's values of this run, by key.
        seed: Its seed.
        folder: Its run folder.
        failure: Why it did not finish; empty where it did, or has not run.
        remark: What it had to say although it finished, such as a file that it could not write.
    """

    recipe: Recipe
    arguments: list[str]
    point: Mapping[str, str]
    seed: int
    folder: Path
    failure: str = ""
    remark: str = ""

    @property
    def title(self) -> str:
        """Point and seed, as the folder is named."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def state(self) -> str:
        """``finished``, ``begun`` or ``new``."""
        if os.path.exists(self.folder / "summary.json"):
            return "finished"
        return "begun" if os.path.exists(self.folder / "config.yaml") else "new"

    @property
    def summary(self) -> dict[str, Any]:
        """What the run's ``summary.json`` says; empty where there is none that can be read."""
        try:
            return dict(json.loads((self.folder / "summary.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    @property
    def console(self) -> Path:
        """Everything the run printed."""
        return self.folder / "console.txt"

    def check(self, resolved: str) -> None:
        """Refuse a folder that holds a run of another configuration."""
        saved = self.folder / "config.yaml"
        if not os.path.exists(saved):
            return
        from optland.train.resume import training_changes

        if changed := [
            str(change) for change in training_changes(saved.read_text(encoding="utf-8"), resolved)
        ]:
            raise UserError(
                f"out: {self.folder} holds a run of another configuration (now {', '.join(changed[:3])}); "
                "give this grid another folder with out=FOLDER"
            )

    def command(self) -> list[str]:
        """The command that starts the run, or goes on with it."""
        flags = ["--resume"] * (self.state == "begun")
        return [sys.executable, "-m", "optland.cli", "run", str(self.recipe.script), *self.arguments, *flags]

    def ended(self, code: int) -> None:
        """Note how the process ended; its result counts where it is there."""
        finished = self.state == "finished"
        self.failure = "" if finished else self._reason(code)
        self.remark = self._reason(code) if finished and code != DONE else ""

    def _reason(self, code: int) -> str:
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        try:
            lines = self.console.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            return f"exit code {code}, and what it said cannot be read ({error})"
        said = [line.strip() for line in lines if line.strip()]
        last = redact_text(said[-1].removeprefix("optland: ")) if said else "it said nothing"
        return f"exit code {code}: {last}"


@dataclass
class Pool:
    """Runs members in processes, some at a time.

    The members are in sessions of their own: a Ctrl-C reaches them once, through here, and lets each finish its step
    and save. A member that another process is still running (of a grid that was killed) is waited for.

    Attributes:
        members: All members, the finished ones included.
        workers: Most processes at a time.
        group: wandb's group of the members, unless the environment names one.
    """

    members: Sequence[Member]
    workers: int
    group: str
    _stopping: int = field(default=0, init=False)
    _done: int = field(default=0, init=False)
    _running: list[tuple[subprocess.Popen[bytes], Member]] = field(default_factory=list, init=False)

    def run(self) -> int:
        """Run every member that has not finished; returns 0, or 75 where a signal stopped the grid."""
        # What is ignored stays ignored: nohup works by that.
        heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._on_signal) for number in heeded}
        try:
            self._run_all()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._stopping:
            left = sum(member.state != "finished" for member in self.members)
            say(f"stopped with {left} of {len(self.members)} runs to go; the same command goes on from here")
            return STOPPED
        return DONE

    def _run_all(self) -> None:
        from optland.train.lock import is_locked

        waiting = [member for member in self.members if member.state != "finished"]
        self._done = len(self.members) - len(waiting)
        self._say_what_is_done()
        while self._running or (waiting and not self._stopping):
            free = [member for member in waiting if not is_locked(member.folder)]
            if free and len(self._running) < self.workers and not self._stopping:
                waiting.remove(free[0])
                self._start(free[0])
                continue
            time.sleep(_POLL)
            for process, member in list(self._running):
                if (code := process.poll()) is not None:
                    self._running.remove((process, member))
                    self._ended(member, code)

    def _start(self, member: Member) -> None:
        if member.state == "finished":  # by the process that was waited for
            self._done += 1
            return
        names = {"WANDB_RUN_GROUP": self.group[-LONGEST_NAME:], "WANDB_NAME": member.title[-LONGEST_NAME:]}
        try:
            member.folder.mkdir(parents=True, exist_ok=True)
            console = member.console.open("ab")
        except OSError as error:
            member.failure = f"its folder cannot be written to ({error})"
            self._tell(member)
            return
        with console:
            process = subprocess.Popen(
                member.command(),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**names, **without_empty(os.environ)},
                start_new_session=True,
            )
        self._running.append((process, member))
        if self._stopping:  # the signal came while the process was being made
            process.send_signal(self._stopping)

    def _ended(self, member: Member, code: int) -> None:
        member.ended(code)
        if not self._stopping:
            self._tell(member)

    def _tell(self, member: Member) -> None:
        self._done += 1
        how = f"FAILED, {member.failure}" if member.failure else "done"
        but = f", but {member.remark}" if member.remark else ""
        say(f"[{self._done}/{len(self.members)}] {member.title}: {how}{but}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping = number
        for process, _ in self._running:
            process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    def _say_what_is_done(self) -> None:
        begun = sum(member.state == "begun" for member in self.members)
        say(
            f"{len(self.members)} runs: {self._done} finished before, {begun} to go on with, {self.workers} at a time"
        )
