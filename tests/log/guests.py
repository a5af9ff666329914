"""A wandb run of a user's, offline, and its rows as wandb's own reader has them; and a small training run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.optim import SAM
from optland.pilot import Pilot

LEET = [sys.executable, "-m", "wandb", "leet"]


def records(folder: Path | str) -> list[dict[str, Any]]:
    """Everything in the only run below a folder, in order."""
    (run,) = {file.parent for file in Path(folder).rglob("*.wandb")}
    command = [*LEET, "inspect", "--json", str(run)]
    said = subprocess.run(command, cwd=run, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in said.splitlines()]


def history(folder: Path | str) -> list[dict[str, Any]]:
    """The rows of the run, without wandb's clock."""
    rows = [record["history"]["item"] for record in records(folder) if record["type"] == "history"]
    return [{k: v for k, v in row.items() if k not in ("_runtime", "_timestamp")} for row in rows]


def metrics(folder: Path | str) -> dict[str, dict[str, Any]]:
    """What is said of each key or pattern."""
    said = [record["metric"] for record in records(folder) if record["type"] == "metric"]
    return {metric.get("name") or metric["glob_name"]: metric for metric in said}


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def trained(steps: int = 20, *, after: Any = None, log: Any = None, **options: Any) -> Tensor:
    """Train a small net under SAM and a pilot; ``after(step, loss)`` is the user's own logging. Returns its weights."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05, model=model)
    settings = {"mode": "monitor", "log_every": 1, "budget": 0.5, "total_steps": steps, **options}
    with Pilot(optimizer, model, loss_fn, log=log, **settings) as pilot:
        for step in range(1, steps + 1):
            x = torch.randn(8, 4)
            batch = x, (x[:, 0] > 0).long()

            def closure(batch: Any = batch) -> Tensor:
                optimizer.zero_grad()
                loss = loss_fn(model, batch)
                loss.backward()
                return loss

            loss = optimizer.step(closure)
            pilot.after_step(batch, loss)
            if after is not None:
                after(step, float(loss.detach()))
    return torch.cat([p.detach().flatten() for p in model.parameters()])
