r"""Before a run: will it train as configured?

A few dozen updates are made and taken back, under a watch; along some of them the critical step is measured, and at the
start both ends of the spectrum on one batch. What the rules find in that, and how far the loss has come, gives a stated
chance that the run will not train.

.. math:: p = \max\bigl(q,\; \tfrac12 (1 - \min(1, \Delta / \Delta_0))\bigr)

with q the largest share of runs with one of the findings that did not train, counted on development runs, and Delta the
share of the loss of knowing nothing that is gone, of which a healthy run loses Delta_0 in that time.

Cost: 32 updates, up to four critical steps of five forward passes, and up to six Hessian products of one batch: at most
60 updates, since a critical step that would lead beyond is left out, and so are updates where the spectrum took more.

When: before a long run. When not: a run that takes minutes anyway.

Caveats: it sees the start alone, and what it is given: a schedule's later peak, a fault after the first epoch or one of
the loop itself (gradients that are never zeroed, a schedule stepped twice) is not in it.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optland.batches import num_samples
from optland.context.modules import preserve_modes
from optland.context.rng import preserve_rng
from optland.curvature import critical_step, hessian, lanczos
from optland.doctor.calibration import share_of
from optland.doctor.diagnose import Diagnosis, diagnose, numbered
from optland.doctor.finding import Symptom
from optland.doctor.histories import Histories
from optland.doctor.rules.shape import shape_of
from optland.doctor.watching import watch
from optland.losses import mean_of
from optland.objective import FORWARD_GE, LossFn, Objective

__all__ = ["Preflight", "chance_of_failure", "preflight"]

UPDATES, PRODUCTS, FORWARDS = 32, 6, 5
LOOKS = (2, 6, 14, 28)
"""Updates along which the critical step is measured."""

BESIDE = 28.0
"""Cost of all that is no update, in updates: a critical step that would lead beyond is left out."""

GAINED = 0.04
"""Share of the loss of knowing nothing that a healthy run has lost by then."""

FAILED: dict[str, tuple[int, int]] = {
    Symptom.RATE_ABOVE_EDGE: (31, 24), Symptom.RATE_BELOW_EDGE: (14, 14), Symptom.VANISHING_GRADIENTS: (8, 8),
    Symptom.EXPLODING_GRADIENTS: (15, 6), Symptom.DEAD_UNITS: (34, 34), Symptom.SADDLE_PLATEAU: (10, 10),
    Symptom.OVER_REGULARISED: (9, 6), Symptom.SAM_TOO_MUCH: (11, 11), Symptom.SAM_TOO_LITTLE: (10, 0),
    Symptom.STALE_MOMENTUM: (8, 0), Symptom.BATCH_ABOVE_NOISE: (13, 8), Symptom.BATCH_BELOW_NOISE: (9, 2),
    Symptom.CORRUPT_BATCHES: (10, 6), Symptom.DATA_NOT_SHUFFLED: (3, 2), Symptom.INPUTS_OFF_SCALE: (10, 4),
    Symptom.MODES_MIXED_UP: (2, 0), Symptom.SCHEDULER_OFF: (3, 0), Symptom.SOFTMAX_TWICE: (3, 3),
    Symptom.STALE_OPTIMIZER: (3, 2), Symptom.SYMMETRIC_WEIGHTS: (3, 3), Symptom.WEIGHTS_NOT_HELD: (3, 0),
    Symptom.WRONG_REDUCTION: (2, 2), Symptom.GRADIENTS_NOT_ZEROED: (3, 2), Symptom.ACCUMULATION_NOT_DIVIDED: (3, 1),
}  # fmt: skip
"""Of development runs with a finding: how many there were, and how many of them did not train."""

TOO_EARLY = {Symptom.PLATEAU, Symptom.POOR_GENERALISATION, Symptom.WRONG_LABELS, Symptom.NOT_FINITE}
"""Findings that say nothing after so few updates; how far the loss has come, or another finding, says it."""


@dataclass(frozen=True)
class Preflight:
    """What a look at the start of a run says.

    Attributes:
        chance: Chance that it will not train as configured.
        diagnosis: What the rules find.
        first: Loss of the untrained model.
        last: Loss after the updates that were tried: the median of the last five.
        critical_lr: Critical learning rate along the updates, the median; NaN where no look found one.
        ncr: Negative-curvature ratio at the start; NaN where the spectrum could not be had.
        cost_ge: Gradient evaluations spent.
    """

    chance: float
    diagnosis: Diagnosis
    first: float
    last: float
    critical_lr: float
    ncr: float
    cost_ge: float

    def __str__(self) -> str:
        verdict = "will train" if self.chance < 0.5 else "will not train as configured"
        sure = min(0.99, max(self.chance, 1 - self.chance))
        lines = [
            f"It {verdict} (chance {100 * sure:.0f} %): the loss went from {self.first:.3g} to {self.last:.3g}.",
            f"critical learning rate {self.critical_lr:.3g}, negative-curvature ratio {self.ncr:.2g}",
        ]
        return "\n".join([*lines, *numbered(self.diagnosis.findings)])


def chance_of_failure(run: Histories) -> float:
    """The chance that a run will not train, from what was seen of its start.

    Args:
        run: Its first updates.

    Example:
        >>> run = Histories({"chance": 2.3})
        >>> for step in range(1, 33):
        ...     run.put(step, {"train/loss": 2.3 * 0.98**step})
        >>> chance_of_failure(run)
        0.0
    """
    stops = [share_of(FAILED, f.symptom) for f in diagnose(run).findings if f.symptom not in TOO_EARLY]
    shape = shape_of(run)
    gained = (min(shape.begin, 1.2 * shape.chance) - shape.end) / shape.chance if shape.chance > 0 else 0.0
    slow = 0.5 * (1 - min(1.0, max(0.0, gained) / GAINED))
    return max([slow, float(shape.broken > 0), *stops])


def preflight(
    model: nn.Module,
    loss_fn: LossFn,
    loader: Iterable[Any],
    optimizer: Optimizer,
    *,
    num_steps: int = UPDATES,
    seed: int = 0,
) -> Preflight:
    """Try the start of a run, say whether it will train, and take everything back.

    Args:
        model: The module that is to be trained.
        loss_fn: ``loss_fn(model, batch)``, the training loss.
        loader: What gives the batches.
        optimizer: As the run will begin with it.
        num_steps: Updates that are tried, at most; 32.
        seed: Seed of everything random inside; the global generators are left alone.

    Returns:
        A :class:`Preflight` with the chance that the run will not train and what speaks for it. Model, optimizer, data
        order and random state are afterwards as before.

    Raises:
        ValueError: Fewer than 10 updates, or a loader without a batch.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(256, 8), torch.arange(256) % 3
        >>> x[:, :3] += 2 * nn.functional.one_hot(y, 3)
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> loss_fn = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> loader = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 256, 32)]
        >>> fine = preflight(model, loss_fn, loader, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> slow = preflight(model, loss_fn, loader, torch.optim.SGD(model.parameters(), lr=1e-6))
        >>> fine.chance < 0.5 < slow.chance, slow.diagnosis.findings[0].title
        (True, 'rate below edge')
    """
    if num_steps < 10:
        raise ValueError(
            f"num_steps {num_steps} is too few to say anything; use at least 10, for example {UPDATES}"
        )
    batches = _endless(loader)
    with preserve_rng(seed), _taken_back(model, optimizer, loader):
        first = next(batches, None)
        if first is None:
            raise ValueError("the loader gave no batch; give one that can be read")
        ncr, spent = _spectrum(model, loss_fn, first, seed)
        tried = _Trial(model, loss_fn, optimizer, loader, seed)
        beyond = math.ceil(
            spent / num_samples(first) - BESIDE
        )  # a spectrum that took too much takes updates away
        for batch in itertools.islice(itertools.chain([first], batches), max(10, num_steps - max(0, beyond))):
            tried.update(batch, spent)
        tried.doctor.close()
    run = tried.doctor.histories
    if ncr == ncr:
        run.put(1, {"curv/ncr": ncr})
    shape = shape_of(run)
    return Preflight(
        chance_of_failure(run), diagnose(run), shape.first, shape.least if shape.count < 5 else shape.end,
        run.median("edge/eta_c"), ncr, spent + tried.cost_ge,
    )  # fmt: skip


class _Trial:
    """Updates under a watch, with the critical step along some of them."""

    def __init__(
        self, model: nn.Module, loss_fn: LossFn, optimizer: Optimizer, loader: Any, seed: int
    ) -> None:
        self.model, self.loss_fn, self.optimizer, self.seed = model, loss_fn, optimizer, seed
        self.doctor = watch(model, optimizer, loader)
        self.doctor.histories.facts["lr"] = max(float(g.get("lr", 0.0)) for g in optimizer.param_groups)
        self.cost_ge = 0.0
        self._along_ge = 0.0
        self._start = 8.0

    def _affords(self, before_ge: float, size: int) -> bool:
        """Whether a critical step on this many samples fits, with what was spent before the updates."""
        update = (self.cost_ge - self._along_ge) / max(1, self.doctor.step)
        return before_ge + self._along_ge + FORWARDS * FORWARD_GE * size <= BESIDE * update

    def update(self, batch: Any, before_ge: float) -> None:
        size = num_samples(batch)
        looks = self.doctor.step + 1 in LOOKS and self._affords(before_ge, size)
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        before = [p.detach().clone() for p in named.values()] if looks else []
        count = 0.0

        def closure() -> Tensor:
            nonlocal count
            self.optimizer.zero_grad()
            loss = mean_of(self.loss_fn(self.model, batch))
            loss.backward()
            count += 1
            return loss

        stepped: Any = self.optimizer.step  # whose annotation wants a closure that returns a float
        loss = float(torch.as_tensor(stepped(closure)).detach())
        self.cost_ge += count * size
        self.doctor.after_step(batch, loss)
        telemetry = getattr(self.optimizer, "telemetry", None)
        if telemetry is not None:  # of SAM's two passes, measured anyway
            self.doctor.histories.put(self.doctor.step, telemetry.read())
        if looks:
            with self.doctor.paused():
                self._along(batch, before, [p.detach() for p in named.values()])

    def _along(self, batch: Any, before: list[Tensor], after: list[Tensor]) -> None:
        moved = [b - a for a, b in zip(before, after, strict=True)]
        if not all(bool(torch.isfinite(m).all()) for m in moved) or not any(bool(m.any()) for m in moved):
            return
        objective = Objective(
            self.model, self.loss_fn, [batch], data="first batches", mode="train", seed=self.seed
        )
        found = critical_step(
            objective, moved, origin=before, initial_step=self._start, max_forwards=FORWARDS
        )
        self.cost_ge += found.cost_ge
        self._along_ge += found.cost_ge
        self._start = min(max(found.step.value, 0.25), 1024.0) if found.step.value > 0 else 1.0
        t, rate = found.step.value, self.doctor.histories.fact("lr")
        length = (
            torch.stack(torch._foreach_norm(moved)).norm() / torch.stack(torch._foreach_norm(before)).norm()
        )
        row = {"edge/not_descent": float(found.status == "not_descent"), "update/rel": float(length)}
        if found.status in ("resolved", "unbounded") and t > 0:
            row |= {"edge/ratio": 1 / t, "edge/eta_c": t * rate}
        self.doctor.histories.put(self.doctor.step, row)


def _spectrum(model: nn.Module, loss_fn: LossFn, batch: Any, seed: int) -> tuple[float, float]:
    """The negative-curvature ratio on one batch, and its cost; NaN where the model has no second derivative."""
    objective = Objective(model, loss_fn, [batch], data="first batch", seed=seed)
    try:
        with hessian(objective) as H:
            found = lanczos(H, k=1, ends="both", rtol=0.1, max_matvecs=PRODUCTS, seed=seed)
    except (RuntimeError, NotImplementedError):
        return float("nan"), objective.cost_ge
    top, bottom = found.top.value, found.bottom.value
    return (-bottom / top if top > 0 else float("nan")), objective.cost_ge


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            return


@contextmanager
def _taken_back(model: nn.Module, optimizer: Optimizer, loader: Any) -> Iterator[None]:
    """Restore weights, buffers, modes, gradients, the optimizer, and the order of the loader."""
    tensors = [*model.parameters(), *model.buffers()]
    kept = [t.detach().clone() for t in tensors]
    gradients = [(p, p.grad) for p in model.parameters()]
    state = copy.deepcopy(optimizer.state_dict())
    generator = getattr(loader, "generator", None)
    order = generator.get_state() if isinstance(generator, torch.Generator) else None
    for p, _ in gradients:
        p.grad = None
    try:
        with preserve_modes(model):
            model.train()
            yield
    finally:
        with torch.no_grad():
            for t, before in zip(tensors, kept, strict=True):
                t.copy_(before)
        optimizer.load_state_dict(state)
        for p, gradient in gradients:
            p.grad = gradient
        if isinstance(generator, torch.Generator) and order is not None:
            generator.set_state(order)
