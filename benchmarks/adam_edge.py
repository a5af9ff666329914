"""Hessian products per look of the eigenvalue in Adam's metric: carried from look to look, or sought anew.

    python benchmarks/adam_edge.py

A digits net under AdamW, looked at after every update or every tenth one, without audits, to a residual of 1 %. The
vector is carried as it was in the coordinates of P^{1/2}, or in those of the weights, or not at all. What is compared
are products, and how far below a cold run the value was; the clock is not read.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from optland import Objective, hessian, lanczos
from optland.curvature import SpectrumTracker, preconditioned
from optland.curvature.operators.preconditioner import preconditioner
from optland.curvature.operators.transforms import in_metric

RESULTS = Path(__file__).parent / "results" / "adam_edge.json"
SETTINGS = ((1e-3, 1), (1e-3, 10), (5e-3, 1), (5e-3, 10))
LOOKS, SAMPLES, BATCH = 60, 256, 64
NEVER = 10**9


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class InWeights(SpectrumTracker):
    """Carries the eigenvector as a direction of weight space, P^{-1/2} y, into the next metric."""

    scale: list[Tensor]

    def _starts(self, H: Any) -> list[list[Tensor]]:
        return [[v / s for v, s in zip(y, self.scale, strict=True)] for y in self._kept]

    def probe(self, H: Any) -> Any:
        found = super().probe(H)
        self._kept = [[v * s for v, s in zip(y, self.scale, strict=True)] for y in self._kept]
        return found


def measured(lr: float, every: int, seed: int) -> dict[str, Any]:
    """Products per look, the first left out, of each way."""
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16.0, dtype=torch.float32), torch.tensor(digits.target)
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    objective = Objective(model, loss_fn, [(x[:SAMPLES], y[:SAMPLES])])
    options: dict[str, Any] = {"ends": "top", "rtol": 1e-2, "audit_every": NEVER, "max_matvecs": 60}
    carried, in_weights = SpectrumTracker(**options), InWeights(**options)
    products: dict[str, list[int]] = {"carried": [], "in_weights": [], "cold": []}
    below = 0.0
    for step in range(1, LOOKS * every + 1):
        i = torch.randint(0, len(x), (BATCH,), generator=draw)
        optimizer.zero_grad()
        loss_fn(model, (x[i], y[i])).backward()
        optimizer.step()
        if step % every:
            continue
        in_weights.scale = [p.rsqrt() for p in preconditioner(optimizer, objective)]
        with hessian(objective) as H:
            one = carried.probe(preconditioned(H, optimizer))
        with hessian(objective) as H:
            other = in_weights.probe(in_metric(H, in_weights.scale))
        with hessian(objective) as H:
            cold = lanczos(preconditioned(H, optimizer), ends="top", rtol=1e-2, max_matvecs=60, seed=step)
        for name, count in (("carried", one), ("in_weights", other), ("cold", cold)):
            products[name].append(count.num_matvecs)
        below = min(below, one.spectrum.top.value / cold.top.value - 1)
    return {
        "lr": lr, "every": every, "seed": seed, "largest_shortfall": -below,
        **{name: fmean(counts[1:]) for name, counts in products.items()},
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    rows = [measured(lr, every, seed) for lr, every in SETTINGS for seed in range(3)]
    for row in rows:
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    RESULTS.write_text(
        json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
