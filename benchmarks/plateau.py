"""Measure ``plateau`` on a learning rate without a schedule, against no rule, torch's rule and a cosine.

    python benchmarks/plateau.py        # two tasks, SGD and AdamW, five seeds: about eight minutes on one core

Every run of a task has the same gradient evaluations, probes counted: that of ``plateau`` is shortened by its budget.
The rates were taken once for all tasks, inside the range that trains them. A finished run is a line in a scratch file.
"""

from __future__ import annotations

import functools
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
from control_runs import METHODS, OPTIMIZERS, PROBE_BUDGET, Cell, Method, Setup, piloted, run
from control_tasks import Problem
from kept import SCRATCH, Kept
from torch.optim.lr_scheduler import ReduceLROnPlateau

from optland.pilot import Plateau

RESULT = Path(__file__).resolve().parent / "results" / "plateau.json"
TASKS = ("digits_cnn", "mnist1d_mlp")
RATES = {"sgd": 0.05, "adamw": 0.0025}
SEEDS = (0, 1, 2, 3, 4)


def _constant(cell: Cell, problem: Problem) -> Setup:
    return Setup(OPTIMIZERS[cell.optimizer](cell, problem.model, cell.lr or 0.0), samples=cell.samples)


def _torch(cell: Cell, problem: Problem) -> Setup:
    setup = _constant(cell, problem)
    setup.plateau = ReduceLROnPlateau(setup.optimizer)
    return setup


ARMS: dict[str, Method] = {
    "rate left": _constant,
    "plateau": piloted(lambda cell: Plateau(), PROBE_BUDGET),
    "ReduceLROnPlateau": _torch,
    "cosine": METHODS["tuned"],
}


def row(kept: Kept, task: str, optimizer: str, arm: str) -> dict[str, Any]:
    """One arm over the seeds."""
    found = []
    for seed in SEEDS:
        cell = Cell(task, optimizer, arm, seed, lr=RATES[optimizer])
        found.append(kept.of(cell.key, functools.partial(run, cell, ARMS[arm])))
    means = {k: statistics.fmean(f[k] for f in found) for k in ("test_acc", "test_loss", "train_loss", "ge")}
    return {**means, "seeds": [f["test_acc"] for f in found], "dead": sum(f["dead"] for f in found)}


def main() -> int:
    kept = Kept(SCRATCH / "plateau.jsonl")
    cells: dict[str, Any] = {}
    for task in TASKS:
        for optimizer in RATES:
            rows = {arm: row(kept, task, optimizer, arm) for arm in ARMS}
            cells[f"{task}/{optimizer}"] = rows
            print(
                task,
                optimizer,
                {a: f"{r['test_acc']:.1f}, {r['train_loss']:.4f}" for a, r in rows.items()},
                flush=True,
            )
    content = {
        "benchmark": "plateau",
        "machine": {"python": platform.python_version(), "torch": torch.__version__},
        "seeds": list(SEEDS),
        "rates": RATES,
        "cells": cells,
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
