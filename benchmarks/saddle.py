"""Who leaves a saddle, at what price, and what they say of it.

    python benchmarks/saddle.py                  # into benchmarks/results/saddle.json

Strict saddles and a degenerate one, from starts where the gradient is exactly zero, on the stable ridge, or nearly so;
one negative direction in 2 to 1000 dimensions; 20 seeds; float64. A call is one evaluation of the closure: a product by
differences is two. A run has escaped when its loss is below the saddle's by 0.001 and stays so to the end of its budget
of 400 calls; a *false success* is the verdict "minimum up to tau" at the saddle. Healthy training: digits, 10 epochs of
SGD with momentum, wrapped and bare, the calls that the wrapper adds and whether the weights agree bit for bit until its
first look.

Peers: torch's SGD, Adam and LBFGS, from the same starts.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.optim import SAM
from optland.optim.saddle import (
    CubicNewton,
    NegativeCurvature,
    NoisyGradient,
    PerturbedGradient,
    SaddleFreeNewton,
    TrustRegionNewton,
)
from optland.train import BatchLoader, DataConfig, ModelConfig, build_model, load_data, seed_everything

RESULT = Path(__file__).resolve().parent / "results" / "saddle.json"
SEEDS, BUDGET, BELOW = range(20), 400, 1e-3
PEERS = ("SGD", "Adam", "LBFGS")


def double_well(w: Tensor) -> Tensor:
    return w[0] ** 2 / 2 - w[1] ** 2 / 2 + w[1] ** 4 / 4


def two_factors(w: Tensor) -> Tensor:
    return (w[0] * w[1] - 1) ** 2 / 2


def monkey(w: Tensor) -> Tensor:
    return w[0] ** 3 - 3 * w[0] * w[1] ** 2 + 0.1 * (w[0] ** 2 + w[1] ** 2) ** 2


def in_dimension(d: int) -> Callable[[Tensor], Tensor]:
    h = torch.linspace(0.5, 2.0, d - 1, dtype=torch.float64)
    return lambda w: 0.5 * (h * w[1:] ** 2).sum() - w[0] ** 2 / 2 + w[0] ** 4 / 4


STARTS: dict[str, tuple[Callable[[Tensor], Tensor], list[float], float]] = {
    "stable ridge (1, 0)": (double_well, [1.0, 0.0], 0.0),
    "near it (1, 1e-6)": (double_well, [1.0, 1e-6], 0.0),
    "exact saddle (0, 0)": (double_well, [0.0, 0.0], 0.0),
    "two factors (0, 0)": (two_factors, [0.0, 0.0], 0.5),
    "two factors (1e-4, -1e-4)": (two_factors, [1e-4, -1e-4], 0.5),
    "monkey (1e-3, 1e-3)": (monkey, [1e-3, 1e-3], 0.0),
    **{f"d = {d}": (in_dimension(d), [0.0] * d, 0.0) for d in (2, 10, 100, 1000)},
}


def sgd(p: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(p, 0.02)


METHODS: dict[str, Callable[[list[nn.Parameter], int], Any]] = {
    "SGD": lambda p, s: sgd(p),
    "Adam": lambda p, s: torch.optim.Adam(p, 0.01),
    "LBFGS": lambda p, s: torch.optim.LBFGS(p, max_iter=4),
    "PerturbedGradient": lambda p, s: PerturbedGradient(torch.optim.SGD(p, 0.1), seed=s),
    "NoisyGradient": lambda p, s: NoisyGradient(torch.optim.SGD(p, 0.1), seed=s),
    "NegativeCurvature": lambda p, s: NegativeCurvature(sgd(p), seed=s),
    "NegativeCurvature over SAM": lambda p, s: NegativeCurvature(SAM(sgd(p), rho=1e-3), seed=s),
    "SaddleFreeNewton": lambda p, s: SaddleFreeNewton(p, seed=s),
    "CubicNewton": lambda p, s: CubicNewton(p, seed=s),
    "TrustRegionNewton": lambda p, s: TrustRegionNewton(p, seed=s),
}


def run(method: str, start: str, seed: int) -> dict[str, Any]:
    """One run; calls up to the first loss below the saddle's, of the looks alone and in all."""
    f, at, saddle = STARTS[start]
    w = nn.Parameter(torch.tensor(at, dtype=torch.float64))
    optimizer = METHODS[method]([w], seed)
    calls, escaped_at, looks_at = 0, None, None

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = f(w)
        loss.backward()
        return loss

    while calls < BUDGET:
        optimizer.step(closure)
        value = float(f(w.detach()))
        if escaped_at is None and value < saddle - BELOW:
            escaped_at, looks_at = calls, getattr(optimizer, "closure_calls", 0)
    end = float(f(w.detach()))
    events = getattr(optimizer, "events", [])
    wrong = any(e.verdict == "minimum up to tau" and e.loss > saddle - BELOW for e in events)
    return {"escaped": end < saddle - BELOW, "calls": escaped_at, "looks": looks_at, "false": wrong}


def escapes() -> dict[str, Any]:
    table: dict[str, Any] = {}
    for method in METHODS:
        for start in STARTS:
            # The peers draw nothing at random: one seed is all of them.
            seeds = [0] if method in PEERS else list(SEEDS)
            found = [run(method, start, seed) for seed in seeds]
            calls = [r["calls"] for r in found if r["escaped"] and r["calls"] is not None]
            looks = [r["looks"] for r in found if r["escaped"] and r["looks"] is not None]
            table.setdefault(method, {})[start] = {
                "escaped": statistics.fmean(r["escaped"] for r in found),
                "calls": statistics.median(calls) if calls else None,
                "most": max(calls) if calls else None,
                "looks": max(looks) if looks else None,
                "false": sum(r["false"] for r in found),
            }
        row = table[method]
        print(
            f"{method:<28}" + "  ".join(f"{v['escaped']:4.0%}/{v['calls'] or '-'}" for v in row.values()),
            flush=True,
        )
    return table


def healthy(seed: int, wrap: bool) -> tuple[list[Tensor], int, int, int]:
    """Weights after each step, calls of the base, calls of looks, and the step of the first look."""
    seed_everything(seed)
    data = load_data(DataConfig(name="digits"))
    model = build_model(ModelConfig(name="cnn", width=8), data.image_shape, data.num_classes)
    optimizer: Any = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    if wrap:
        optimizer = NegativeCurvature(optimizer, model=model, seed=seed)
    weights = []
    for x, y in BatchLoader([data.normalise(data.train_x), data.train_y], 64, epochs=10, seed=seed):

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]).clone())
    events = getattr(optimizer, "events", [])
    return (
        weights,
        len(weights),
        getattr(optimizer, "closure_calls", 0),
        events[0].step if events else len(weights) + 1,
    )


def healthy_rows() -> list[dict[str, Any]]:
    rows = []
    for seed in range(3):
        bare, calls, _, _ = healthy(seed, wrap=False)
        wrapped, _, extra, first = healthy(seed, wrap=True)
        same = all(torch.equal(a, b) for a, b in zip(bare[: first - 1], wrapped[: first - 1], strict=True))
        rows.append(
            {
                "calls": calls,
                "extra": extra,
                "share": extra / calls,
                "first look": first,
                "same until it": same,
            }
        )
        print("healthy", rows[-1], flush=True)
    return rows


def main() -> int:
    torch.set_num_threads(1)
    machine = {"python": platform.python_version(), "torch": torch.__version__, "argv": sys.argv[1:]}
    content = {
        "benchmark": "saddle",
        "machine": machine,
        "seeds": len(SEEDS),
        "escapes": escapes(),
        "healthy": healthy_rows(),
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
