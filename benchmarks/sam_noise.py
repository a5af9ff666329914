"""SAM in its own regime: wrong labels, trained until they are learnt, and no clean label anywhere but in the test.

    python benchmarks/sam_noise.py --minutes 60             # goes on where it was; digits first
    python benchmarks/sam_noise.py --tasks digits
    python benchmarks/sam_noise.py --table                  # only make the result file from what is there

40 % of the labels are wrong, in training and in validation (4/9 of them are drawn anew from all ten classes). 60 epochs
of SGD with momentum, batch 64, 5 % warm-up, cosine; SAM with an eps for the whole batch, for each 8 of its samples
(m = 8) and, on digits, for each sample (m = 1); and SGD of 120 epochs, which is what SAM costs. Rates and radii are
chosen on seeds of their own by the noisy validation accuracy of the epoch at which early stopping would end: the rate
of SGD, each SAM's radius at that rate, and the rate of the longer SGD. Reported on fresh seeds, each with wrong labels
of its own: clean test accuracy of the last epoch, and of the epoch of the best noisy validation.

The m-sharpness step takes the gradients of all micro-batches at once by ``torch.func``; a test holds it to the
library's own micro-batches. A finished run is a line of ``benchmarks/results/sam_noise_runs.jsonl``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from kept import Kept
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.functional import avg_pool2d

from optland.train import (
    BatchLoader,
    DataConfig,
    ModelConfig,
    build_model,
    evaluate,
    load_data,
    seed_everything,
)
from optland.train.data.splits import add_label_noise
from optland.train.experiments.seed_differences import best_setting, paired_gain
from optland.train.loops.schedule import schedule_by_name

RESULTS = Path(__file__).resolve().parent / "results"
RUNS, RESULT = RESULTS / "sam_noise_runs.jsonl", RESULTS / "sam_noise.json"
BATCH, EPOCHS, WRONG = 64, 60, 0.4
REDRAWN = WRONG / 0.9  # a tenth of the labels that are drawn anew comes out right
LRS, RHOS = (0.02, 0.05, 0.1), (0.05, 0.1, 0.2, 0.4)
REPORT_SEEDS = (10, 11, 12, 13, 14)
SGD, LONGER = "sgd", "sgd, 120 epochs"
SAMS = {"sam, whole batch": BATCH, "sam, m = 8": 8, "sam, m = 1": 1}
PUBLISHED = (
    "Foret et al. 2021 (arXiv:2010.01412), ResNet-32, CIFAR-10, 40 % noise: 93.4 % with SAM, 68.8 % with SGD"
)


@dataclass(frozen=True)
class Task:
    """Data and net; ``methods`` beside the base, and the seeds that settings are chosen on."""

    title: str
    data: DataConfig
    net: ModelConfig
    methods: tuple[str, ...]
    choice_seeds: tuple[int, ...]
    halved: bool = False


TASKS = {
    "digits": Task("digits", DataConfig("digits"), ModelConfig("cnn", width=16), (LONGER, *SAMS), (0, 1)),
    "fashion": Task(
        "Fashion 10k at 14 x 14", DataConfig("fashion_mnist", subset=10_000), ModelConfig("cnn", width=8),
        (LONGER, "sam, whole batch", "sam, m = 8"), (0,), halved=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One run."""

    task: str
    method: str
    lr: float
    rho: float | None
    seed: int
    epochs: int = EPOCHS

    @property
    def key(self) -> str:
        rho = "-" if self.rho is None else f"{self.rho:g}"
        return f"{self.task}/{self.method}/lr{self.lr:g}/rho{rho}/epochs{self.epochs}/seed{self.seed}"


@dataclass(frozen=True)
class Noisy:
    """Images with wrong labels in training and validation; those of the test are right."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    right: Tensor  # the training labels as they were


@functools.lru_cache(maxsize=2)
def load(task: str, seed: int) -> Noisy:
    """The data of a task; each seed has wrong labels of its own."""
    chosen = TASKS[task]
    data = load_data(chosen.data)
    x = {split: data.normalise(getattr(data, f"{split}_x")) for split in ("train", "val", "test")}
    x = {split: avg_pool2d(images, 2) if chosen.halved else images for split, images in x.items()}
    train_y, _ = add_label_noise(data.train_y, REDRAWN, data.num_classes, 2 * seed)
    val_y, _ = add_label_noise(data.val_y, REDRAWN, data.num_classes, 2 * seed + 1)
    return Noisy((x["train"], train_y), (x["val"], val_y), (x["test"], data.test_y), data.train_y)


def sam_gradient(model: nn.Module, batch: tuple[Tensor, Tensor], m: int, rho: float) -> dict[str, Tensor]:
    """The mean over micro-batches of m samples of grad L_i(w + rho g_i / |g_i|); m = n is SAM, m = 1 is 1-SAM.

    The net may have no buffers: they would be those of a micro-batch.

    Raises:
        ValueError: The batch is not a whole number of micro-batches.
    """
    x, y = batch
    m = min(m, len(y))
    if len(y) % m:
        raise ValueError(f"m {m} does not go into a batch of {len(y)}; use a divisor of it")
    weights = {name: p.detach() for name, p in model.named_parameters()}
    parts = x.unflatten(0, (-1, m)), y.unflatten(0, (-1, m))

    def loss(w: dict[str, Tensor], xs: Tensor, ys: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, w, (xs,)), ys)

    g = vmap(grad(loss), in_dims=(None, 0, 0))(weights, *parts)
    length = torch.stack([t.flatten(1).square().sum(1) for t in g.values()]).sum(0).sqrt()
    scale = torch.where(length > 0, rho / length, 0.0)
    there = {name: w + scale.view(-1, *[1] * w.ndim) * g[name] for name, w in weights.items()}
    h = vmap(grad(loss), in_dims=(0, 0, 0))(there, *parts)
    return {name: t.mean(0) for name, t in h.items()}


def plain_gradient(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    loss = F.cross_entropy(model(batch[0]), batch[1])
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def gradient_of(job: Job) -> Callable[[nn.Module, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """What the base steps with."""
    if job.rho is None:
        return plain_gradient
    m, rho = SAMS[job.method], job.rho
    return lambda model, batch: sam_gradient(model, batch, m, rho)


def run(job: Job) -> dict[str, Any]:
    """Train once; validation is looked at after every epoch, the test with the last weights and those of its best."""
    began = time.process_time()
    data, task = load(job.task, job.seed), TASKS[job.task]
    seed_everything(job.seed)
    c, h, w = data.train[0].shape[1:]
    model = build_model(task.net, (c, h, w), 10)
    loader = BatchLoader(data.train, BATCH, epochs=job.epochs, seed=job.seed)
    optimizer = torch.optim.SGD(model.parameters(), job.lr, momentum=0.9)
    scheduler = schedule_by_name("cosine", optimizer, loader)
    assert scheduler is not None
    gradient, ge = gradient_of(job), 0
    best, kept, stopped = (-1.0, 0.0), {}, 0
    for batch in loader:
        found = gradient(model, (batch[0], batch[1]))
        for name, p in model.named_parameters():
            p.grad = found[name]
        optimizer.step()
        scheduler.step()
        ge += len(batch[1]) * (1 if job.rho is None else 2)
        if loader.at_epoch_end:
            val = evaluate(model, *data.val)
            score = (val["acc"], -val["loss"])
            if score > best:
                best, stopped = score, loader.epoch
                kept = {name: value.clone() for name, value in model.state_dict().items()}
    last, learnt = evaluate(model, *data.test)["acc"], evaluate(model, *data.train)["acc"]
    right = evaluate(model, data.train[0], data.right)["acc"]
    model.load_state_dict(kept)
    return {
        "key": job.key, "last": last, "stopped": evaluate(model, *data.test)["acc"], "val": best[0], "epoch": stopped,
        "noisy train": learnt, "right train": right, "ge": ge, "seconds": round(time.process_time() - began, 2),
    }  # fmt: skip


# All runs -------------------------------------------------------------------------------------------


class OutOfTime(Exception):
    """The minutes are over; what is finished is kept."""


@dataclass
class Runs:
    """Makes runs and remembers them."""

    kept: Kept
    end: float

    def of(self, job: Job) -> dict[str, Any]:
        if job.key not in self.kept.done:
            if time.monotonic() >= self.end:
                raise OutOfTime
            self.kept.add(found := run(job))
            print(
                time.strftime("%H:%M:%S"),
                f"{job.key}: {found['last']:.1f} %, {found['seconds']:.0f} s",
                flush=True,
            )
        return self.kept.done[job.key]

    def best(self, jobs: Sequence[Job], seeds: Sequence[int]) -> Job:
        """The setting of the best noisy validation."""
        return jobs[
            best_setting({k: [self.of(replace(j, seed=s))["val"] for s in seeds] for k, j in enumerate(jobs)})
        ]


def choose(runs: Runs, name: str) -> dict[str, Job]:
    """The setting of every row of a task."""
    task = TASKS[name]
    chosen = {SGD: runs.best([Job(name, SGD, lr, None, 0) for lr in LRS], task.choice_seeds)}
    for method in task.methods:
        if method == LONGER:
            jobs = [Job(name, method, lr, None, 0, 2 * EPOCHS) for lr in LRS]
        else:
            jobs = [Job(name, method, chosen[SGD].lr, rho, 0) for rho in RHOS]
        chosen[method] = runs.best(jobs, task.choice_seeds)
    return chosen


def table(runs: Runs, name: str) -> dict[str, Any]:
    """A task's rows; trains what is missing."""
    chosen = choose(runs, name)
    found = {
        method: [runs.of(replace(job, seed=seed)) for seed in REPORT_SEEDS] for method, job in chosen.items()
    }
    rows = {}
    for method, job in chosen.items():
        row: dict[str, Any] = {"lr": job.lr, "rho": job.rho, "epochs": job.epochs}
        for key in ("last", "stopped", "epoch", "noisy train", "right train", "ge", "seconds"):
            row[key] = statistics.fmean(line[key] for line in found[method])
        for key in ("last", "stopped"):
            for other in (SGD, LONGER):
                gain = paired_gain([f[key] for f in found[method]], [f[key] for f in found[other]])
                row[f"{key} over {other}"] = {"mean": gain.mean, "error": gain.error}
        rows[method] = row
    return {"title": TASKS[name].title, "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    end = time.monotonic() + (0.0 if arguments.table else 60.0 * arguments.minutes)
    runs = Runs(Kept(arguments.runs), end)
    tasks: dict[str, Any] = {}
    for name in TASKS:
        try:
            tasks[name] = table(runs if name in arguments.tasks else replace(runs, end=0.0), name)
        except OutOfTime:
            print(f"{name} is not complete")
    machine = {"python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count()}
    content = {
        "benchmark": "sam_noise", "machine": machine, "tasks": tasks, "published": PUBLISHED,
        "missing": [TASKS[name].title for name in TASKS if name not in tasks], "seeds": REPORT_SEEDS,
    }  # fmt: skip
    arguments.result.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if len(tasks) == len(TASKS) else 75


if __name__ == "__main__":
    raise SystemExit(main())
