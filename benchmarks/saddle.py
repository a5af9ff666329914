"""Measure which optimizers leave a saddle, at what cost, and their verdict on it.

    python benchmarks/saddle.py                  # into benchmarks/results/saddle.json

Strict saddles and a degenerate one, from starts where the gradient is exactly zero, on the stable ridge, or nearly so;
one negative direction in 2 to 1000 dimensions; 20 seeds; float64. A call is one evaluation of the closure: a product by
differences is two. A run has escaped when its loss is below the saddle's by 0.001 and stays so to the end of its budget
of 400 calls; a *false success* is the verdict "minimum up to tau" at the saddle. Peers: torch's SGD, Adam and LBFGS;
torchzero, pytorch-minimize and psd-optimizer where they are installed, from the same starts, in 10,000 calls and 8 s
(``saddle_peers.py``).

Further parts (``saddle_tasks.py``), chosen by ``--parts``; what was measured is kept, and an interrupted run goes on:

circling     calls to leave saddles that SAM circles, NegativeCurvature(SAM(SGD)) beside SGD
octopus      calls against the number of saddles in a row, 2 to 20, and the fitted growth
healthy      calls that NegativeCurvature adds to healthy training, and bit-identity up to its first look
certificate  200 looks on minibatches at a minimum and at saddles of the full loss: how many end in a move
autoencoder  GE to the final loss of tuned SGD with momentum, around which NegativeCurvature is put
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kept import SCRATCH, Kept
from saddle_circling import circling
from saddle_peers import PEER_SOLVERS, versions
from saddle_tasks import autoencoder, certificate, healthy, octopus
from step_loop import Closure
from torch import Tensor, nn

from optland.optim import SAM
from optland.optim.saddle import (
    CubicNewton,
    NegativeCurvature,
    NoisyGradient,
    PerturbedGradient,
    SaddleFreeNewton,
    TrustRegionNewton,
)

RESULT = Path(__file__).resolve().parent / "results" / "saddle.json"
SEEDS, BUDGET, BELOW = range(20), 400, 1e-3
PEER_BUDGET = 10_000  # some of them take thousands of calls where ours have tens
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
    closure = Closure(optimizer, lambda: f(w))
    escaped_at, looks_at = None, None
    while closure.calls < BUDGET:
        optimizer.step(closure)
        value = float(f(w.detach()))
        if escaped_at is None and value < saddle - BELOW:
            escaped_at, looks_at = closure.calls, getattr(optimizer, "closure_calls", 0)
    end = float(f(w.detach()))
    events = getattr(optimizer, "events", [])
    wrong = any(e.verdict == "minimum up to tau" and e.loss > saddle - BELOW for e in events)
    return {"escaped": end < saddle - BELOW, "calls": escaped_at, "looks": looks_at, "false": wrong}


def escapes(kept: Kept) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for method in METHODS:
        for start in STARTS:
            # The peers draw nothing at random: one seed is all of them.
            seeds = [0] if method in PEERS else list(SEEDS)
            found = [
                kept.of(f"{method} {start} {seed}", functools.partial(run, method, start, seed))
                for seed in seeds
            ]
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


def run_peer(name: str, start: str) -> dict[str, Any]:
    """One run of a package's solver; stopped at the budget of calls, at its own end, or after some seconds."""
    f, at, saddle = STARTS[start]
    return PEER_SOLVERS[name](f, torch.tensor(at, dtype=torch.float64), PEER_BUDGET, saddle - BELOW)


def peers(kept: Kept) -> dict[str, Any]:
    table: dict[str, Any] = {"versions": versions()}
    for name in PEER_SOLVERS:
        table[name] = {
            start: kept.of(f"peer {name} {start}", functools.partial(run_peer, name, start))
            for start in STARTS
        }
        print(
            "peer",
            name,
            {k: (v["escaped"], v["calls"], v["error"]) for k, v in table[name].items()},
            flush=True,
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = Kept(SCRATCH / "saddle.jsonl")
    content: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for part in arguments.parts:
        content |= {
            "benchmark": "saddle",
            "machine": {"python": platform.python_version(), "torch": torch.__version__},
            "seeds": len(SEEDS),
            part: PARTS[part](kept),
        }
        RESULT.write_text(json.dumps(content, indent=1) + "\n")
    return 0


PARTS: dict[str, Callable[[Kept], dict[str, Any]]] = {
    "escapes": escapes,
    "peers": peers,
    "circling": circling,
    "octopus": octopus,
    "healthy": healthy,
    "certificate": certificate,
    "autoencoder": autoencoder,
}


if __name__ == "__main__":
    raise SystemExit(main())
