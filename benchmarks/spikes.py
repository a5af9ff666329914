"""Measure ``spike_guard`` on runs with twenty corrupt batches, against the final losses of clean runs.

    python benchmarks/spikes.py                       # two tasks, SGD and AdamW, five paired seeds, about five minutes
    python benchmarks/spikes.py --trial adam_guard    # spikes that nobody made, under Adam: see spikes_adam.py

The same seed gives the same initial weights and the same batches to every run: clean; clean under ``spike_guard``; with
20 of its batches corrupted (labels shuffled, inputs times 1e4, a NaN among the inputs, in turn); with the same
corruption under ``spike_guard``; and clean without the steps of those 20 batches, the most that a guard can do. Corrupt
steps are drawn from the part of the run after step 40. The loss is that of the whole clean training set, and of the
validation set, after the last step. A diverged run counts as infinite. Nothing is left out.

A corrupt batch that got through may be harmless: scaled inputs that the net is right about have a loss of exactly zero
and no gradient. Those are counted apart. A finished run is a line in a scratch file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import random
import statistics
from pathlib import Path
from typing import Any

import torch
from kept import SCRATCH, Kept
from spikes_adam import TASKS as NETS
from spikes_adam import adam_guard_trial
from torch import Tensor, nn
from torch.nn import functional as F

from optland.pilot import Pilot
from optland.train import BatchLoader, DataConfig, ModelConfig, build_model, load_data

RESULT = Path(__file__).parent / "results" / "spikes.json"
SEEDS = (0, 1, 2, 3, 4)
TASKS = {"digits": (400, 64), "mnist1d": (600, 64)}
RATES = {"sgd": 0.05, "adamw": 0.003}
CORRUPT, FIRST = 20, 41
KINDS = ("labels", "scale", "nan")
BIG = 1e4


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def corrupted(batch: Any, kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x, y = batch[0].clone(), batch[1]
    if kind == "labels":
        return x, y[torch.randperm(len(y), generator=generator)]
    if kind == "scale":
        return x * BIG, y
    x.view(-1)[0] = math.nan
    return x, y


def run(task: str, base: str, seed: int, *, corrupt: bool, guard: bool, drop: bool = False) -> dict[str, Any]:
    steps, size = TASKS[task]
    data = load_data(DataConfig(name=task))
    x, val = data.normalise(data.train_x), data.normalise(data.val_x)
    torch.manual_seed(seed)
    model = build_model(ModelConfig("cnn", width=8), data.image_shape, data.num_classes)
    kind: Any = torch.optim.SGD if base == "sgd" else torch.optim.AdamW
    options = {"momentum": 0.9} if base == "sgd" else {}
    optimizer = kind(model.parameters(), lr=RATES[base], **options)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loader = BatchLoader([x, data.train_y], size, epochs=1 + steps * size // len(x), seed=seed)
    # Without the guard the loop is the plain one: mode off has no guard of any kind.
    pilot = Pilot(
        optimizer,
        model,
        cross_entropy,
        policies=["spike_guard"],
        mode="control" if guard else "off",
        budget=0.0,
    )
    chosen = sorted(random.Random(seed).sample(range(FIRST, steps + 1), CORRUPT))
    bad = chosen if corrupt else []
    generator, through, skipped = torch.Generator().manual_seed(seed), [], []
    for at, batch in enumerate(itertools.islice(loader, steps), start=1):
        seen = corrupted(batch, KINDS[bad.index(at) % 3], generator) if at in bad else batch
        optimizer.zero_grad()
        loss = cross_entropy(model, seen)
        loss.backward()
        lost = pilot.lost
        if not (drop and at in chosen):
            optimizer.step()
        scheduler.step()
        if at in bad and float(loss.detach()) == 0.0:
            through.append(at)
        pilot.after_step(seen, loss)
        if pilot.lost > lost:
            skipped.append(at)
    with torch.no_grad():
        losses = [float(cross_entropy(model, pair)) for pair in ((x, data.train_y), (val, data.val_y))]
    return {
        "train_loss": losses[0] if math.isfinite(losses[0]) else None,
        "val_loss": losses[1] if math.isfinite(losses[1]) else None,
        "corrupt_skipped": len(set(skipped) & set(bad)),
        "corrupt_harmless": len(set(through) - set(skipped)),
        "clean_skipped": len(set(skipped) - set(bad)),
        "cuts": sum(d.actuator == "lr_factor" and d.new < d.old for d in pilot.decisions),
        "rewinds": sum(d.actuator == "rewind" for d in pilot.decisions),
    }


def median(runs: list[dict[str, Any]], key: str) -> float | None:
    found = statistics.median(math.inf if r[key] is None else r[key] for r in runs)
    return found if math.isfinite(found) else None


def inside(runs: list[dict[str, Any]], clean: list[dict[str, Any]], key: str) -> bool:
    """Whether the median lies within the range of the clean runs; lower than all of them is no failure."""
    middle = median(runs, key)
    return middle is not None and middle <= max(math.inf if r[key] is None else r[key] for r in clean)


ARMS: dict[str, dict[str, bool]] = {
    "clean": {"corrupt": False, "guard": False},
    "clean_guarded": {"corrupt": False, "guard": True},
    "clean_dropped": {"corrupt": False, "guard": False, "drop": True},
    "corrupt": {"corrupt": True, "guard": False},
    "corrupt_guarded": {"corrupt": True, "guard": True},
}


def cell(kept: Kept, task: str, base: str) -> dict[str, Any]:
    def of(arm: str, seed: int) -> dict[str, Any]:
        return kept.of(
            f"{task} {base} {arm} {seed}", lambda: {"seed": seed, **run(task, base, seed, **ARMS[arm])}
        )

    runs = {arm: [of(arm, seed) for seed in SEEDS] for arm in ARMS}
    medians = {arm: {key: median(of, key) for key in ("train_loss", "val_loss")} for arm, of in runs.items()}
    verdict = {key: inside(runs["corrupt_guarded"], runs["clean"], key) for key in ("train_loss", "val_loss")}
    return {"task": task, "base": base, "medians": medians, "inside_clean_range": verdict, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trial", choices=["adam_guard"])
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS), help="of the trial")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="of the trial: no run is begun after these"
    )
    arguments = parser.parse_args()
    if arguments.trial:
        adam_guard_trial(arguments.nets, arguments.minutes)
        return
    torch.set_num_threads(1)
    kept, cells = Kept(SCRATCH / "spikes.jsonl"), []
    for task in TASKS:
        for base in RATES:
            cells.append(cell(kept, task, base))
            found = cells[-1]
            print(task, base, found["inside_clean_range"], json.dumps(found["medians"]), flush=True)
    result = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seeds": list(SEEDS),
        "corrupt_batches": CORRUPT,
        "rates": RATES,
        "steps_and_batch": TASKS,
        "cells": cells,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
