"""Train runs into a bank, and show what a bank holds.

    python benchmarks/bank.py make RUN.yaml optimizer.lr=0.2 --into runs/bank/mine.jsonl --seeds 0 1 2 --minutes 30
    python benchmarks/bank.py make RUN.yaml --into runs/bank/mine.jsonl --measures val test lambda_max
    python benchmarks/bank.py show runs/bank/*.jsonl

RUN.yaml holds the settings of :class:`optland.train.experiments.bank_run.BankRun`, such as ``budget: 48000`` and
``optimizer: {name: sam, lr: 0.1, rho: 0.1}``; ``key=value`` changes one. A finished run is a line of the file; started
again, the program goes on with what is missing, and ``--also`` names files of other processes that are read beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from optland import Objective
from optland.config import UserError, load
from optland.curvature import hessian, lanczos
from optland.train.experiments.bank import Bank, Measure, score
from optland.train.experiments.bank_run import BankRun, Splits, cross_entropy
from optland.train.experiments.kept import kept_lines

PROBED = 512


def largest_eigenvalue(model: nn.Module, splits: Splits) -> dict[str, float]:
    """Of the Hessian on the first training samples, with its error."""
    objective = Objective(model, cross_entropy, list(splits.batches("train", num=PROBED)))
    with hessian(objective) as H:
        found = lanczos(H, k=1, ends="top")
    return {"value": found.values[0].value, "error": found.values[0].error}


MEASURES: dict[str, Measure] = {
    "val": score("val"),
    "test": score("test"),
    "train": score("train"),
    "lambda_max": largest_eigenvalue,
}


def make(arguments: argparse.Namespace) -> int:
    """Train what is missing; 75, as where a run is to be resumed, where time has run out before that."""
    torch.set_num_threads(1)
    template = load(BankRun, arguments.run, arguments.overrides)
    runs = [replace(template, seed=seed) for seed in arguments.seeds]
    measures = {name: MEASURES[name] for name in arguments.measures}
    bank = Bank(arguments.into, measures, also=arguments.also, watch=print)
    done = bank.make(runs, arguments.minutes)
    print(f"{len(runs) - len(bank.missing(runs))} of {len(runs)} runs are in {arguments.into}")
    return 0 if done else 75


def show(files: Sequence[Path], console: Console) -> int:
    """A row for each run."""
    table = Table(title=", ".join(map(str, files)), title_justify="left")
    for column in ("run", "seed", "dead", "GE", "train loss", "found", "s"):
        table.add_column(column, justify="left" if column in ("run", "found") else "right")
    for line in (line for file in files for line in kept_lines(file)):
        settings = {name: value for name, value in line["run"].items() if name not in ("seed", "budget")}
        table.add_row(
            flat(settings), str(line["run"].get("seed", 0)), "yes" if line["dead"] else "",
            f"{line['facts']['ge']:,.0f}", shown(line["facts"]["train_loss"]),
            " ".join(f"{name}={shown(value)}" for name, value in numbers(line["end"])), f"{line['seconds']:.1f}",
        )  # fmt: skip
    console.print(table)
    return 0


def flat(settings: dict[str, Any], prefix: str = "") -> str:
    """Nested settings as ``key=value`` items."""
    items = []
    for name, value in settings.items():
        inner = isinstance(value, dict)
        items.append(flat(value, f"{prefix}{name}.") if inner else f"{prefix}{name}={value}")
    return " ".join(items)


def numbers(found: dict[str, Any]) -> list[tuple[str, float | None]]:
    """The single numbers of all measures."""
    return [
        (f"{measure}/{name}", value)
        for measure, values in found.items()
        for name, value in values.items()
        if not isinstance(value, list)
    ]


def shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make", help="train what is missing")
    maker.add_argument("run", type=Path)
    maker.add_argument("overrides", nargs="*", metavar="key=value")
    maker.add_argument("--into", type=Path, required=True)
    maker.add_argument("--also", type=Path, nargs="+", default=[])
    maker.add_argument("--seeds", type=int, nargs="+", default=[0])
    maker.add_argument("--measures", nargs="+", choices=list(MEASURES), default=["val", "test"])
    maker.add_argument("--minutes", type=float, default=float("inf"))
    shower = commands.add_parser("show", help="a table of what is there")
    shower.add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args(argv)
    try:
        return make(arguments) if arguments.command == "make" else show(arguments.files, Console(width=150))
    except (UserError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
