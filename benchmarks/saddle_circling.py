"""The part ``circling`` of ``benchmarks/saddle.py``: saddles that SAM circles, and which methods leave them.

SGD at a rate of 0.05 leaves each of these saddles by itself, SAM around it does not: within rho its step leads back.
Calls of the closure, both passes and all looks included, until the loss has gone ``half`` of the way down to the
minimum, and, stricter, until it is ``first`` 0.001 below the saddle's; the bar is 4 times SGD's from the same start.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from kept import Kept
from step_loop import Closure
from torch import Tensor, nn

from optland.optim import SAM
from optland.optim.saddle import NegativeCurvature

__all__ = ["circling"]

SEEDS, LR, RHOS, STARTS, TIMES = range(20), 0.05, (0.01, 0.03, 0.1), (1e-6, 1e-3), 4
FIRST = 1e-3
MOST_OF_SGD = 5000


def wells(w: Tensor) -> Tensor:
    return (w**4 - w**2).sum()


def ridge(w: Tensor) -> Tensor:
    return w[0] ** 2 - w[1] ** 2 + w[1] ** 4


def one_of_many(w: Tensor) -> Tensor:
    h = torch.linspace(0.5, 2.0, len(w) - 1, dtype=w.dtype)
    return 0.5 * (h * w[1:] ** 2).sum() - w[0] ** 2 / 2 + w[0] ** 4 / 4


def factors(w: Tensor) -> Tensor:
    """|u v' - M|^2 / 2 - |M|^2 / 2 with M of one singular value 1: the origin is a saddle with two directions off."""
    u, v = w[: len(w) // 2], w[len(w) // 2 :]
    return 0.5 * (u.square().sum() * v.square().sum()) - u[0] * v[0]


SURFACES: dict[str, tuple[Callable[[Tensor], Tensor], int, float]] = {
    **{f"sum x^4 - x^2, d = {d}": (wells, d, d / 4) for d in (2, 10, 50)},
    "x^2 - y^2 + y^4": (ridge, 2, 0.25),
    **{f"one direction of {d}": (one_of_many, d, 0.25) for d in (10, 50)},
    "u v' of rank 1, d = 10": (factors, 10, 0.5),
}


def leave(surface: str, start: float, rho: float | None, seed: int) -> dict[str, Any]:
    """Calls to both marks, None where the budget ended before; ``rho`` None is plain SGD."""
    f, d, depth = SURFACES[surface]
    draw = torch.Generator().manual_seed(seed)
    w = nn.Parameter(start * torch.randn(d, generator=draw, dtype=torch.float64))
    optimizer: Any = torch.optim.SGD([w], LR)
    if rho is not None:
        optimizer = NegativeCurvature(SAM(optimizer, rho=rho), seed=seed)
    closure, first = Closure(optimizer, lambda: f(w)), None
    while closure.calls < MOST_OF_SGD:
        optimizer.step(closure)
        value = float(f(w.detach()))
        if first is None and value < -FIRST:
            first = closure.calls
        if value < -depth / 2:
            return {"first": first, "half": closure.calls}
    return {"first": first, "half": None}


def summary(found: list[dict[str, Any]], plain: list[dict[str, Any]], mark: str) -> dict[str, Any]:
    ours, theirs = [r[mark] for r in found], [r[mark] for r in plain]
    within = [a is not None and b is not None and a <= TIMES * b for a, b in zip(ours, theirs, strict=True)]
    reached = [c for c in ours if c is not None]
    return {
        "sgd_median": statistics.median(theirs), "sgd_most": max(theirs),
        "median": statistics.median(reached) if reached else None, "most": max(reached) if reached else None,
        "left": len(reached) / len(ours), "within": sum(within) / len(within),
    }  # fmt: skip


def circling(kept: Kept) -> dict[str, Any]:
    table: dict[str, Any] = {"lr": LR, "times": TIMES, "first": FIRST, "cells": {}}
    for surface in SURFACES:
        for start in STARTS:

            def runs(rho: float | None, at: str = surface, start: float = start) -> list[dict[str, Any]]:
                return [
                    kept.of(f"circling {at} {start} {rho} {s}", functools.partial(leave, at, start, rho, s))
                    for s in SEEDS
                ]

            plain = runs(None)
            for rho in RHOS:
                found = runs(rho)
                cell = {mark: summary(found, plain, mark) for mark in ("half", "first")}
                table["cells"][f"{surface}, start {start:g}, rho {rho:g}"] = cell
                print("circling", surface, start, rho, cell, flush=True)
    for mark in ("half", "first"):
        table[f"within_{mark}"] = min(cell[mark]["within"] for cell in table["cells"].values())
    return table
