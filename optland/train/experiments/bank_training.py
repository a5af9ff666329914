"""Train one run of the bank: plain steps, the average weights beside it, and what it took."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optland import vectors
from optland.batches import portion
from optland.train.experiments.bank_run import BankRun, Splits, cross_entropy
from optland.train.loops.ema import Ema
from optland.train.loops.loader import BatchLoader
from optland.train.loops.schedule import schedule_by_name
from optland.train.loops.seeding import seed_everything

__all__ = ["MakeOptimizer", "Trained", "train_run"]

MakeOptimizer = Callable[[BankRun, nn.Module, int], Optimizer]
"""``make(run, model, steps)``: an optimizer of the caller's own; ``last_evaluations`` are its passes per step, or 1."""

CURVE = 20
LAST = 0.05


@dataclass
class Trained:
    """A run that has ended.

    Attributes:
        model: The net with its last weights.
        averages: The nets with averaged weights, by decay.
        dead: Whether the loss was not finite, and the run given up there.
        facts: Gradient evaluations, steps, training loss at the end (mean over the last 5 % of the steps), norm of the
            weights, learning rate of the last step, and the mean training loss of every twentieth of the run.
    """

    model: nn.Module
    averages: dict[float, nn.Module]
    dead: bool
    facts: dict[str, Any] = field(default_factory=dict)


class _Consumed:
    """What a schedule reads: a run that ends inside an epoch, whereas the loader's length is of whole ones."""

    def __init__(self, loader: BatchLoader, total_samples: int) -> None:
        self.loader, self.total_samples = loader, total_samples
        self.batch_size = loader.batch_size  # which no run of the bank turns

    @property
    def samples_served(self) -> int:
        return self.loader.samples_served


def train_run(
    run: BankRun,
    splits: Splits,
    methods: Mapping[str, MakeOptimizer] | None = None,
    at_start: Callable[[nn.Module], None] | None = None,
    after_step: Callable[[nn.Module, int], None] | None = None,
) -> Trained:
    """Train the net of a run from its seed.

    Args:
        run: What is trained.
        splits: Its data.
        methods: Optimizers by the names that ``run.method`` takes.
        at_start: Called with the fresh net.
        after_step: Called after each step with the net, which still has the gradient of that step, and the number of
            steps so far.

    Returns:
        The net and its averages as the last step left them, in training mode, and what it took. A run that died is no
        error: it is ``dead``.

    Raises:
        ValueError: ``run.method`` is not in ``methods``, or the run missed its budget by more than 5 % and a step.
    """
    make = _maker(run, methods or {})
    seed_everything(run.seed)
    model = splits.build(run)
    if at_start is not None:
        at_start(model)
    size = len(splits.train[0])
    loader = BatchLoader(splits.train, run.batch_size, epochs=math.ceil(run.samples / size), seed=run.seed)
    optimizer: Any = make(run, model, run.steps(size))
    scheduler = schedule_by_name(run.schedule, optimizer, _Consumed(loader, run.samples))
    emas = {decay: Ema(model, decay) for decay in run.averages}
    losses: list[float] = []
    ge, lr, dead = 0.0, 0.0, False
    for batch in loader:
        lr = optimizer.param_groups[0]["lr"]
        loss = optimizer.step(_closure(optimizer, model, batch, run.clip))
        losses.append(float(loss.detach()))
        ge += len(batch[0]) * float(getattr(optimizer, "last_evaluations", 1))
        dead = not math.isfinite(losses[-1])
        if dead:
            break
        for ema in emas.values():
            ema.update()
        if after_step is not None:
            after_step(model, len(losses))
        if loader.samples_served >= run.samples:
            break
        if scheduler is not None:
            scheduler.step()
    declared = run.cost * loader.samples_served
    apart = max(0.05 * declared, 2 * run.batch_size)  # a gate acts on whole steps
    if not dead and abs(ge - declared) > apart:
        raise ValueError(
            f"passes: {run.describe()} was to cost {run.cost:g} gradient evaluations per sample and step and took "
            f"{ge / loader.samples_served:.3g}; give passes as it is, so that its budget is kept"
        )
    averages = {decay: ema.model for decay, ema in emas.items()}
    norm = float(vectors.norm([p.detach() for p in model.parameters()]))
    facts = {
        "ge": ge,
        "steps": len(losses),
        "norm": norm,
        "lr": lr,
        "train_loss": _end(losses),
        "curve": _curve(losses),
    }
    return Trained(model, averages, dead or not math.isfinite(norm), facts)


def _maker(run: BankRun, methods: Mapping[str, MakeOptimizer]) -> MakeOptimizer:
    if not run.method:
        return lambda run, model, steps: run.optimizer.build(model, steps)
    if run.method not in methods:
        raise ValueError(
            f"method: {run.method!r} is not in the table of methods, which has {sorted(methods)}"
        )
    return methods[run.method]


def _closure(
    optimizer: Any, model: nn.Module, batch: tuple[Tensor, ...], clip: float | None
) -> Callable[..., Tensor]:
    """Zeroes, forward, backward and clipping of one batch; of its part, where a method asks for one."""

    def closure(share: float = 1.0) -> Tensor:
        optimizer.zero_grad()
        x, y = portion(batch, share)
        loss = cross_entropy(model, (x, y))
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        return loss

    return closure


def _end(losses: list[float]) -> float:
    """Mean of the loss over the last :data:`LAST` of the steps, one of them at least."""
    tail = losses[-max(1, round(LAST * len(losses))) :]
    return sum(tail) / len(tail)


def _curve(losses: list[float]) -> list[float]:
    """Means of the loss over each twentieth of the run; of each step where there are fewer."""
    count = min(CURVE, len(losses))
    edges = [round(k * len(losses) / count) for k in range(count + 1)]
    return [round(sum(losses[a:b]) / (b - a), 5) for a, b in itertools.pairwise(edges)]
