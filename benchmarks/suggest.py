"""Measure the distance of ``suggest_lr`` from the best of nine learning rates.

    python benchmarks/suggest.py                  # all tasks of benchmarks/control.py, a minute

The searched rates come from the kept runs of benchmarks/control.py: clean validation, at least three seeds per rate.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from control_runs import base_optimizer
from control_tasks import TASKS, prepare

from optland.pilot import suggest_lr
from optland.train import BatchLoader

RESULTS = Path(__file__).resolve().parent / "results"
SEEDS = (20, 21, 22)


def searched() -> dict[tuple[str, str], float]:
    """The best of nine rates for each task and optimizer."""
    losses: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for group in ("development", "report", "edge"):
        for line in (RESULTS / f"control_{group}_runs.jsonl").read_text().splitlines():
            run = json.loads(line)
            cell = dict(part.split("=") for part in run["key"].split("/"))
            plain = cell["steps"] == cell["batch"] == "None" and cell["label_noise"] == "0"
            if cell["method"] == "tuned" and plain and cell["optimizer"] != "sam":
                loss = math.inf if run["dead"] else run["val_loss"]
                losses[cell["task"], cell["optimizer"]][float(cell["lr"])].append(loss)
    means = {
        key: {lr: statistics.fmean(found) for lr, found in rates.items() if len(found) >= 3}
        for key, rates in losses.items()
    }
    return {key: min(rates, key=lambda lr, r=rates: r[lr]) for key, rates in means.items() if rates}  # type: ignore[misc]


def suggested(task: str, optimizer: str) -> list[dict[str, Any]]:
    """What is suggested for three initialisations, from a rate of 1."""
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        problem = prepare(TASKS[task], seed=seed)
        made = base_optimizer(optimizer, problem.model, 1.0)
        loader = BatchLoader(problem.train, TASKS[task].batch, epochs=1, seed=seed)
        rate = suggest_lr(problem.model, problem.loss_fn, loader, made, seed=seed)
        found.append({"value": rate.value, "error": rate.error, "converged": rate.converged})
    return found


def main() -> int:
    torch.set_num_threads(1)
    rows = []
    for (task, optimizer), best in sorted(searched().items()):
        found = suggested(task, optimizer)
        apart = [abs(math.log(f["value"] / best)) for f in found]
        row = {
            "task": task,
            "group": TASKS[task].group,
            "optimizer": optimizer,
            "searched": best,
            "suggested": found,
            "factor_apart": math.exp(statistics.median(apart)),
            "converged": all(f["converged"] for f in found),
        }
        rows.append(row)
        print(
            f"{task} {optimizer}: searched {best:g}, suggested {found[0]['value']:.3g}, "
            f"{row['factor_apart']:.1f} times apart"
        )
    machine = {"python": platform.python_version(), "torch": torch.__version__}
    (RESULTS / "suggest.json").write_text(
        json.dumps({"benchmark": "suggest", "machine": machine, "rows": rows}, indent=1) + "\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
