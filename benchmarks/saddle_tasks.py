"""Parts of ``benchmarks/saddle.py`` beyond strict saddles: octopus, healthy training, certificate, autoencoder."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from control_tasks import TASKS, prepare
from kept import Kept
from step_loop import Closure
from torch import Tensor, nn

from optland.objective import Objective
from optland.optim.saddle import NegativeCurvature, PerturbedGradient, Trigger
from optland.problems import Octopus, deep_autoencoder
from optland.train import BatchLoader, DataConfig, load_data, seed_everything

__all__ = ["autoencoder", "certificate", "healthy", "octopus"]

# --- octopus ---------------------------------------------------------------------------------------------------------

SADDLES, OCTOPUS_LR, OCTOPUS_BUDGET, OCTOPUS_SEEDS = (2, 4, 6, 8, 12, 16, 20), 0.1, 100_000, 5
SGD_SADDLES = (2, 3, 4, 5, 6, 8)
LEAVERS: dict[str, Callable[[nn.Parameter, int], Any]] = {
    "PerturbedGradient": lambda w, s: PerturbedGradient(torch.optim.SGD([w], OCTOPUS_LR), seed=s),
    "NegativeCurvature": lambda w, s: NegativeCurvature(torch.optim.SGD([w], OCTOPUS_LR), seed=s),
    "SGD": lambda w, s: torch.optim.SGD([w], OCTOPUS_LR),
}


def swim(method: str, d: int, seed: int) -> dict[str, Any]:
    """Calls until the loss is within 0.1 of the minimum, from the first saddle; SGD from 0.001 beside it."""
    f = Octopus(d)
    w = nn.Parameter(torch.full((d,), 1e-3 if method == "SGD" else 0.0, dtype=torch.float64))
    optimizer = LEAVERS[method](w, seed)
    closure = Closure(optimizer, lambda: f(w))
    while closure.calls < OCTOPUS_BUDGET:
        if float(optimizer.step(closure).detach()) < f.minimum + 0.1:
            return {"calls": closure.calls}
    return {"calls": None}


def line(x: list[float], y: list[float]) -> tuple[float, float]:
    """Slope and R^2 of a straight line."""
    slope, _ = statistics.linear_regression(x, y)
    return slope, statistics.correlation(x, y) ** 2


def octopus(kept: Kept) -> dict[str, Any]:
    table: dict[str, Any] = {"budget": OCTOPUS_BUDGET, "lr": OCTOPUS_LR, "seeds": OCTOPUS_SEEDS}
    for method in LEAVERS:
        rows: dict[int, float | None] = {}
        for d in SGD_SADDLES if method == "SGD" else SADDLES:
            seeds = range(1 if method == "SGD" else OCTOPUS_SEEDS)
            found = [
                kept.of(f"octopus {method} {d} {s}", functools.partial(swim, method, d, s))["calls"]
                for s in seeds
            ]
            rows[d] = None if None in found else statistics.median(found)
        reached = {float(d): float(c) for d, c in rows.items() if c is not None}
        slope, fit = line(list(reached), list(reached.values()))
        rate, exponential = line(list(reached), [math.log(c) for c in reached.values()])
        table[method] = {
            "calls": rows, "calls_per_saddle": slope, "r2_linear": fit,
            "factor_per_saddle": math.exp(rate), "r2_exponential": exponential,
        }  # fmt: skip
        print("octopus", method, table[method], flush=True)
    return table


# --- healthy training ------------------------------------------------------------------------------------------------

HEALTHY = {"digits_cnn": (0.05, 3000), "mnist1d_cnn": (0.05, 1000), "text_gpt": (0.1, 300)}
HEALTHY_SEEDS = 3


def trained(task: str, steps: int, seed: int, *, wrap: bool) -> tuple[list[Tensor], Any]:
    """Weights after each step, and the optimizer."""
    seed_everything(seed)
    problem, lr = prepare(TASKS[task]), HEALTHY[task][0]
    model = problem.model
    optimizer: Any = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    if wrap:
        optimizer = NegativeCurvature(optimizer, model=model, seed=seed)
    batch = TASKS[task].batch
    weights: list[Tensor] = []
    epochs = 1 + steps * batch // len(problem.train[0])
    for one in BatchLoader(problem.train, batch, epochs=epochs, seed=seed):
        optimizer.step(Closure(optimizer, functools.partial(problem.loss_fn, model, one)))
        flat = torch.cat([p.detach().flatten() for p in model.parameters()])
        weights.append(flat.double().sum().unsqueeze(0) if len(weights) % 50 else flat.clone())
        if len(weights) == steps:
            break
    return weights, optimizer


def health(task: str, steps: int, seed: int) -> dict[str, Any]:
    bare, _ = trained(task, steps, seed, wrap=False)
    wrapped, optimizer = trained(task, steps, seed, wrap=True)
    first = optimizer.events[0].step if optimizer.events else steps + 1
    same = all(torch.equal(a, b) for a, b in zip(bare[: first - 1], wrapped[: first - 1], strict=True))
    return {
        "calls": steps, "extra": optimizer.closure_calls, "share": optimizer.closure_calls / steps,
        "looks": len(optimizer.events), "kinds": sorted({e.kind for e in optimizer.events}),
        "first_look": first if optimizer.events else None, "same_until_it": same,
    }  # fmt: skip


def healthy(kept: Kept) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for task, (lr, steps) in HEALTHY.items():
        # The task's own length, and for digits also one in which looks fit into their share.
        for length in sorted({min(steps, TASKS[task].steps), steps}):
            rows = [
                kept.of(f"healthy {task} {length} {s}", functools.partial(health, task, length, s))
                for s in range(HEALTHY_SEEDS if length == TASKS[task].steps else 1)
            ]
            table[f"{task}, {length} steps"] = {
                "lr": lr,
                "runs": rows,
                "worst": max(r["share"] for r in rows),
            }
            print("healthy", task, length, rows, flush=True)
    return table


# --- stochastic certificate ------------------------------------------------------------------------------------------

TRIALS, SAMPLES, BATCH, LOOKED_AT = 200, 4096, 32, 8


def noisy_factors() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear net 6-3-5 on noisy samples of a map of rank 3, so that every minibatch has a loss of its own."""
    draw = torch.Generator().manual_seed(0)
    U, _ = torch.linalg.qr(torch.randn(5, 3, generator=draw, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(6, 3, generator=draw, dtype=torch.float64))
    M = U @ torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)) @ V.T
    x = torch.randn(SAMPLES, 6, generator=draw, dtype=torch.float64)
    y = x @ M.T + torch.randn(SAMPLES, 5, generator=draw, dtype=torch.float64)
    layers = [nn.Linear(6, 3, bias=False), nn.Linear(3, 5, bias=False)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=draw, dtype=torch.float64))
    return model, x, y


def squares(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    found: Tensor = 0.5 * (model(x) - y).square().sum() / len(x)
    return found


def critical(kind: str) -> tuple[nn.Module, Tensor, Tensor]:
    """At a minimum of the loss of all samples, at its saddle of rank 2, or at the origin."""
    model, x, y = noisy_factors()
    params = list(model.parameters())
    if kind == "saddle at the origin":
        with torch.no_grad():
            for p in params:
                p.zero_()
        return model, x, y
    dead = kind == "saddle of rank 2"
    if dead:  # a hidden unit without weights stays without: its gradient is zero
        with torch.no_grad():
            params[0][2].zero_()
            params[1][:, 2].zero_()
    solver = torch.optim.LBFGS(params, max_iter=500, tolerance_grad=1e-12, tolerance_change=0.0,
                               line_search_fn="strong_wolfe")  # fmt: skip
    solver.step(Closure(solver, lambda: squares(model, (x, y))))
    return model, x, y


def trials(kind: str, certified: bool) -> dict[str, Any]:
    model, x, y = critical(kind)
    params = list(model.parameters())
    home = [p.detach().clone() for p in params]
    loss = squares(model, (x, y))
    norm = math.sqrt(sum(float(g.square().sum()) for g in torch.autograd.grad(loss, params)))
    kinds: dict[str, int] = {}
    worse = 0
    for seed in range(TRIALS):
        draw = torch.Generator().manual_seed(seed)
        order = torch.randperm(SAMPLES, generator=draw)
        batches = [(x[i], y[i]) for i in order.split(BATCH)]
        with torch.no_grad():
            for p, h in zip(params, home, strict=True):
                p.copy_(h)
        trigger = Trigger(("every",), every=1, allowance=10**6)
        looked: dict[str, Any] = {}
        if certified:
            looked = {
                "probe": Objective(model, squares, batches[1 : 1 + LOOKED_AT]),
                "check": Objective(model, squares, batches[1 + LOOKED_AT : 1 + 2 * LOOKED_AT]),
            }
        # A rate of zero: the trigger is the only thing that can move the weights.
        optimizer = NegativeCurvature(torch.optim.SGD(params, 0.0), trigger=trigger, seed=seed, **looked)
        closure = Closure(optimizer, functools.partial(squares, model, batches[0]))
        optimizer.step(closure)
        optimizer.step(closure)
        event = optimizer.events[0]
        kinds[event.kind] = kinds.get(event.kind, 0) + 1
        worse += event.kind in ("escape", "kick") and float(squares(model, (x, y)).detach()) > float(
            loss.detach()
        )
    moved = kinds.get("escape", 0) + kinds.get("kick", 0)
    return {"trials": TRIALS, "gradient": norm, "kinds": kinds, "moved": moved / TRIALS,
            "moved_to_a_higher_loss": worse}  # fmt: skip


def certificate(kept: Kept) -> dict[str, Any]:
    table: dict[str, Any] = {"samples": SAMPLES, "batch": BATCH, "batches_looked_at": LOOKED_AT}
    for kind in ("minimum", "saddle of rank 2", "saddle at the origin"):
        for certified in (True, False):
            name = f"{kind}, {'two sets of batches' if certified else 'one batch, no check'}"
            table[name] = kept.of(f"certificate {name}", functools.partial(trials, kind, certified))
            print("certificate", name, table[name], flush=True)
    return table


# --- deep autoencoder ------------------------------------------------------------------------------------------------

# Fixed before any run: initialisation, budget, rates, and how much a look may see.
AE_WIDTHS, AE_GAIN, AE_BATCH, AE_EPOCHS, AE_SEEDS = (64, 32, 8), 1.0, 64, 150, 3
AE_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
AE_ADAM = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
AE_LOOK, AE_SHARE = 512, 0.2


def descend(method: str, lr: float, seed: int) -> dict[str, Any]:
    """(GE, loss of all images) after every epoch; GE in samples, those of looks and of their products with them."""
    x = load_data(DataConfig(name="digits")).train_x.flatten(1)
    objective = deep_autoencoder(x, AE_WIDTHS, gain=AE_GAIN, seed=seed)
    model, loss_fn = objective.model, objective.loss_fn
    draw = torch.Generator().manual_seed(1000 + seed)
    order = torch.randperm(len(x), generator=draw)
    parts: list[Objective] = []
    if method == "Adam":
        optimizer: Any = torch.optim.Adam(model.parameters(), lr)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    if method == "NegativeCurvature":
        parts = [
            Objective(model, loss_fn, list(x[i].split(AE_BATCH)))
            for i in (order[:AE_LOOK], order[AE_LOOK : 2 * AE_LOOK])
        ]
        trigger = Trigger(("gradient", "still", "plateau"), share=AE_SHARE)
        optimizer = NegativeCurvature(optimizer, trigger=trigger, probe=parts[0], check=parts[1], seed=seed)
    start = float(loss_fn(model, x).detach())
    curve: list[tuple[float, float]] = []
    samples = 0
    for _ in range(AE_EPOCHS):
        for i in torch.randperm(len(x), generator=draw).split(AE_BATCH):
            closure = Closure(optimizer, functools.partial(loss_fn, model, x[i]))
            optimizer.step(closure)
            samples += len(i) * closure.calls
        with torch.no_grad():
            loss = float(loss_fn(model, x))
        curve.append((samples + sum(p.cost_ge for p in parts), loss if math.isfinite(loss) else math.inf))
    events = getattr(optimizer, "events", [])
    kinds = {k: sum(e.kind == k for e in events) for k in ("escape", "kick", "rejected", "probe")}
    return {"lr": lr, "seed": seed, "start": start, "final": curve[-1][1], "ge": curve[-1][0], "events": kinds,
            "ge_of_looks": sum(p.cost_ge for p in parts), "curve": curve}  # fmt: skip


def reached(run: dict[str, Any], loss: float) -> float | None:
    """GE of the first epoch's end at or below this loss."""
    return next((ge for ge, at in run["curve"] if at <= loss), None)


def autoencoder(kept: Kept) -> dict[str, Any]:
    def runs(method: str, rates: tuple[float, ...]) -> Iterator[tuple[float, list[dict[str, Any]]]]:
        for lr in rates:
            yield (
                lr,
                [
                    kept.of(f"ae {method} {lr} {s}", functools.partial(descend, method, lr, s))
                    for s in range(AE_SEEDS)
                ],
            )

    def finals(of: list[dict[str, Any]]) -> float:
        return float(statistics.median(r["final"] for r in of))

    sgd, adam = dict(runs("SGD", AE_RATES)), dict(runs("Adam", AE_ADAM))
    best, best_adam = (min(table, key=lambda lr: finals(table[lr])) for table in (sgd, adam))
    around = dict(runs("NegativeCurvature", (best,)))[best]
    rows = []
    for s in range(AE_SEEDS):
        target = sgd[best][s]["final"]
        found = {"NegativeCurvature": around[s], "Adam": adam[best_adam][s]}
        ge = {name: reached(run, target) for name, run in found.items()}
        base = reached(sgd[best][s], target)
        rows.append({
            "seed": s, "start": sgd[best][s]["start"], "sgd_final": target, "sgd_ge": base, "ge": ge,
            "ratio": {k: None if g is None or base is None else g / base for k, g in ge.items()},
            "finals": {k: r["final"] for k, r in found.items()}, "events": around[s]["events"],
            "ge_of_looks": around[s]["ge_of_looks"],
        })  # fmt: skip
        print("autoencoder", rows[-1], flush=True)
    return {
        "widths": AE_WIDTHS, "gain": AE_GAIN, "epochs": AE_EPOCHS, "batch": AE_BATCH, "share_of_looks": AE_SHARE,
        "sgd": {str(lr): finals(of) for lr, of in sgd.items()}, "sgd_lr": best,
        "adam": {str(lr): finals(of) for lr, of in adam.items()}, "adam_lr": best_adam, "seeds": rows,
    }  # fmt: skip
