"""Barriers between independently trained nets: on the line, on a trained curve, and after alignment.

    python benchmarks/connectivity.py            # into benchmarks/results/connectivity.json

Three pairs of seeds each of a CNN without normalisation on digits and of a ResNet-8 with BatchNorm on 10,000 of
Fashion-MNIST's images, and one pair of a 2-layer GPT on text. Bars: the curve's barrier is at most a tenth of the
line's, and alignment lowers the line's in every pair of MLPs and CNNs. Barriers are over the larger end, on 2000
training samples (256 windows of text); BatchNorm statistics are taken anew at every point.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from control_tasks import TASKS, Problem, Task, prepare
from torch import nn

from optland.landscape import align, connect, linear_path
from optland.objective import Objective
from optland.train import seed_everything

RESULT = Path(__file__).resolve().parent / "results" / "connectivity.json"


@dataclass(frozen=True)
class Case:
    """A task, how many pairs, and how long its curves are trained."""

    task: Task
    pairs: int
    steps: int  # of training a net
    lr: float
    curve_steps: int
    curve_lr: float


def resnet() -> Task:
    settings = {
        "data": {"name": "fashion_mnist", "subset": 10_000}, "halved": True,
        "model": {"name": "resnet", "depth": 8, "width": 8},
    }  # fmt: skip
    return Task(
        "Fashion-MNIST 10k at 14 x 14, ResNet-8 with BatchNorm", "report", "images", 400, settings=settings
    )


CASES = {
    "digits_cnn": Case(TASKS["digits_cnn"], 3, 400, 0.05, 400, 0.005),
    "mnist1d_mlp": Case(TASKS["mnist1d_mlp"], 3, 800, 0.1, 400, 0.005),
    "fashion_resnet": Case(resnet(), 3, 400, 0.1, 300, 0.005),
    "text_gpt": Case(TASKS["text_gpt"], 1, 400, 0.3, 300, 0.003),
}


def trained(case: Case, seed: int) -> Problem:
    """A net after SGD with momentum and a linear decay."""
    seed_everything(seed)
    problem = prepare(case.task)
    optimizer = torch.optim.SGD(problem.model.parameters(), case.lr, momentum=0.9)
    for step, batch in zip(range(case.steps), batches(problem, case.task.batch, seed), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = case.lr * (1 - step / case.steps)
        optimizer.zero_grad()
        problem.loss_fn(problem.model, batch).backward()
        nn.utils.clip_grad_norm_(problem.model.parameters(), 1.0)
        optimizer.step()
    problem.model.zero_grad(set_to_none=True)
    return problem


def batches(problem: Problem, size: int, seed: int) -> Any:
    """Endless random batches."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(problem.train[0]), generator=generator)
        for i in range(0, len(order) - size + 1, size):
            yield tuple(t[order[i : i + size]] for t in problem.train)


def pair(case: Case, index: int) -> dict[str, Any]:
    """Barriers between two nets of their own seeds."""
    first, second = trained(case, 2 * index), trained(case, 2 * index + 1)
    n = 256 if case.task.kind == "text" else 2000
    part = [tuple(t[i : i + 250] for t in first.train) for i in range(0, min(n, len(first.train[0])), 250)]
    objective = Objective(first.model, first.loss_fn, part, data="training")
    source = batches(first, case.task.batch, 100 + index)
    training = [next(source) for _ in range(case.curve_steps)]
    found = connect(
        objective,
        second.model,
        num_steps=case.curve_steps,
        lr=case.curve_lr,
        batches=training,
        seed=index,
        num_points=31,
    )
    assert found.curve is not None
    row = {
        "ends": list(found.linear.ends), "linear": found.linear.above, "curve": found.curve.above,
        "share": found.remaining, "entezari": found.linear.entezari, "frankle": found.linear.frankle,
        "ge": found.cost_ge,
    }  # fmt: skip
    if case.task.kind == "images":
        aligned = align(first.model, second.model, first.train[0][:1])
        row["aligned"] = linear_path(objective, aligned.state).above
    return row


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[str, Any] = {}
    for name in arguments.cases:
        case = CASES[name]
        rows = [pair(case, index) for index in range(case.pairs)]
        table[name] = {"title": case.task.title, "pairs": rows}
        for row in rows:
            print(name, {k: round(v, 4) for k, v in row.items() if isinstance(v, float)}, flush=True)
    rows = [row for case in table.values() for row in case["pairs"]]
    lowered = [row["aligned"] < row["linear"] for row in rows if "aligned" in row]
    bars = {
        "largest share of the linear barrier left by the curve (bar 0.1)": max(row["share"] for row in rows),
        "pairs whose linear barrier alignment lowers": f"{sum(lowered)} of {len(lowered)}",
    }
    print(bars)
    machine = {"python": platform.python_version(), "torch": torch.__version__}
    content = {"benchmark": "connectivity", "machine": machine, "table": table, "bars": bars}
    arguments.result.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
