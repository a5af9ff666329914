"""Run a grid: every combination of some values with every seed, each an ordinary run in its own folder.

What is done is read from the run folders alone, so a grid that was killed goes on where it was: finished members are
not run again, one that was broken off is resumed, one that failed is tried again.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from optland.cli.recipes import Recipe
from optland.cli.terminal import DONE, FAILED, STOPPED, complain, say, table_console
from optland.config import UserError, to_yaml
from optland.config.secrets import redact_item
from optland.files import write_whole
from optland.log.wandb_environment import LONGEST_NAME, without_empty

__all__ = ["Grid", "Member", "run_grid"]

_BASE = "base"
_LONGEST_FOLDER = 120  # letters; file systems take 255 bytes
_RESERVED = {"seed": "--seeds N", "out": "out=FOLDER"}
_SHOWN = 3  # numbers in the table on the console; the file holds all
_NOT_MEASURED = ("train/seconds",)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGINT,)


@dataclass
class Member:
    """One run of a grid.

    Attributes:
        arguments: Config and overrides, seed and folder included.
        point: The grid's values of this run, by key.
        seed: Its seed.
        folder: Its run folder.
        code: Exit code of its process; 0 where it has not run.
        failure: Why it has no result; empty where it has, or has not run.
    """

    arguments: list[str]
    point: Mapping[str, str]
    seed: int
    folder: Path
    code: int = 0
    failure: str = ""

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

    def summary(self) -> dict[str, Any]:
        """The content of the run's ``summary.json``; empty where it cannot be read.

        Returns:
            The closing table by name; null for a number that was not finite.
        """
        try:
            return dict(json.loads((self.folder / "summary.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def check(self, resolved: str) -> None:
        """Refuse a folder that holds a run of another configuration.

        Args:
            resolved: The configuration of now, as YAML.

        Raises:
            UserError: A setting of the training differs; device, threads, log and checkpoints may.
        """
        if self.state == "new":
            return
        from optland.train.runs.resume import training_changes

        saved = (self.folder / "config.yaml").read_text(encoding="utf-8")
        if changed := [str(change) for change in training_changes(saved, resolved)]:
            raise UserError(
                f"out: {self.folder} holds a run of another configuration (now {', '.join(changed[:3])}); "
                "give this grid another folder with out=FOLDER"
            )


@dataclass(frozen=True)
class Grid:
    """A grid to run: its axes, members and folder.

    Attributes:
        recipe: The recipe.
        axes: Values by key, as they were written.
        out: Folder of the grid.
        members: Every member, its configuration checked.
    """

    recipe: Recipe
    axes: Mapping[str, list[str]]
    out: Path
    members: list[Member]

    @classmethod
    def parse(
        cls, recipe: Recipe, config: str, overrides: Sequence[str], items: Sequence[str], seeds: str | None
    ) -> Grid:
        """The grid of a command line.

        Args:
            recipe: The recipe.
            config: Its config, by path or name.
            overrides: ``key=value`` items.
            items: ``key=a,b,c`` items of ``--grid``.
            seeds: Count of ``--seeds``, as it was written; None is one seed, the config's own.

        Returns:
            The grid; the axes in the order written, the last one fastest, all seeds of a point together.

        Raises:
            UserError: Something of it cannot be used, or a folder holds a run of another configuration.
        """
        axes = _axes(items)
        if seeds is not None and not (seeds.isdecimal() and int(seeds) > 0):
            raise UserError(
                f"--seeds {seeds}: expected a whole number of at least 1. Write for example: --seeds 3"
            )
        schema = recipe.definitions().Config
        base = recipe.load_config(config, overrides, schema)
        for key, use in (("seed", "--seeds"), ("out", "a grid")):
            if not hasattr(base, key):
                raise UserError(
                    f"{use} needs the key '{key}' in the config, and the recipe '{recipe.name}' has none"
                )
        if type(base.seed) is not int:
            raise UserError(
                f"seed: --seeds counts on from the config's seed, and {base.seed!r} is no whole number"
            )
        asked = any(item.partition("=")[0].strip() == "out" for item in overrides)
        out = Path(base.out if asked else f"{base.out}-grid")  # a single run has the plain name
        if os.path.exists(out / "config.yaml"):  # False, where Path.exists raises, for a name that cannot be
            raise UserError(f"out: {out} holds a single run; give the grid another folder with out=FOLDER")
        members = []
        for values in itertools.product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            for seed in range(base.seed, base.seed + int(seeds or 1)):
                folder = out / _name(point) / f"seed{seed}"
                changes = [f"{key}={value}" for key, value in point.items()]
                changes = [*overrides, *changes, f"seed={seed}", f"out={folder}"]
                member = Member([config, *changes], point, seed, folder)
                found = recipe.load_config(config, changes, schema)
                member.check(to_yaml(found, recipe=recipe.name))
                members.append(member)
        return cls(recipe, axes, out, members)


def run_grid(grid: Grid, *, dry_run: bool = False) -> int:
    """Run what is not done yet, one member after the other, then show all of it.

    Args:
        grid: The grid.
        dry_run: Only list the members.

    Returns:
        0 where all members have finished, 1 where some have failed or something could not be written, 75 where it was
        stopped.

    Raises:
        UserError: The folder cannot be made.
    """
    members = grid.members
    if dry_run:
        for member in members:
            shown = " ".join(redact_item(item) for item in member.arguments[:-1])
            say(f"{member.state:<10} {member.folder}  {shown}")
        return DONE
    try:
        grid.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"out: '{grid.out}' cannot be used ({error}); name a folder that can be with out=FOLDER"
        ) from error
    waiting = [member for member in members if member.state != "finished"]
    say(f"{len(members)} runs, {len(members) - len(waiting)} of them finished before")
    if _stopped(grid, waiting):
        left = sum(member.state != "finished" for member in members)
        say(f"stopped with {left} of {len(members)} runs to go; the same command goes on from here")
        return STOPPED
    return _report(grid)


def _stopped(grid: Grid, members: Sequence[Member]) -> bool:
    """Run the members, each in a process of its own; returns whether a signal ended it.

    They are in sessions of their own: a Ctrl-C reaches them once, through here, and lets the one at work save.
    """
    caught: list[int] = []
    at_work: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for process in at_work:
            process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    # What is ignored stays ignored: nohup works by that.
    heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in heeded}
    try:
        for member in members:
            if caught:
                break
            say(f"\n{member.title}")
            names = {
                "WANDB_RUN_GROUP": grid.out.name[-LONGEST_NAME:],
                "WANDB_NAME": member.title[-LONGEST_NAME:],
            }
            command = [sys.executable, "-m", "optland.cli", "run", str(grid.recipe.script), *member.arguments]
            command += ["--resume"] * (member.state == "begun")
            at_work[:] = [
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    env={**names, **without_empty(os.environ)},
                    start_new_session=True,
                )
            ]
            if caught:  # the signal came while the process was being made
                at_work[0].send_signal(signal.SIGTERM)
            member.code = at_work[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return bool(caught)


def _report(grid: Grid) -> int:
    """Show the table and write ``grid.csv``; a run whose first number is not finite has failed."""
    for member in grid.members:
        code = member.code
        if member.state != "finished":
            member.failure = f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
    summaries = {member.title: member.summary() for member in grid.members}
    names = list(
        dict.fromkeys(key for found in summaries.values() for key, v in found.items() if _is_number(v))
    )
    for member in grid.members:
        if not member.failure and names and _finite(summaries[member.title].get(names[0])) is None:
            member.failure = f"{names[0]} is not finite"
    _show(grid, names, summaries)
    for member in grid.members:
        if member.failure:
            complain(f"{member.title} failed: {member.failure}")
    try:
        write_whole(grid.out / "grid.csv", _csv(grid, names, summaries))
    except OSError as error:
        complain(f"NOT WRITTEN  {grid.out / 'grid.csv'}: {error}")
        return FAILED
    say(f"table        {grid.out / 'grid.csv'}")
    return FAILED if any(member.failure or member.code for member in grid.members) else DONE


def _show(grid: Grid, names: Sequence[str], summaries: Mapping[str, dict[str, Any]]) -> None:
    """A line for each point: its values, how many seeds ran and failed, and the first numbers over them."""
    from rich.table import Table
    from rich.text import Text

    shown = [name for name in names if name not in _NOT_MEASURED][:_SHOWN]
    table = Table(title="mean ± standard deviation over seeds")
    for heading in [*grid.axes, "runs", "failed", *shown]:
        table.add_column(Text(heading), overflow="fold")
    for _, group in itertools.groupby(grid.members, key=lambda member: member.folder.parent):
        members = list(group)
        good = [summaries[member.title] for member in members if not member.failure]
        cells = [*members[0].point.values(), str(len(members)), str(len(members) - len(good))]
        cells += [
            _spread([v for found in good if (v := _finite(found.get(name))) is not None]) for name in shown
        ]
        table.add_row(*map(Text, cells))
    table_console().print(table)


def _spread(values: Sequence[float]) -> str:
    """Mean and sample deviation of what there is.

    Example:
        >>> _spread([1.0, 2.0, 3.0]), _spread([1.0]), _spread([])
        ('2 ± 1', '1', '-')
    """
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.4g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def _csv(grid: Grid, names: Sequence[str], summaries: Mapping[str, dict[str, Any]]) -> str:
    """A line for each member."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow([*grid.axes, "seed", "failure", *names, "folder"])
    for member in grid.members:
        values = [summaries[member.title].get(name) for name in names]
        table.writerow([*member.point.values(), member.seed, member.failure, *values, member.folder])
    return text.getvalue()


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _finite(value: Any) -> float | None:
    """A number that can be averaged; JSON has null for one that is not finite."""
    return float(value) if _is_number(value) and value is not None and math.isfinite(value) else None


def _axes(items: Sequence[str]) -> dict[str, list[str]]:
    """Values by key, from the items of ``--grid``."""
    axes: dict[str, list[str]] = {}
    for item in items:
        key, equals, text = (part.strip() for part in item.partition("="))
        values = _split(text)
        if not equals or not key or not all(values):
            raise UserError(
                f"--grid '{item}': expected key=a,b,c. Write for example: --grid optimizer.rho=0.05,0.1"
            )
        if key in _RESERVED:
            raise UserError(f"--grid '{item}': a grid sets '{key}' itself; use {_RESERVED[key]}")
        if key in axes:
            raise UserError(
                f"--grid '{item}': the key '{key}' is there twice; write all its values in one item"
            )
        if len(set(values)) < len(values):
            raise UserError(f"--grid '{item}': a value is there twice; leave one of them out")
        axes[key] = values
    return axes


def _split(text: str) -> list[str]:
    """Values between commas, those inside brackets or braces left whole.

    Example:
        >>> _split("[a,b],[c]")
        ['[a,b]', '[c]']
    """
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values]


def _name(point: Mapping[str, str]) -> str:
    """A folder's name for a point of the grid.

    Example:
        >>> _name({"optimizer.rho": "0.1", "pilot.policies": "[a, b]"})
        'optimizer.rho=0.1,pilot.policies=[a,b]'
    """
    name = ",".join(
        f"{key}={redact_item(f'{key}={value}').partition('=')[2]}" for key, value in point.items()
    )
    name = re.sub(r"[^\w.,=+\[\]{}-]", "", name)
    if len(name) > _LONGEST_FOLDER:
        raise UserError(
            f"--grid: the name '{name[:40]}...' of a point is too long for a folder; use shorter values"
        )
    return name or _BASE
