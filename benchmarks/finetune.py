"""What fine-tuning leaves of the first task: replay, a penalty, SAM, a budget (``keep_old``) and interpolation.

    python benchmarks/finetune.py --minutes 30      # goes on where it was; about 45 minutes on one idle core

Three pairs of tasks with one head: digits to digits turned by a quarter (CNN), the first five classes of Fashion-MNIST
10k at 14 x 14 to the other five (CNN), and the sources of two packages of the standard library to those of two others
(GPT of 2 layers on bytes). The first task is trained once per seed. From there every way of ``recipes/finetune.py``
runs at four learning rates; the loop is the recipe's own. Interpolation is the plain run's weights at four places
between start and end, at no cost. Of a text, accuracy is that of its tokens.

A way's frontier is the most accuracy on the old task that is left at a given accuracy on the new one, over its runs;
its area is the mean over the new accuracies that all ways reach on that seed. The rise of the old loss is that of the
run of highest old accuracy whose new accuracy is within half a point of the tuned plain run's (rate by validation). A
way may not get there; so beside it stands its rise where it is best on the new task, over the least rise of the plain
runs that are at least as good there.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import sysconfig
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from intervals import interval
from kept import Kept
from numpy.typing import NDArray
from torch import nn

from optland.cli.recipes import Recipe
from optland.train import DataConfig, ModelConfig, OptimizerConfig, TextConfig, TransformerConfig
from optland.train.experiments.bank_run import BankRun, Splits, load_splits
from optland.train.experiments.finetuning import SHARES, Task, between, tasks, together

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RECIPE = Recipe(ROOT / "recipes" / "finetune.py").definitions()
WAYS = ("plain", "replay", "l2", "sam", "keep_old")
ROWS = (*WAYS, "interpolation", "replay and interpolation")
FASHION = DataConfig("fashion_mnist", subset=10_000)


@dataclass(frozen=True)
class Tasks:
    """Two tasks for one net.

    Attributes:
        first: Data and net of the first task.
        second: The second task on the same images, as the recipe names it, or data of its own.
        seeds: How many.
        start_epochs: Passes over the first task.
        epochs: Passes over the second.
        lrs: Rates of the second that are tried.
        start: Optimizer and rate of the first task; the second has the same optimizer.
        batch_size: Samples per step; about a fifth as many are replayed.
    """

    first: BankRun
    second: Task | BankRun
    seeds: int
    start_epochs: int
    epochs: int
    lrs: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    start: OptimizerConfig = field(default_factory=lambda: OptimizerConfig("sgd", lr=0.1))
    batch_size: int = 64

    def splits(self) -> tuple[Splits, Splits]:
        """The data of both."""
        first = load_splits(self.first)
        if isinstance(self.second, BankRun):
            return first, load_splits(self.second)
        return tasks(first, self.second)


def sources(*packages: str) -> TextConfig:
    """All modules of some packages of the standard library, in bytes."""
    paths = [str(Path(sysconfig.get_path("stdlib")) / package / "**" / "*.py") for package in packages]
    return TextConfig(paths, tokens="bytes", context=64)


GPT = TransformerConfig(depth=2, width=64, heads=4)
PACKAGES = BankRun(1, text=sources("asyncio", "email"), transformer=GPT)
TASKS = {
    "digits_turned": Tasks(BankRun(1, net=ModelConfig("cnn", width=16)), "turned", 5, 20, 5),
    "fashion_classes": Tasks(
        BankRun(1, data=FASHION, halved=True, net=ModelConfig("cnn", width=8)), "classes", 3, 4, 2,
        start=OptimizerConfig("sgd", lr=0.03),  # at 0.1 one net in three does not learn the first task
    ),
    "packages": Tasks(
        PACKAGES, replace(PACKAGES, text=sources("xml", "json")), 3, 4, 2, lrs=(0.0003, 0.001, 0.003, 0.01),
        start=OptimizerConfig("adamw", lr=0.004), batch_size=32,
    ),
}  # fmt: skip
CLOSE = 0.5
REPLAYED = 13 / 64
HELD_OUT, HELD_OUT_WINDOWS = 2000, 250


def held_out(splits: Splits) -> Splits:
    """The first validation and test samples of a task: enough to tell a point of accuracy."""
    num = HELD_OUT if splits.train[1].ndim == 1 else HELD_OUT_WINDOWS
    cut = {name: tuple(t[:num] for t in getattr(splits, name)) for name in ("val", "test")}
    return replace(splits, **cut)  # type: ignore[arg-type]


class Pair:
    """Two tasks of a seed, and the net of the first."""

    def __init__(self, task: str, seed: int) -> None:
        chosen = TASKS[task]
        old, new = chosen.splits()
        self.old, self.new = held_out(old), held_out(new)
        torch.manual_seed(seed)
        self.model: nn.Module = old.build(chosen.first)
        self.config = RECIPE.Config(
            seed=seed, start_epochs=chosen.start_epochs, epochs=chosen.epochs, model=chosen.first.net,
            optimizer=chosen.start, start_lr=chosen.start.lr, batch_size=chosen.batch_size,
            replayed=round(REPLAYED * chosen.batch_size),
        )  # fmt: skip
        RECIPE.train(self.config, self.model, self.old, None, None)
        self.start = copy.deepcopy(self.model.state_dict())

    def measure(self, way: str, lr: float) -> dict[str, Any]:
        """One fine-tuning from the start, evaluated at its places between start and end."""
        self.model.load_state_dict(self.start)
        config = replace(self.config, way=way, optimizer=replace(self.config.optimizer, lr=lr))
        cost = RECIPE.train(config, self.model, self.new, self.old, None)
        end = copy.deepcopy(self.model.state_dict())
        places = SHARES if way in ("plain", "replay") else (1.0,)
        finite = all(bool(torch.isfinite(t).all()) for t in end.values() if t.is_floating_point())
        at = {f"{s:g}": together(between(self.model, self.start, end, s), self.old, self.new) for s in places}
        return {"ge": cost, "at": at if finite else {}}


def runs(task: str) -> Iterable[tuple[int, str, float]]:
    chosen = TASKS[task]
    return ((seed, way, lr) for seed in range(chosen.seeds) for way in WAYS for lr in chosen.lrs)


def make(kept: Kept, task: str, end: float) -> bool:
    """Whether all runs of a task are there; none is begun after ``end``."""
    pair: Pair | None = None
    for seed, way, lr in runs(task):
        if f"{task} {seed} start" in kept.done and f"{task} {seed} {way} {lr:g}" in kept.done:
            continue
        if time.monotonic() >= end:
            return False
        if pair is None or pair.config.seed != seed:
            pair = Pair(task, seed)
        one(kept, pair, task, way, lr)
    return True


def one(kept: Kept, pair: Pair, task: str, way: str, lr: float) -> None:
    seed = pair.config.seed
    first = kept.of(f"{task} {seed} start", lambda: {"at": {"0": together(pair.model, pair.old, pair.new)}})
    found = kept.of(f"{task} {seed} {way} {lr:g}", lambda: pair.measure(way, lr))
    at = [first["at"]["0"], *found["at"].values()]
    print(
        task,
        seed,
        way,
        lr,
        [(round(p["test/old_acc"], 1), round(p["test/new_acc"], 1)) for p in at],
        flush=True,
    )


def points(kept: Kept, task: str, seed: int, row: str) -> list[dict[str, float]]:
    """What a row of the table may choose from."""
    way = {"interpolation": "plain", "replay and interpolation": "replay"}.get(row, row)
    found = [kept.done[f"{task} {seed} {way} {lr:g}"]["at"] for lr in TASKS[task].lrs]
    return [p for at in found for share, p in at.items() if share == "1" or row not in WAYS]


def frontier(found: list[dict[str, float]], places: NDArray[np.float64]) -> float:
    """Mean over new accuracies of the most old accuracy that is left there."""
    new, old = (np.array([p[f"test/{name}_acc"] for p in found]) for name in ("new", "old"))
    return float(np.mean([old[new >= x].max() for x in places]))


def table(kept: Kept, task: str) -> dict[str, Any]:
    """Areas, gains over the plain run, costs and rises of the old loss relative to the tuned plain run's."""
    seeds = range(TASKS[task].seeds)
    areas: dict[str, list[float]] = {row: [] for row in ROWS}
    rises: dict[str, list[float]] = {row: [] for row in ROWS}
    reached: dict[str, list[float]] = {row: [] for row in ROWS}
    costs = {row: statistics.fmean(kept.done[f"{task} {s} {w} {TASKS[task].lrs[0]:g}"]["ge"] for s in seeds)
             for row, w in {**{w: w for w in WAYS}, ROWS[5]: "plain", ROWS[6]: "replay"}.items()}  # fmt: skip
    for seed in seeds:
        found = {row: points(kept, task, seed, row) for row in ROWS}
        top = min(max(p["test/new_acc"] for p in of) for of in found.values())
        low = max(min(p["test/new_acc"] for p in of) for of in found.values())
        places = np.linspace(min(low, top), top, 50)
        tuned = max(found["plain"], key=lambda p: p["val/new_acc"])
        before = kept.done[f"{task} {seed} start"]["at"]["0"]["test/old_loss"]
        for row, of in found.items():
            areas[row].append(frontier(of, places))
            close = [p for p in of if p["test/new_acc"] >= tuned["test/new_acc"] - CLOSE]
            best = max(close, key=lambda p: p["test/old_acc"], default=None)
            rise = math.nan if best is None else best["test/old_loss"] - before
            rises[row].append(rise / (tuned["test/old_loss"] - before))
            reached[row].append(where_it_is_best(of, found["plain"], before))
    gains = {row: interval([a - b for a, b in zip(areas[row], areas["plain"], strict=True)]) for row in ROWS}
    return {
        row: {"area": interval(areas[row]), "gain": gains[row], "ge": costs[row], "where best": reached[row],
              "rise": [r for r in rises[row] if math.isfinite(r)], "seeds": len(seeds)}
        for row in ROWS
    }  # fmt: skip


def where_it_is_best(of: list[dict[str, float]], plain: list[dict[str, float]], before: float) -> float:
    """The rise of the old loss in the run that is best on the new task, over the least of a plain run as good there."""
    best = max(of, key=lambda p: p["test/new_acc"])
    as_good = [p for p in plain if p["test/new_acc"] >= best["test/new_acc"]] or [
        max(plain, key=lambda p: p["test/new_acc"])
    ]
    return (best["test/old_loss"] - before) / (min(p["test/old_loss"] for p in as_good) - before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--minutes", type=float, default=math.inf, help="no run is begun after these")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept, end = Kept(RESULTS / "finetune_runs.jsonl"), time.monotonic() + 60 * arguments.minutes
    whole = [task for task in TASKS if make(kept, task, end if task in arguments.tasks else 0.0)]
    found = {"torch": torch.__version__, "tasks": {task: table(kept, task) for task in whole}}
    (RESULTS / "finetune.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
