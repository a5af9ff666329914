"""``auto_lr`` with one part taken away, and successive halving over learning rates: methods of ``control.py``."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from control_runs import METHODS, PROBE_BUDGET, Cell, Setup, finish, piloted, train_some
from control_tasks import TASKS, Problem, prepare
from optland.control import AutoLR

from optland.train import Pilot, seed_everything

__all__ = ["METHODS"]

SEARCH = 0.1  # share of the budget that successive halving spends before its final run


class Frozen(AutoLR):
    """Takes the relative speed at the end of the warm-up for all that follows."""

    frozen: float | None = None

    def step_size(self, relative_speed: float, shape: float) -> tuple[float, str]:
        if self.frozen is None and self.rising and shape < self.last_shape:
            self.frozen = relative_speed
        self.rising, self.last_shape = shape >= self.last_shape, shape
        return super().step_size(self.frozen or relative_speed, shape)

    rising, last_shape = True, 0.0


class Recorded(AutoLR):
    """Remembers every relative speed that it is shown."""

    def step_size(self, relative_speed: float, shape: float) -> tuple[float, str]:
        self.__dict__.setdefault("speeds", []).append(relative_speed)
        return super().step_size(relative_speed, shape)


class Replayed(AutoLR):
    """Takes its relative speeds from a list instead of from the optimizer's moves."""

    def step_size(self, relative_speed: float, shape: float) -> tuple[float, str]:
        speeds = self.__dict__["speeds"]
        if not relative_speed > 0:  # a dead net: nothing moved, whatever the list says
            return super().step_size(relative_speed, shape)
        return super().step_size(speeds.pop() if speeds else relative_speed, shape)


def _policy(kind: type[AutoLR], cell: Cell) -> AutoLR:
    return kind(two_pass=cell.optimizer == "sam")


def _without_guard(cell: Cell, problem: Problem) -> Setup:
    """No rewind, whatever the loss, the gradient or a layer says."""
    setup = METHODS["auto_lr"](cell, problem)
    _pilot(setup).steering.rewound = lambda *_: None  # type: ignore[method-assign]
    return setup


def _without_rewind(cell: Cell, problem: Problem) -> Setup:
    """Halves the pace on trouble, and goes on from where it is."""
    setup = METHODS["auto_lr"](cell, problem)
    steering = _pilot(setup).steering

    def stay() -> dict[str, Any]:
        return {"step": -1, "mark": steering.guard.mark()}

    steering.snapshots.rewind = stay  # type: ignore[method-assign]
    return setup


def _pilot(setup: Setup) -> Pilot:
    if setup.pilot is None:
        raise RuntimeError("an ablation of auto_lr needs a pilot")
    return setup.pilot


def _shuffled(cell: Cell, problem: Problem) -> Setup:
    """The relative speeds of a whole run of its own, in random order: tells whether their timing matters."""
    seed_everything(cell.seed)
    other = prepare(TASKS[cell.task], label_noise=cell.label_noise, seed=cell.seed)
    first = piloted(lambda c: _policy(Recorded, c), PROBE_BUDGET)(cell, other)
    train_some(cell, other, first)
    policy = _pilot(first).steering.policy
    speeds = list(policy.__dict__["speeds"])
    random.Random(cell.seed).shuffle(speeds)
    replayed = _policy(Replayed, cell)
    replayed.__dict__["speeds"] = speeds
    return piloted(lambda c: replayed, PROBE_BUDGET)(cell, problem)


def halving(cell: Cell, problem: Problem) -> Setup:
    """Nine rates for a ninth of half the search budget each, the best three for the rest, then the best anew."""
    rates = list(TASKS[cell.task].lrs(cell.optimizer))
    spent = 0.0
    for keep in (3, 1):
        share = 0.5 * SEARCH * cell.samples / len(rates)
        found = [_trial(cell, rate, int(share)) for rate in rates]
        spent += sum(ge for _, ge in found)
        order = sorted(range(len(rates)), key=lambda i: found[i][0])
        rates = [rates[i] for i in order[:keep]]
    seed_everything(cell.seed)
    chosen = Cell(**{**cell.__dict__, "lr": rates[0], "method": "tuned"})
    setup = METHODS["tuned"](chosen, problem)
    setup.samples = max(int(cell.samples - spent), 1)
    setup.spent = spent
    return setup


def _trial(cell: Cell, rate: float, samples: int) -> tuple[float, float]:
    """Mean loss over the last quarter of a short run at a constant rate after warm-up, and its cost."""
    seed_everything(cell.seed)
    problem = prepare(TASKS[cell.task], label_noise=cell.label_noise, seed=cell.seed)
    trial = Cell(**{**cell.__dict__, "lr": rate, "method": "tuned"})
    setup = METHODS["tuned"](trial, problem)
    setup.samples, setup.schedule = samples, None
    losses, ge = train_some(cell, problem, setup)
    return finish(losses, 0.25), ge


def _frozen(cell: Cell, problem: Problem) -> Setup:
    return piloted(lambda c: _policy(Frozen, c), PROBE_BUDGET)(cell, problem)


ADDED: dict[str, Callable[[Cell, Problem], Setup]] = {
    "no guard": _without_guard,
    "halving without rewind": _without_rewind,
    "frozen first speed": _frozen,
    "shuffled pace": _shuffled,
    "halving": halving,
}
METHODS.update(ADDED)
