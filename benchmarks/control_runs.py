"""One run of ``benchmarks/control.py``: a task, an optimizer, a method for the learning rate, a seed, a budget."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from control_tasks import TASKS, Problem, prepare
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from optland.optim import SAM
from optland.pilot import AutoLR, Pilot, SafeLR
from optland.train import BatchLoader, seed_everything

__all__ = [
    "METHODS",
    "OPTIMIZERS",
    "PROBE_BUDGET",
    "Cell",
    "Method",
    "Setup",
    "finish",
    "piloted",
    "run",
    "train_some",
]

PLAIN_PACE = 0.05
PROBE_BUDGET = 0.05
WARMUP = 0.05
SHOWN = ("edge_monitor", "noise_monitor", "curvature_monitor")
"""What lets every probe run in control mode, though no policy needs it."""


@dataclass(frozen=True)
class Cell:
    """What decides a run; ``lr`` is the user's, where the method has one."""

    task: str
    optimizer: str
    method: str
    seed: int
    lr: float | None = None
    steps: int | None = None
    batch: int | None = None
    rho: float = 0.05
    label_noise: float = 0.0

    @property
    def key(self) -> str:
        return "/".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in asdict(self).items())

    @property
    def samples(self) -> int:
        """Training samples of a run without probes: the budget over the passes of a step."""
        task = TASKS[self.task]
        return (self.steps or task.steps) * (self.batch or task.batch)


def base_optimizer(name: str, model: nn.Module, lr: float) -> Optimizer:
    """The two bases with the constants that all methods share."""
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01)
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)


OPTIMIZERS: dict[str, Callable[[Cell, nn.Module, float], Optimizer]] = {
    "sgd": lambda cell, model, lr: base_optimizer("sgd", model, lr),
    "adamw": lambda cell, model, lr: base_optimizer("adamw", model, lr),
    "sam": lambda cell, model, lr: SAM(base_optimizer("sgd", model, lr), rho=cell.rho, model=model),
}


@dataclass
class Setup:
    """What a method makes of a cell: an optimizer, and what is to happen after each step and epoch."""

    optimizer: Optimizer
    pilot: Pilot | None = None
    scheduler: Any = None
    plateau: Any = None  # has step(loss); a ReduceLROnPlateau at the end of an epoch
    samples: int = 0  # of the run; fewer where probes take their share
    schedule: str | None = None  # by progress, made once the loader is there
    spent: float = 0.0  # gradient evaluations of a search before the run
    end_at: int | None = None  # samples after which the end of an open-ended run is called


Method = Callable[[Cell, Problem], Setup]


def _scheduled(name: str) -> Method:
    def method(cell: Cell, problem: Problem) -> Setup:
        if cell.lr is None:
            raise ValueError(f"{cell.method} needs a learning rate")
        optimizer = OPTIMIZERS[cell.optimizer](cell, problem.model, cell.lr)
        return Setup(optimizer, samples=cell.samples, schedule=name)

    return method


def piloted(
    policy: Callable[[Cell], Any],
    budget: float = PROBE_BUDGET,
    *,
    shown: bool = False,
    schedule: str | None = None,
    end_at: float | None = None,
) -> Method:
    """A method of the pilot; the run is shortened by all that its probes may cost, so that totals are equal.

    With ``shown`` all probes run, also those that the policy does not need. With ``end_at`` the pilot is told of the
    end at that share of the run, and nothing of its length before.
    """

    def method(cell: Cell, problem: Problem) -> Setup:
        optimizer = OPTIMIZERS[cell.optimizer](cell, problem.model, cell.lr or 1e-3)
        samples = int(cell.samples / (1.0 + budget))
        pilot = Pilot(
            optimizer, problem.model, problem.loss_fn, policies=[policy(cell), *(SHOWN if shown else ())],
            budget=budget, seed=cell.seed, total_samples=samples if end_at is None else None,
            open_ended=end_at is not None, dataset_size=len(problem.train[0]),
        )  # fmt: skip
        called = None if end_at is None else int(end_at * samples)
        return Setup(optimizer, pilot, samples=samples, schedule=schedule, end_at=called)

    return method


def _plateau(cell: Cell, problem: Problem) -> Setup:
    """ReduceLROnPlateau as torch ships it, from the framework's default rate."""
    optimizer = OPTIMIZERS[cell.optimizer](cell, problem.model, 1e-3)
    return Setup(optimizer, plateau=ReduceLROnPlateau(optimizer), samples=cell.samples)


def _prodigy(cell: Cell, problem: Problem) -> Setup:
    from prodigyopt import Prodigy

    return Setup(Prodigy(problem.model.parameters()), samples=cell.samples, schedule="cosine")


def _schedule_free(cell: Cell, problem: Problem) -> Setup:
    from schedulefree import AdamWScheduleFree

    steps = cell.steps or TASKS[cell.task].steps
    optimizer = AdamWScheduleFree(problem.model.parameters(), warmup_steps=max(1, int(WARMUP * steps)))
    return Setup(optimizer, samples=cell.samples)


def _momo(cell: Cell, problem: Problem) -> Setup:
    import momo

    kind = momo.MomoAdam if cell.optimizer == "adamw" else momo.Momo
    return Setup(kind(problem.model.parameters()), samples=cell.samples)


METHODS: dict[str, Method] = {
    "tuned": _scheduled("cosine"),
    "auto_lr": piloted(lambda cell: "auto_lr", shown=True),
    "relative_step": piloted(lambda cell: AutoLR(tau=PLAIN_PACE), 0.0),
    "safe_lr": piloted(lambda cell: SafeLR(), schedule="cosine"),
    "plateau": _plateau,
    "prodigy": _prodigy,
    "schedule_free": _schedule_free,
    "momo": _momo,
    "no probe": piloted(lambda cell: "auto_lr", 0.0),
    "critical-step ceiling": piloted(lambda cell: AutoLR(ceiling=1.0)),
    "open-ended": piloted(lambda cell: "auto_lr", 0.0, end_at=0.8),
}


def run(cell: Cell, method: Method | None = None) -> dict[str, Any]:
    """Train once and score the last weights.

    Returns:
        Test and validation scores, the training loss (mean of the last 5 % of steps), gradient evaluations with
        probes, seconds, rewinds, and whether the run is dead: not finite, or no better than knowing nothing.
    """
    torch.set_num_threads(1)
    seed_everything(cell.seed)
    random.seed(cell.seed)
    problem = prepare(TASKS[cell.task], label_noise=cell.label_noise, seed=cell.seed)
    setup = (method or METHODS[cell.method])(cell, problem)
    started = time.perf_counter()
    losses, ge = train_some(cell, problem, setup)
    seconds = time.perf_counter() - started
    found = _score(problem, setup)
    found["train_loss"] = finish(losses, 0.05)
    alive = math.isfinite(found["test_loss"]) and found["train_loss"] < 0.97 * problem.trivial
    decisions = setup.pilot.decisions if setup.pilot is not None else []
    rewinds = sum(d.actuator == "rewind" for d in decisions)
    pilot = setup.pilot
    shares = {} if pilot is None else {"probes": pilot.budget.used, "probe_seconds": pilot.probe_seconds}
    return {
        "key": cell.key,
        **found,
        "ge": ge + setup.spent,
        "seconds": seconds,
        "dead": not alive,
        "rewinds": rewinds,
        **shares,
    }


def finish(losses: list[float], share: float) -> float:
    """Mean of the last losses; infinite where one is not finite."""
    tail = losses[-max(1, int(share * len(losses))) :]
    mean = sum(tail) / len(tail)
    return mean if math.isfinite(mean) else math.inf


def train_some(cell: Cell, problem: Problem, setup: Setup) -> tuple[list[float], float]:
    """The loop that every method goes through; returns the losses and the gradient evaluations."""
    batch = cell.batch or TASKS[cell.task].batch
    size = len(problem.train[0])
    epochs = math.ceil(setup.samples / size) + 1
    loader = BatchLoader(problem.train, batch, epochs=epochs, seed=cell.seed)
    optimizer: Any = setup.optimizer  # its loss is a tensor
    pilot = setup.pilot
    scheduler = _by_progress(setup, loader) if setup.schedule else None
    losses: list[float] = []
    ge = 0.0
    if hasattr(optimizer, "train"):
        optimizer.train()
    for data in loader:  # no policy here turns the batch

        def closure(data: Any = data) -> torch.Tensor:
            optimizer.zero_grad()
            loss = problem.loss_fn(problem.model, data)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        losses.append(float(loss.detach()))
        ge += len(data[0]) * float(getattr(optimizer, "last_evaluations", 1))
        if scheduler is not None:
            scheduler.step()
        if setup.plateau is not None and (loader.at_epoch_end or hasattr(setup.plateau, "every_step")):
            setup.plateau.step(sum(losses[-10:]) / len(losses[-10:]))
        if pilot is not None:
            pilot.after_step(data, loss)
            if setup.end_at is not None and loader.samples_served >= setup.end_at:
                pilot.decay(math.ceil((setup.samples - loader.samples_served) / batch))
                setup.end_at = None
        if loader.samples_served >= setup.samples or (pilot is None and not math.isfinite(losses[-1])):
            break
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    return losses, ge + (0.0 if pilot is None else pilot.budget.probe_ge)


def _by_progress(setup: Setup, loader: BatchLoader) -> LambdaLR:
    """Warm-up over 5 % of the samples, then cosine to zero."""

    def factor(_: int) -> float:
        progress = (loader.samples_served + 0.5 * loader.batch_size) / setup.samples
        if progress < WARMUP:
            return progress / WARMUP
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - WARMUP) / (1.0 - WARMUP))))

    return LambdaLR(setup.optimizer, factor)


def _score(problem: Problem, setup: Setup) -> dict[str, float]:
    """Scores of the last weights, BatchNorm in evaluation mode."""
    problem.model.eval()
    with torch.no_grad():
        return problem.score(problem.model)
