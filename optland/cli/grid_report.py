"""What a grid found: mean and deviation over the seeds of every point, with failures counted, never dropped."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optland.cli.members import Member
from optland.cli.terminal import complain, say, table_console
from optland.files import write_whole
from optland.log.unwritten import Unwritten

__all__ = ["Spread", "report", "spread"]

_SHOWN = 3  # numbers in the table on the console; the files hold all
_NOT_MEASURED = ("train/seconds",)


@dataclass(frozen=True)
class Spread:
    """Mean of a number over seeds.

    Attributes:
        mean: The mean; None where there is no value.
        deviation: Sample standard deviation; None for fewer than two values.
        count: How many values there are.
    """

    mean: float | None
    deviation: float | None
    count: int

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        return f"{self.mean:.4g}" if self.deviation is None else f"{self.mean:.4g} ± {self.deviation:.2g}"


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample deviation of what there is.

    Example:
        >>> print(spread([1.0, 2.0, 3.0]), spread([1.0]), spread([]))
        2 ± 1 1 -
    """
    mean = statistics.fmean(values) if values else None
    return Spread(mean, statistics.stdev(values) if len(values) > 1 else None, len(values))


def report(members: Sequence[Member], keys: Sequence[str], out: Path) -> bool:
    """Show the table and write ``grid.csv``, ``grid.json`` and ``grid.png``; returns whether all of it came out.

    The main number, the one drawn, is the first of the recipe's summary; a run in which it is not finite has failed.

    Args:
        members: All members, each finished or failed.
        keys: Keys of the grid.
        out: The grid's folder.
    """
    names = _numbers(members)
    for member in members:
        if names and not member.failure and _number(member.summary.get(names[0])) is None:
            member.failure = f"{names[0]} is not finite"
    points = _points(members, keys, names)
    _show(points, keys, names)
    unwritten = Unwritten()
    with unwritten.attempt("grid.csv"):
        write_whole(out / "grid.csv", _csv(members, keys, names))
        say(f"table        {out / 'grid.csv'}")
    with unwritten.attempt("grid.json"):
        write_whole(out / "grid.json", json.dumps({"keys": list(keys), "points": points}, indent=2) + "\n")
    with unwritten.attempt("grid.png", Exception):  # the numbers are there, whatever becomes of their picture
        _draw(members, keys, names, out / "grid.png")
    failed = [member for member in members if member.failure]
    for member in failed:
        complain(f"{member.title} failed: {member.failure} (see {member.console})")
    for line in unwritten.lines():
        complain(line)
    return not failed and not unwritten.missing


def _numbers(members: Sequence[Member]) -> list[str]:
    """Names of all numbers of the summaries, in their own order."""
    names: dict[str, None] = {}
    for member in members:
        names |= dict.fromkeys(
            key for key, value in member.summary.items() if not isinstance(value, str | bool)
        )
    return list(names)


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _by_point(members: Sequence[Member]) -> dict[Path, list[Member]]:
    groups: dict[Path, list[Member]] = {}
    for member in members:
        groups.setdefault(member.folder.parent, []).append(member)
    return groups


def _points(members: Sequence[Member], keys: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    """One entry a point: its values, how many seeds ran and failed, and every number's spread."""
    points = []
    for folder, group in _by_point(members).items():
        good = [member.summary for member in group if not member.failure]
        numbers = {name: [v for s in good if (v := _number(s.get(name))) is not None] for name in names}
        failures = {f"seed{member.seed}": member.failure for member in group if member.failure}
        points.append({
            "point": folder.name,
            "values": {key: group[0].point[key] for key in keys},
            "runs": len(group),
            "failed": len(failures),
            "failures": failures,
            "numbers": {name: asdict(spread(values)) for name, values in numbers.items()},
        })  # fmt: skip
    return points


def _csv(members: Sequence[Member], keys: Sequence[str], names: Sequence[str]) -> str:
    """One line a member."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow([*keys, "seed", "failure", *names, "folder"])
    for member in members:
        values = [member.summary.get(name) for name in names]
        point = [member.point[key] for key in keys]
        table.writerow([*point, member.seed, member.failure, *values, member.folder])
    return text.getvalue()


def _show(points: Sequence[dict[str, Any]], keys: Sequence[str], names: Sequence[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    shown = [name for name in names if name not in _NOT_MEASURED][:_SHOWN]
    table = Table(title="mean ± standard deviation over seeds")
    for heading in [*keys, "runs", "failed", *shown]:
        table.add_column(Text(heading), overflow="fold")
    for point in points:
        cells = [str(Spread(**point["numbers"][name])) for name in shown]
        counts = [str(point["runs"]), str(point["failed"])]
        table.add_row(*map(Text, [*point["values"].values(), *counts, *cells]))
    table_console().print(table)


def _draw(members: Sequence[Member], keys: Sequence[str], names: Sequence[str], path: Path) -> None:
    from optland.plots import plot_grid

    values: dict[tuple[str, ...], list[float]] = {}
    for member in members:
        point = values.setdefault(tuple(member.point[key] for key in keys), [])
        number = _number(member.summary.get(names[0])) if names and not member.failure else None
        if number is not None:
            point.append(number)
    if not any(values.values()):
        return
    plot_grid(list(keys), values, names[0], path)
    say(f"figure       {path}")
