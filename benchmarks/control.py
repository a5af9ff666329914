"""Landscape control against tuned learning rates: what it costs to choose none.

    python benchmarks/control.py --group development            # constants are chosen on these tasks
    python benchmarks/control.py --group report                 # run once the constants are fixed
    python benchmarks/control.py --group report --parts main pace
    python benchmarks/control.py --group edge --parts main      # nets that the rule was not made on

Every run of a task has the same budget in gradient evaluations, probes counted (a forward is a third): a run with
probes is shortened by all that they may cost. The tuned baseline is the same optimizer with 5 % warm-up and cosine, at
the best of nine learning rates by clean validation over three seeds; five fresh seeds are reported for everything.
``relative_step`` is the plain rule ``AutoLR(tau=0.05)`` without any probe, at its one constant.

=========  =========================================================================================================
part       what is run
=========  =========================================================================================================
main       every method on every task under SGD with momentum and AdamW, SAM over SGD on two
pace       ``auto_lr`` and the plain rule where the plain rule's constant is off: short runs, small and large
           batches, SAM with label noise
user       ``auto_lr`` at learning rates of 1e-5 and 1e3: the same run
safe       ``safe_lr`` from the tuned rate up to 1e3, one value per decade, and below it
ablation   parts of ``auto_lr`` taken away, one at a time; its guards also where they have to act
published  rules of others that take the rate from the curvature, under SGD, three seeds; and the one rate that is best
           on the development tasks, on every report task (from the runs that tuned the baseline)
=========  =========================================================================================================

A finished run is a line in a scratch file, so an interrupted benchmark goes on where it was. Those of all groups are
kept in ``benchmarks/results/control_{report,development,edge}_runs.jsonl``; ``--scratch`` with that file goes on from
them.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import control_new_tasks  # noqa: F401 - adds its tasks
import torch
from control_ablations import METHODS
from control_peers import PEERS
from control_published import PUBLISHED
from control_runs import Cell, run
from control_tasks import TASKS
from kept import Kept
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from optland.pilot import SafeLR

RESULTS = Path(__file__).resolve().parent / "results"
TUNE_SEEDS, REPORT_SEEDS = (0, 1, 2), (10, 11, 12, 13, 14)
SAM_TASKS = {"digits_cnn", "mnist1d_cnn", "fashion_cnn", "digits_deep_mlp"}
LR_FREE = ("plateau", "greedy_lr", "prodigy", "dog", "schedule_free", "momo", "halving")
OWN_OPTIMIZER = ("prodigy", "dog", "schedule_free")  # one run serves both optimizers of a task
ABLATIONS = (
    "no probe",
    "critical-step ceiling",
    "no guard",
    "halving without rewind",
    "frozen first speed",
    "shuffled pace",
)
GUARDS = ("no guard", "halving without rewind")
METHODS.update(PUBLISHED)
METHODS.update(PEERS)
ABLATION_TASKS = {"development": ("mnist1d_cnn", "mnist1d_mlp"), "report": ("digits_deep_mlp", "text_gpt")}
PARTS = ("main", "pace", "user", "safe", "ablation", "published")


ONE_OPTIMIZER = {"lora": "adamw", "deep": "sgd"}
OPEN_ENDED = (("mnist1d_cnn", "sgd"), ("mnist1d_mlp", "adamw"), ("digits_cnn", "sgd"))


def optimizers(task: str) -> tuple[str, ...]:
    """The optimizers that a task is run under."""
    if task in ONE_OPTIMIZER:
        return (ONE_OPTIMIZER[task],)
    return ("sgd", "adamw", "sam") if task in SAM_TASKS else ("sgd", "adamw")


def off_constant(group: str) -> list[Cell]:
    """Cells where one constant does not serve, as templates of seed 0."""
    short = ("mnist1d_cnn", "mnist1d_mlp") if group == "development" else ("fashion_cnn", "text_gpt")
    sizes = "mnist1d_mlp" if group == "development" else "fashion_cnn"
    noisy = "digits_cnn" if group == "development" else "fashion_cnn"
    cells = [
        Cell(task, optimizer, "auto_lr", 0, steps=steps)
        for task in short
        for optimizer in ("sgd", "adamw")
        for steps in (100, 250)
    ]
    for batch in (32, 512):
        steps = 1000 if batch == 32 else 250
        cells += [
            Cell(sizes, optimizer, "auto_lr", 0, steps=steps, batch=batch) for optimizer in ("sgd", "adamw")
        ]
    cells += [
        Cell(noisy, "sam", "auto_lr", 0, steps=750, batch=64, rho=rho, label_noise=noise)
        for rho in (0.1, 0.2)
        for noise in (0.0, 0.4)
    ]
    return cells


def hard(group: str) -> list[Cell]:
    """Where guards have to act: SAM with a wide radius under label noise."""
    return [c for c in off_constant(group) if c.rho == 0.2 and c.label_noise]


def run_cell(cell: Cell) -> dict[str, Any]:
    """In a worker, where this module brings all methods along."""
    return run(cell, METHODS[cell.method])


class Runs:
    """Runs cells side by side and remembers every one that has ended."""

    def __init__(self, scratch: Path, workers: int) -> None:
        self.kept, self.workers = Kept(scratch), workers
        self.done = self.kept.done

    def make(self, cells: Iterable[Cell], what: str) -> None:
        """Run what has not been run."""
        missing = list({c.key: c for c in cells if c.key not in self.done}.values())
        if not missing:
            return
        context = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(self.workers, mp_context=context) as pool,
            Progress(transient=True) as progress,
        ):
            bar = progress.add_task(what, total=len(missing))
            running = {pool.submit(run_cell, cell): cell for cell in missing}
            for ended in as_completed(running):
                try:
                    self.kept.add(ended.result())
                except Exception as error:
                    pool.shutdown(cancel_futures=True)  # or all the others would run first, and be lost
                    raise RuntimeError(f"{running[ended].key} failed: {error}") from error
                progress.advance(bar)

    def of(self, cell: Cell, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """The finished runs of a cell over seeds."""
        return [self.done[replace(cell, seed=seed).key] for seed in seeds]


def over(cells: Iterable[Cell], seeds: Sequence[int]) -> list[Cell]:
    return [replace(cell, seed=seed) for cell in cells for seed in seeds]


# The runs of each part ---------------------------------------------------------------------------------


def grid(task: str, optimizer: str) -> list[Cell]:
    return [Cell(task, optimizer, "tuned", 0, lr=lr) for lr in TASKS[task].lrs(optimizer)]


def tuned(runs: Runs, task: str, optimizer: str) -> Cell:
    """The tuned baseline: best mean validation score over the tuning seeds, a dead run counting as the worst."""

    def merit(cell: Cell) -> float:
        found = runs.of(cell, TUNE_SEEDS)
        if any(f["dead"] for f in found):
            return -math.inf
        if TASKS[task].metric == "acc":
            return statistics.fmean(f["val_acc"] for f in found)
        return -statistics.fmean(f["val_loss"] for f in found)

    return max(grid(task, optimizer), key=merit)


def pairs(group: str) -> list[tuple[str, str]]:
    return [(name, o) for name, task in TASKS.items() if task.group == group for o in optimizers(name)]


def competitors(task: str, optimizer: str) -> list[Cell]:
    """Everything that chooses its own rate, in one cell of the main table."""
    names = ["auto_lr", "relative_step"]
    if optimizer != "sam" and TASKS[task].group != "edge":
        names += LR_FREE
    return [
        Cell(task, "adamw" if name in OWN_OPTIMIZER else optimizer, name, 0)
        for name in names
        if name in METHODS
    ]


def open_ended(group: str) -> list[Cell]:
    """Runs that learn late that they have an end, beside those that know it from the start."""
    if group != "development":
        return []
    return [Cell(t, o, "open-ended", 0) for t, o in OPEN_ENDED]


def decades(best: float) -> list[float]:
    """User rates: the tuned one, a tenth and a hundredth of it, and every decade from it up to 1e3."""
    above = math.floor(math.log10(1e3 / best))
    return [best / 100, best / 10, best, *(best * 10**k for k in range(1, above + 1))]


def measure(runs: Runs, group: str, parts: Sequence[str]) -> None:
    """Every run of the parts."""
    if {"main", "safe"} & set(parts):
        runs.make(over([c for p in pairs(group) for c in grid(*p)], TUNE_SEEDS), f"{group}: learning rates")
    if "main" in parts:
        best = [tuned(runs, *pair) for pair in pairs(group)]
        runs.make(over(best, REPORT_SEEDS), f"{group}: tuned")
        mine = [c for pair in pairs(group) for c in competitors(*pair)]
        runs.make(over(mine, REPORT_SEEDS), f"{group}: methods")
        runs.make(over(open_ended(group), REPORT_SEEDS), f"{group}: open end")
    if "pace" in parts:
        cells = [replace(c, method=m) for c in off_constant(group) for m in ("auto_lr", "relative_step")]
        runs.make(over(cells, REPORT_SEEDS), f"{group}: pace")
    if "user" in parts:
        cells = [Cell(t, o, "auto_lr", 0, lr=lr) for t, o in pairs(group) for lr in (1e-5, 1e3)]
        runs.make(over(cells, REPORT_SEEDS[:1]), f"{group}: user rates")
    if "safe" in parts:
        runs.make(over(safe_cells(runs, group), REPORT_SEEDS[:3]), f"{group}: safe_lr")
    if "published" in parts:
        runs.make(over(published(group), REPORT_SEEDS[:3]), f"{group}: published rules")
    if "ablation" in parts:
        cells = [
            Cell(t, o, m, 0)
            for t in ABLATION_TASKS[group]
            for o in ("sgd", "adamw")
            for m in ("auto_lr", *ABLATIONS)
        ]
        cells += [replace(c, method=m) for c in hard(group) for m in ("auto_lr", *GUARDS)]
        runs.make(over(cells, REPORT_SEEDS), f"{group}: ablations")


def published(group: str) -> list[Cell]:
    """Rules of others, under SGD."""
    return [Cell(t, o, m, 0) for t, o in pairs(group) if o == "sgd" for m in PUBLISHED]


def calibrated(runs: Runs, optimizer: str) -> float:
    """The one rate with the best mean validation accuracy over the development tasks, a dead run counting as 10 %."""

    def merit(lr: float) -> float:
        cells = [Cell(t, optimizer, "tuned", 0, lr=lr) for t, o in pairs("development") if o == optimizer]
        found = [f for c in cells for f in runs.of(c, TUNE_SEEDS)]
        return statistics.fmean(10.0 if f["dead"] else f["val_acc"] for f in found)

    return max(TASKS["mnist1d_mlp"].lrs(optimizer), key=merit)


def calibrated_rows(runs: Runs, group: str) -> dict[str, Any]:
    """What that rate gives on every task, or the nearest that was tried there."""
    others = Runs(RESULTS / "control_development_runs.jsonl", 1)
    rates = {optimizer: calibrated(others, optimizer) for optimizer in {o for _, o in pairs(group)}}
    rows = {}
    for task, optimizer in pairs(group):
        nearest = nearest_rate(TASKS[task].lrs(optimizer), rates[optimizer])
        rows[f"{task}/{optimizer}"] = row(runs, Cell(task, optimizer, "tuned", 0, lr=nearest), TUNE_SEEDS)
    return rows


def nearest_rate(rates: Iterable[float], rate: float) -> float:
    return min(rates, key=lambda lr: abs(math.log(lr / rate)))


def safe_cells(runs: Runs, group: str) -> list[Cell]:
    """``safe_lr`` and, at and below the tuned rate, the same schedule without it."""
    cells = []
    for task, optimizer in pairs(group):
        if optimizer == "sam":
            continue
        best = float(tuned(runs, task, optimizer).lr or 0.0)
        cells += [Cell(task, optimizer, "safe_lr", 0, lr=lr) for lr in decades(best)]
        cells += [Cell(task, optimizer, "tuned", 0, lr=lr) for lr in decades(best)[:3]]
    return cells


# What comes out ----------------------------------------------------------------------------------------


def row(runs: Runs, cell: Cell, seeds: Sequence[int] = REPORT_SEEDS) -> dict[str, Any]:
    """A cell over its seeds."""
    found = runs.of(cell, seeds)
    known = ("test_acc", "test_loss", "train_loss", "ge", "seconds", "probe_seconds", "rewinds")
    keys = [k for k in known if all(k in f for f in found)]
    means = {k: statistics.fmean(f[k] for f in found) for k in keys}
    metric = f"test_{TASKS[cell.task].metric}"
    seeds_of = [f[metric] for f in found]
    return {
        "cell": cell.key, "lr": cell.lr, **means, "seeds": seeds_of, "dead": sum(f["dead"] for f in found),
        "probes": statistics.fmean(f.get("probes", 0.0) for f in found),
    }  # fmt: skip


def advantage(task: str, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """How much better ``ours`` is: points of accuracy, and per cent of test loss (positive is better)."""
    found = {"loss": 100.0 * (1.0 - ours["test_loss"] / theirs["test_loss"])}
    if TASKS[task].metric == "acc":
        found["points"] = ours["test_acc"] - theirs["test_acc"]
    return found


def summarise(runs: Runs, group: str, parts: Sequence[str]) -> dict[str, Any]:
    """The tables of the parts."""
    content: dict[str, Any] = {}
    if "main" in parts:
        content["main"] = {f"{t}/{o}": main_rows(runs, t, o) for t, o in pairs(group)}
        content["open end"] = {c.key: row(runs, c) for c in open_ended(group)}
    if "pace" in parts:
        content["pace"] = {
            describe(c): compared(runs, c, replace(c, method="relative_step")) for c in off_constant(group)
        }
    if "user" in parts:
        content["user"] = {f"{t}/{o}": user_row(runs, t, o) for t, o in pairs(group)}
    if "safe" in parts:
        content["safe"] = {c.key: row(runs, c, REPORT_SEEDS[:3]) for c in safe_cells(runs, group)}
        content["safe growth"] = SafeLR().growth
    if "published" in parts:
        content["calibrated"] = calibrated_rows(runs, group)
        content["published"] = {c.key: row(runs, c, REPORT_SEEDS[:3]) for c in published(group)}
    if "ablation" in parts:
        content["ablation"] = {
            f"{t}/{o}": {m: row(runs, Cell(t, o, m, 0)) for m in ("auto_lr", *ABLATIONS)}
            for t in ABLATION_TASKS[group]
            for o in ("sgd", "adamw")
        } | {
            describe(c): {m: row(runs, replace(c, method=m)) for m in ("auto_lr", *GUARDS)}
            for c in hard(group)
        }
    return content


def describe(cell: Cell) -> str:
    """A cell of the pace table in words."""
    words = [TASKS[cell.task].title, cell.optimizer, f"{cell.steps} steps"]
    words += [f"batch {cell.batch}"] if cell.batch else []
    words += [f"rho {cell.rho:g}, {cell.label_noise:.0%} noise"] if cell.optimizer == "sam" else []
    return ", ".join(words)


def main_rows(runs: Runs, task: str, optimizer: str) -> dict[str, Any]:
    best = tuned(runs, task, optimizer)
    rows = {"tuned": row(runs, best)}
    for cell in competitors(task, optimizer):
        rows[cell.method] = row(runs, cell)
        rows[cell.method]["over tuned"] = advantage(task, rows[cell.method], rows["tuned"])
    return rows


def compared(runs: Runs, ours: Cell, theirs: Cell) -> dict[str, Any]:
    a, b = row(runs, ours), row(runs, theirs)
    return {ours.method: a, theirs.method: b, "advantage": advantage(ours.task, a, b)}


def user_row(runs: Runs, task: str, optimizer: str) -> dict[str, Any]:
    cells = [Cell(task, optimizer, "auto_lr", 0, lr=lr) for lr in (1e-5, 1e3)]
    return {f"{c.lr:g}": row(runs, c, REPORT_SEEDS[:1])["seeds"] for c in cells}


def show(content: dict[str, Any], console: Console) -> None:
    """The tables as people read them."""
    for part, rows in content.items():
        table = Table(title=part, title_justify="left")
        for column in ("cell", "method", "lr", "acc", "loss", "train", "dead", "rewinds", "points", "loss %"):
            table.add_column(column, justify="left" if column in ("cell", "method") else "right")
        if part not in ("main", "pace", "ablation"):
            console.print_json(json.dumps(rows, default=float))
            continue
        for name, methods in rows.items():
            best = methods.get("advantage", {})
            for method, found in methods.items():
                if method == "advantage":
                    continue
                gain = found.get("over tuned", best if method == "auto_lr" else {})
                table.add_row(
                    name, method, "" if found["lr"] is None else f"{found['lr']:g}",
                    f"{found.get('test_acc', math.nan):.1f}", f"{found['test_loss']:.3f}",
                    f"{found['train_loss']:.3f}", str(found["dead"]), f"{found['rewinds']:.1f}",
                    f"{gain['points']:+.1f}" if "points" in gain else "",
                    f"{gain['loss']:+.1f}" if "loss" in gain else "",
                )  # fmt: skip
                name = ""
            table.add_section()
        console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--group", choices=["development", "report", "edge", "new"], required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    scratch = arguments.scratch or Path(f"runs/control/{arguments.group}.jsonl")
    result = arguments.result or RESULTS / f"control_{arguments.group}.json"
    runs = Runs(scratch, arguments.workers)
    measure(runs, arguments.group, arguments.parts)
    content = summarise(runs, arguments.group, arguments.parts)
    show(content, Console(width=150))
    known = json.loads(result.read_text()) if result.exists() else {"benchmark": f"control_{arguments.group}"}
    machine = {"python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count()}
    known |= {"machine": machine, "seeds": {"tune": TUNE_SEEDS, "report": REPORT_SEEDS}, **content}
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
