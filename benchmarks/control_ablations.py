"""``auto_lr`` with one part taken away, and successive halving over learning rates: methods of ``control.py``."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from control_runs import METHODS, Cell, Setup, finish, train_some
from control_tasks import TASKS, Problem, prepare
from torch import Tensor

from optland.pilot import Pilot
from optland.pilot.length import Lengths
from optland.pilot.measure import Number, WeightsBefore
from optland.train import seed_everything

__all__ = ["METHODS"]

SEARCH = 0.1  # share of the budget that successive halving spends before its final run
RISE = 0.05  # share of a run over which the shape of auto_lr rises


class OtherSpeeds(Lengths):
    """Gives updates the length that they would have if their relative speed per unit of rate were another.

    Args:
        speed: The other speed, from the real one.
    """

    def __init__(self, speed: Callable[[float], float]) -> None:
        super().__init__()
        self.speed, self.trial = speed, 1.0

    def rescale(
        self, before: WeightsBefore, target: float, trial: float, most: float
    ) -> tuple[Number, Number, Number]:
        self.trial = trial
        return super().rescale(before, target, trial, most)

    def _relative(self, before: WeightsBefore, moved: list[Tensor]) -> tuple[Number, Number]:
        speed, relative = super()._relative(before, moved)
        return self.trial * self.speed(float(speed) / self.trial), relative


def _with_speeds(setup: Setup, speed: Callable[[float], float]) -> Setup:
    _pilot(setup).steering._lengths = OtherSpeeds(speed)
    return setup


def _frozen(cell: Cell, problem: Problem) -> Setup:
    """The relative speed at the end of the warm-up for all that follows."""
    setup = METHODS["auto_lr"](cell, problem)
    pilot = _pilot(setup)
    held: list[float] = []

    def speed(real: float) -> float:
        done = pilot.progress.at(pilot.step, pilot.host.batch_size)
        if not held and done is not None and done >= RISE:
            held.append(real)
        return held[0] if held else real

    return _with_speeds(setup, speed)


def _shuffled(cell: Cell, problem: Problem) -> Setup:
    """The relative speeds of a whole run of its own, in random order: tells whether their timing matters."""
    seed_everything(cell.seed)
    other = prepare(TASKS[cell.task], label_noise=cell.label_noise, seed=cell.seed)
    speeds: list[float] = []

    def record(real: float) -> float:
        speeds.append(real)
        return real

    first = _with_speeds(METHODS["auto_lr"](cell, other), record)
    train_some(cell, other, first)
    _pilot(first).close()
    random.Random(cell.seed).shuffle(speeds)

    def replay(real: float) -> float:
        # In a dead net nothing moved, whatever the list says.
        return speeds.pop() if speeds and real > 0 else real

    return _with_speeds(METHODS["auto_lr"](cell, problem), replay)


def _without_guard(cell: Cell, problem: Problem) -> Setup:
    """No rewind, whatever the loss, the gradient or a layer says."""
    setup = METHODS["auto_lr"](cell, problem)
    pilot = _pilot(setup)
    pilot._rewind = lambda *_: None  # type: ignore[method-assign]
    return setup


def _without_rewind(cell: Cell, problem: Problem) -> Setup:
    """Halves the pace on trouble, and goes on from where it is."""
    setup = METHODS["auto_lr"](cell, problem)
    pilot = _pilot(setup)
    trouble = pilot.trouble

    def stay(step: int, dead_for: int = 0) -> dict[str, Any]:
        return {"step": step, "mark": trouble.guard.mark()}

    trouble.snapshots.choose = stay  # type: ignore[method-assign]
    trouble.snapshots.restore = lambda *_: None  # type: ignore[method-assign]
    return setup


def _pilot(setup: Setup) -> Pilot:
    if setup.pilot is None:
        raise RuntimeError("an ablation of auto_lr needs a pilot")
    return setup.pilot


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


ADDED: dict[str, Callable[[Cell, Problem], Setup]] = {
    "no guard": _without_guard,
    "halving without rewind": _without_rewind,
    "frozen first speed": _frozen,
    "shuffled pace": _shuffled,
    "halving": halving,
}
METHODS.update(ADDED)
