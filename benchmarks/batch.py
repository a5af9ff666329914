"""Measure a batch size that follows the noise: the steps that it saves, and its distance from the theory's.

    python benchmarks/batch.py          # two tasks, five seeds, and the noisy quadratic

steps      SGD with momentum on a cosine by samples, at a fixed batch of 32, and under ``noise_batch`` from 32 on at the
           same samples: by the simple noise scale at the default margin of 2 and at 1, by the curvature-weighted one,
           and with the rate left as it is in place of co-scaled; or the norm test in its place. The bar: the fixed
           batch's validation loss in at most 0.6 of its steps and at no more than 1.1 of its samples, probes counted.
tracking   L = sum_i h_i (w_i - t_i)^2 / 2 with t a sample of variance s^2, where the noise scales are known at every
           point: sum h^p s^2 / sum h^p w^2, p = 2 for the simple one and 3 for the curvature-weighted. Plain SGD at a
           constant rate, with room for every probe. The bar: from the first growth until the largest batch is reached,
           the batch within a factor of 2 of it.

A run that has ended is a line in a scratch file, so an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import functools
import json
import math
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from control_tasks import TASKS, Problem, prepare
from kept import SCRATCH, Kept
from torch import Tensor, nn

from optland.pilot import NoiseBatch, Pilot, Proposal
from optland.pilot.history import Reader
from optland.train import BatchLoader, seed_everything

RESULT = Path(__file__).resolve().parent / "results" / "batch.json"
SEEDS = (0, 1, 2, 3, 4)
SMALL, SAMPLES, BUDGET = 32, 64_000, 0.1
RATES = {"mnist1d_cnn": 0.05, "fashion_cnn": 0.03}  # for the small batch, each by one look at three rates
LARGEST = 4096
TRACKED: tuple[tuple[float, Literal["simple", "curvature"]], ...] = (
    (2.0, "simple"),
    (1.0, "simple"),
    (2.0, "curvature"),
    (1.0, "curvature"),
)
THETA = 0.9


def step_of(problem: Problem, optimizer: torch.optim.Optimizer, batch: Any) -> float:
    optimizer.zero_grad()
    loss = problem.loss_fn(problem.model, batch)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def train(task: str, variant: str, seed: int) -> dict[str, Any]:
    """One run; samples are those of steps and of probes."""
    seed_everything(seed)
    problem, policies = prepare(TASKS[task], seed=seed), VARIANTS[variant]()
    optimizer = torch.optim.SGD(problem.model.parameters(), RATES[task], momentum=0.9, weight_decay=5e-4)
    size = len(problem.train[0])
    loader = BatchLoader(problem.train, SMALL, epochs=1 + SAMPLES // size, seed=seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda _: 0.5 * (1 + math.cos(math.pi * min(1.0, loader.samples_served / SAMPLES)))
    )
    pilot = Pilot(
        optimizer, problem.model, problem.loss_fn, policies=policies, budget=BUDGET,
        mode="control" if policies else "off", total_samples=SAMPLES, seed=seed,
    )  # fmt: skip
    sizes = []
    for batch in pilot.batches(loader):
        sizes.append(len(batch[0]))
        pilot.after_step(batch, step_of(problem, optimizer, batch))
        schedule.step()
        if loader.samples_served >= SAMPLES:
            break
    problem.model.eval()
    with torch.no_grad():
        scores = problem.score(problem.model)
    return {
        **scores,
        "steps": len(sizes),
        "samples": sum(sizes) + pilot.budget.probe_ge,
        "largest": max(sizes),
    }


class NormTest(NoiseBatch):
    """The published rule for comparison: B >= tr(Sigma) / (theta^2 |G|^2) at once (Byrd et al. 2012)."""

    def decide(self, history: Reader) -> list[Proposal]:
        found, size = history.new(self.signal), history.setting("batch_size")
        limit = self.max_batch or (self.samples or 0) // 8
        if found is None or size is None or not found.valid:
            return []
        if found.value <= THETA**2 * size or size >= limit:
            return []
        new = min(math.ceil(found.value / THETA**2), limit)
        asked = [Proposal("batch_size", new, "the norm test fails", {self.signal: found.value})]
        return asked + (self._co_scaled(history, new / size, size, found.value) if self.follows else [])


VARIANTS: dict[str, Callable[[], list[NoiseBatch]]] = {
    "fixed": list,
    "noise_batch": lambda: [NoiseBatch()],
    "noise_batch, margin 1": lambda: [NoiseBatch(margin=1.0)],
    "noise_batch, curvature": lambda: [NoiseBatch(scale="curvature")],
    "noise_batch, rate left": lambda: [NoiseBatch(scale_lr=False)],
    "norm test": lambda: [NormTest()],
}


class Position(nn.Module):
    """Weights of the quadratic."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.w = nn.Parameter(3.0 * torch.ones(d))


def track(seed: int, margin: float, scale: Literal["simple", "curvature"]) -> dict[str, Any]:
    """Batch and true noise scale at every step of a noisy quadratic."""
    p = 2 if scale == "simple" else 3
    d, spread, steps = 20, 1.0, 3000
    h = torch.logspace(0, -1, d)
    draw = torch.Generator().manual_seed(seed)
    targets = spread * torch.randn(40_000, d, generator=draw)
    targets -= targets.mean(0)  # the minimum of the whole is at 0, as the formula has it
    model = Position(d)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)

    def loss_fn(net: nn.Module, batch: Any) -> Tensor:
        w: Any = net.w
        found: Tensor = 0.5 * ((w - batch[0]) ** 2 @ h).mean()
        return found

    problem = Problem(model, [targets], loss_fn, lambda net: {}, 0.0)
    loader = BatchLoader(problem.train, 4, epochs=10_000, seed=seed)
    policy = NoiseBatch(margin=margin, max_batch=LARGEST, scale_lr=False, scale=scale)
    pilot = Pilot(optimizer, model, loss_fn, policies=[policy], budget=1.0, total_samples=10**9, seed=seed)
    seen: list[tuple[int, float]] = []
    for batch in pilot.batches(loader):
        w = model.w.detach()
        seen.append((len(batch[0]), float((h**p * spread**2).sum() / (h**p * w**2).sum())))
        pilot.after_step(batch, step_of(problem, optimizer, batch))
        if len(seen) >= steps or seen[-1][0] >= LARGEST:
            break
    grown = next((i for i, (size, _) in enumerate(seen) if size > 4), len(seen) - 1)
    ratios = [size / truth for size, truth in seen[grown:]]
    inside = sum(0.5 <= r <= 2.0 for r in ratios) / len(ratios)
    return {"inside": inside, "ratio": statistics.median(ratios), "end": seen[-1], "grown": grown}


def main() -> int:
    torch.set_num_threads(1)
    kept = Kept(SCRATCH / "batch.jsonl")
    steps: dict[str, Any] = {}
    for task in RATES:
        rows = {
            name: [kept.of(f"{task} {name} {s}", functools.partial(train, task, name, s)) for s in SEEDS]
            for name in VARIANTS
        }
        plain = rows["fixed"]
        steps[task] = {}
        for name, runs in rows.items():
            pairs = list(zip(runs, plain, strict=True))
            steps[task][name] = {
                "val_loss": statistics.fmean(r["val_loss"] for r in runs),
                "test_acc": statistics.fmean(r["test_acc"] for r in runs),
                "steps": statistics.fmean(r["steps"] / p["steps"] for r, p in pairs),
                "samples": statistics.fmean(r["samples"] / p["samples"] for r, p in pairs),
                "largest": max(r["largest"] for r in runs),
                "loss_ratio": [r["val_loss"] / p["val_loss"] for r, p in pairs],
            }
            print(task, name, steps[task][name], flush=True)
    tracking = {
        f"{scale}, margin {m:g}": [
            kept.of(f"quadratic {scale} {m:g} {s}", functools.partial(track, s, m, scale)) for s in SEEDS
        ]
        for m, scale in TRACKED
    }
    print("tracking", tracking)
    content = {
        "benchmark": "batch",
        "machine": {"python": platform.python_version(), "torch": torch.__version__},
        "seeds": len(SEEDS),
        "steps": steps,
        "tracking": tracking,
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
