"""Checks of the ``torch.optim.Optimizer`` contract: schedulers, checkpoints, copies and hooks."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import lr_scheduler

from optland.conformance.bench import (
    Bench,
    Measured,
    NotApplicableError,
    ViolationError,
    check,
    differing,
    relative,
)
from optland.conformance.problems import Problem, Slope, network, on


def _path(bench: Bench, optimizer: Any, problem: Problem, steps: int) -> list[Tensor]:
    path = []
    for _ in range(steps):
        bench.subject.drive.step(optimizer, problem)
        path.extend(problem.bits())
    return path


@check("resume", "contract", "3 steps, save, load, 3 steps are 6 steps, bit for bit", variants="all")
def resume(bench: Bench) -> Measured:
    """Section 7.18: into a fresh model and optimizer, through a file. Figure: entries that differ."""
    worst = 0
    for base in bench.bases:
        straight = network(bench.dtype)
        expected = _path(bench, bench.build(straight, base, momentum=0.9, lr=0.05), straight, 6)
        problem = network(bench.dtype)
        optimizer = bench.build(problem, base, momentum=0.9, lr=0.05)
        path = _path(bench, optimizer, problem, 3)
        file = io.BytesIO()
        torch.save({"model": problem.model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        drawn = torch.get_rng_state()
        saved = torch.load(file, weights_only=False)
        fresh = network(bench.dtype)
        fresh.model.load_state_dict(saved["model"])
        resumed = bench.build(fresh, base, momentum=0.9, lr=0.05)
        resumed.load_state_dict(saved["optimizer"])
        torch.set_rng_state(drawn)
        path += _path(bench, resumed, fresh, 3)
        worst = max(worst, differing(path, expected))
    return Measured(worst, 0.0)


@check("resume-settings", "contract", "the learning rate of the checkpoint is in force after loading")
def resume_settings(bench: Bench) -> Measured:
    """Loading rebinds ``param_groups``; a wrapper and its base must not part there, or schedules have no effect.

    On a linear loss every method is its base. Figure: relative deviation of a step from that of the base, after
    loading lr = 0.02 into optimizers made with 0.5, and after setting lr = 0.03 in their groups then.
    """
    saved, loaded = _Pair(bench, 0.02), _Pair(bench, 0.5)
    saved.step(bench)
    loaded.load(saved)
    worst = loaded.step(bench)
    for optimizer in (loaded.optimizer, loaded.plain):
        for group in optimizer.param_groups:
            group["lr"] = 0.03
    return Measured(max(worst, loaded.step(bench)), 10 * bench.tolerance)


class _Pair:
    """Two optimizers, the subject and its base alone, each on a linear loss of its own."""

    def __init__(self, bench: Bench, lr: float, momentum: float = 0.0) -> None:
        self.problem, self.beside = (on(Slope(bench.dtype), bench.dtype) for _ in range(2))
        self.optimizer = _simple(bench, self.problem, lr, momentum)
        self.plain = bench.base(lr=lr, momentum=momentum)(self.beside.model.parameters())

    def step(self, bench: Bench) -> float:
        """One step of both; relative deviation of the one from the other."""
        start, start_beside = self.problem.flat(), self.beside.flat()
        bench.subject.drive.step(self.optimizer, self.problem)
        self.plain.zero_grad()
        self.beside.backward()
        self.plain.step()
        return relative(self.problem.flat() - start, self.beside.flat() - start_beside)

    def load(self, other: _Pair) -> None:
        """Take over what the other pair would save."""
        self.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))
        self.plain.load_state_dict(copy.deepcopy(other.plain.state_dict()))


def _simple(bench: Bench, problem: Problem, lr: float, momentum: float = 0.0) -> Any:
    """On a linear loss every method is its base; LookSAM only without reuse, whose g_v would be rounding."""
    options: dict[str, Any] = {"k": 1} if "k" in bench.options else {}
    return bench.build(problem, lr=lr, momentum=momentum, **options)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=6),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
}


def _scheduled(bench: Bench, name: str) -> Measured:
    """Five steps under a scheduler against the base under the same one, on a linear loss."""
    pair = _Pair(bench, 0.1, momentum=0.9)
    start, worst = pair.beside.flat(), 0.0
    schedulers = [SCHEDULERS[name](o) for o in (pair.optimizer, pair.plain)]
    for _ in range(5):
        pair.step(bench)
        for scheduler in schedulers:
            scheduler.step(*([1.0] if name == "plateau" else []))
        end = pair.beside.flat()
        worst = max(worst, relative(pair.problem.flat(), end, end - start))
    return Measured(worst, 10 * bench.tolerance, f"under {name}")


@check("schedulers", "contract", "schedulers attach, act, and do not warn", variants="one")
def schedulers(bench: Bench) -> Measured:
    """Cosine, OneCycle (which cycles the momentum too), plateau, warm restarts, on a linear loss.

    Figure: largest deviation from the base under the same schedule, over the distance travelled.

    Raises:
        ViolationError: PyTorch warned of a schedule, for example of one stepped before the optimizer.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        worst = max((_scheduled(bench, name) for name in SCHEDULERS), key=lambda m: m.figure)
    about = [str(w.message) for w in caught if "lr_scheduler" in str(w.message)]
    if about:
        raise ViolationError(f"warns: {about[0][:120]}")
    return worst


def _copied(bench: Bench, copier: Callable[[Any], Any]) -> Measured:
    """A copy of model and optimizer goes on with the same numbers, and the original does not notice."""
    worst = 0
    for base in bench.bases:
        problem = network(bench.dtype)
        optimizer = bench.build(problem, base, momentum=0.9)
        bench.steps(optimizer, problem, 2)
        twin = network(bench.dtype)
        twin.model, twin_optimizer = copier((problem.model, optimizer))
        before = problem.bits()
        drawn = torch.get_rng_state()
        ahead = _path(bench, twin_optimizer, twin, 2)
        torch.set_rng_state(drawn)
        worst = max(worst, differing(problem.bits(), before))
        worst = max(worst, differing(ahead, _path(bench, optimizer, problem, 2)))
    return Measured(worst, 0.0, "entries that differ")


@check("deepcopy", "contract", "a deep copy goes on by itself with the same numbers", variants="one")
def deepcopy(bench: Bench) -> Measured:
    """Copied together with its model. Figure: entries that differ, in the copy or in the original."""
    return _copied(bench, copy.deepcopy)


@check("pickle", "contract", "a pickled optimizer goes on with the same numbers", variants="one")
def pickled(bench: Bench) -> Measured:
    """Pickled together with its model. Figure: entries that differ, in the copy or in the original."""
    return _copied(bench, lambda pair: pickle.loads(pickle.dumps(pair)))


@check("hooks", "contract", "step hooks fire once per update", variants="one")
def hooks(bench: Bench) -> Measured:
    """Whatever number of passes it takes. Figure: calls more or fewer in three updates, before and after."""
    problem, counts = network(bench.dtype), {"before": 0, "after": 0}
    optimizer = bench.build(problem)

    def count(key: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[key] += 1

        return hook

    optimizer.register_step_pre_hook(count("before"))
    optimizer.register_step_post_hook(count("after"))
    bench.steps(optimizer, problem, 3)
    return Measured(max(abs(c - 3) for c in counts.values()), 0.0, f"calls {counts} in 3 updates")


def _through_checkpoint(bench: Bench, before: int) -> Measured:
    """Save and load by name with ``torch.distributed.checkpoint`` after some steps; then three more."""
    from torch.distributed.checkpoint import state_dict as dcp

    straight, problem, fresh = (network(bench.dtype) for _ in range(3))
    expected = _path(bench, bench.build(straight, momentum=0.9), straight, before + 3)
    optimizer = bench.build(problem, momentum=0.9)
    path = _path(bench, optimizer, problem, before)
    drawn = torch.get_rng_state()
    saved = copy.deepcopy(dcp.get_optimizer_state_dict(problem.model, optimizer))
    fresh.model.load_state_dict(problem.model.state_dict())
    resumed = bench.build(fresh, momentum=0.9)
    dcp.set_optimizer_state_dict(fresh.model, resumed, saved)
    torch.set_rng_state(drawn)
    return Measured(differing(path + _path(bench, resumed, fresh, 3), expected), 0.0, "entries that differ")


@check("checkpoint-first", "contract", "distributed checkpoints before the first step", variants="one")
def checkpoint_first(bench: Bench) -> Measured:
    """``get_optimizer_state_dict`` makes the state by a step with zero gradients. Figure: entries that differ.

    Raises:
        NotApplicableError: The subject needs AdamW.
    """
    if "sgd" not in bench.bases:
        raise NotApplicableError("AdamW counts that step, also without a method around it")
    return _through_checkpoint(bench, 0)


@check("checkpoint-later", "contract", "distributed checkpoints after some steps", variants="one")
def checkpoint_later(bench: Bench) -> Measured:
    """Save after two steps, load, three more. Figure: entries that differ from five steps."""
    return _through_checkpoint(bench, 2)


@check("added-group", "contract", "a group added later is trained", variants="one")
def added_group(bench: Bench) -> Measured:
    """``add_param_group`` on the wrapper reaches the base. Figure: 1 when its parameters did not move.

    Raises:
        NotApplicableError: It has no ``add_param_group``.
    """
    problem = network(bench.dtype)
    params = list(problem.model.parameters())
    optimizer = bench.build(problem, params=params[:2])
    if not hasattr(optimizer, "add_param_group"):
        raise NotApplicableError("has no add_param_group")
    optimizer.add_param_group({"params": params[2:]})
    before = [p.detach().clone() for p in params[2:]]
    bench.steps(optimizer, problem, 1)
    moved = all(not torch.equal(p, b) for p, b in zip(params[2:], before, strict=True))
    return Measured(0.0 if moved else 1.0, 0.0)
