"""A grid: every combination of some values with every seed, each an ordinary run in a folder of its own.

What is done is read from the run folders alone, so a grid that was killed goes on where it was: finished members are
not run again, one that was broken off is resumed, one that failed is tried again.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optland.cli.execution import resolve
from optland.cli.grid_report import report
from optland.cli.members import Member, Pool
from optland.cli.needs import missing_for
from optland.cli.recipes import Recipe
from optland.cli.terminal import DONE, FAILED, complain, say
from optland.config import UserError, redact_item

__all__ = ["Grid", "run_grid"]

_BASE = "base"
_LONGEST_NAME = 120  # a folder's name; file systems take 255 bytes
_RESERVED = {"seed": "--seeds N", "out": "out=FOLDER"}


@dataclass(frozen=True)
class Grid:
    """What is to be run.

    Attributes:
        recipe: The recipe.
        arguments: Config and overrides that all members share.
        axes: Values by key, as they were written.
        seeds: The seeds of every point.
        out: Folder of the grid.
    """

    recipe: Recipe
    arguments: list[str]
    axes: Mapping[str, list[str]]
    seeds: range
    out: Path

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

        Raises:
            UserError: Something of it cannot be used.
        """
        axes = _axes(items)
        count = 1 if seeds is None else _at_least_one("--seeds", seeds)
        base = _top_level(resolve(recipe, [config, *overrides]))
        for key, use in (("seed", "--seeds"), ("out", "a grid")):
            if key not in base:
                raise UserError(
                    f"{use} needs the key '{key}' in the config, and the recipe '{recipe.name}' has none"
                )
        asked = any(item.partition("=")[0].strip() == "out" for item in overrides)
        # A single run of the same config has the plain name.
        out = Path(base["out"] if asked else f"{base['out']}-grid")
        first = base["seed"]
        if type(first) is not int:
            raise UserError(
                f"seed: --seeds counts on from the config's seed, and {first!r} is no whole number"
            )
        return cls(recipe, [config, *overrides], axes, range(first, first + count), out)

    def members(self) -> list[Member]:
        """Every member, its configuration checked.

        Raises:
            UserError: A member's configuration cannot be used, or its folder holds a run of another one.
        """
        members = []
        for values in itertools.product(*self.axes.values()):
            point = dict(zip(self.axes, values, strict=True))
            for seed in self.seeds:
                folder = self.out / _name(point) / f"seed{seed}"
                changes = [f"{key}={value}" for key, value in point.items()]
                arguments = [*self.arguments, *changes, f"seed={seed}", f"out={folder}"]
                member = Member(self.recipe, arguments, point, seed, folder)
                member.check(resolve(self.recipe, arguments))
                members.append(member)
        return members


def run_grid(grid: Grid, *, workers: str | None = None, dry_run: bool = False) -> int:
    """Run what is not done yet, then report on all of it.

    Args:
        grid: The grid.
        workers: Runs side by side, as written on the command line; one by default.
        dry_run: Only list the members.

    Returns:
        0 where all members have finished, 1 where some have failed or something could not be written, 75 where it was
        stopped.
    """
    count = 1 if workers is None else _at_least_one("--workers", workers)
    if os.path.exists(grid.out / "config.yaml"):  # False, where Path.exists raises, for a name that cannot be
        raise UserError(f"out: {grid.out} holds a single run; give the grid another folder with out=FOLDER")
    members = grid.members()
    if dry_run:
        for member in members:
            say(
                f"{member.state:<10} {member.folder}  {' '.join(redact_item(a) for a in member.arguments[:-1])}"
            )
        return DONE
    try:
        grid.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"out: '{grid.out}' cannot be used ({error}); name a folder that can be with out=FOLDER"
        ) from error
    if lacking := missing_for("optland.plots"):
        complain(f"optland: {lacking}; the grid goes on without")
    code = Pool(members, count, group=grid.out.name).run()
    if code != DONE:
        return code
    whole = report(members, list(grid.axes), grid.out)
    return DONE if whole and not any(member.remark for member in members) else FAILED


def _axes(items: Sequence[str]) -> dict[str, list[str]]:
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
    if len(name) > _LONGEST_NAME:
        raise UserError(
            f"--grid: the name '{name[:40]}...' of a point is too long for a folder; use shorter values"
        )
    return name or _BASE


def _at_least_one(option: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(
            f"{option} {text}: expected a whole number of at least 1. Write for example: {option} 3"
        )
    return int(text)


def _top_level(text: str) -> dict[str, Any]:
    """The scalars at the top of a resolved configuration."""
    import yaml  # type: ignore[import-untyped]

    return {key: value for key, value in yaml.safe_load(text).items() if not isinstance(value, dict | list)}
