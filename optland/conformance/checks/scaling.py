"""Checks of loss scaling and of gradients that are not finite."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from optland.conformance.bench import (
    Bench,
    Measured,
    NotApplicableError,
    ViolationError,
    check,
    differing,
    relative,
)
from optland.conformance.problems import Problem, network
from optland.conformance.subject import BaseName

SCALE = 1024.0


@check("scaler-misuse", "safety", "GradScaler.step(optimizer, closure) does not train with scaled gradients")
def scaler_misuse(bench: Bench) -> Measured:
    """Section 7.17: the scaler lets a positional closure through, and the closure's gradients are scaled.

    An exception is right, and so is the step of the unscaled run. The gradients of the step before are there,
    as they are in a loop whose closure zeroes them. Figure: length of the step over that of the unscaled
    one, minus 1, and 0 for an exception.

    Raises:
        NotApplicableError: ``step`` takes no closure.
    """
    if not bench.subject.drive.takes_closure:
        raise NotApplicableError("step takes no closure")
    moved = []
    for scaled in (False, True):
        problem = network(bench.dtype)
        optimizer = bench.build(problem)
        start = problem.flat()
        if not scaled:
            bench.subject.drive.step(optimizer, problem)
        elif not _misused(bench, optimizer, problem):
            return Measured(0.0, 10 * bench.tolerance, "refused")
        moved.append((problem.flat() - start).norm())
    ratio = float(moved[1] / moved[0])
    return Measured(abs(ratio - 1.0), 10 * bench.tolerance, f"the step is {ratio:.4g} times too long")


def _misused(bench: Bench, optimizer: Any, problem: Problem) -> bool:
    """Step by a scaler with the closure of a scaled loss; whether that was let through."""
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    closure = bench.subject.drive.closure(optimizer, problem)
    backward = problem.backward
    problem.backward = lambda transform=scaler.scale: backward(scaler.scale)  # type: ignore[method-assign]
    problem.backward()
    bench.subject.drive.prepare(optimizer, problem)
    try:
        scaler.step(optimizer, closure)
    except Exception:  # any refusal is right, whatever its type
        return False
    return True


@check("scaler-step", "safety", "under a GradScaler it makes the unscaled run's steps")
def scaler_step(bench: Bench) -> Measured:
    """Section 7.17: three steps in the documented way. Figure: relative deviation of the path.

    Raises:
        NotApplicableError: No use with a scaler is documented.
    """
    scaled_step = bench.subject.scaled
    if scaled_step is None:
        raise NotApplicableError("documents no use with a GradScaler")
    ends = []
    for scaled in (False, True):
        problem = network(bench.dtype)
        start = problem.flat()
        optimizer = bench.build(problem, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        for _ in range(3):
            if scaled:
                scaled_step(optimizer, problem, scaler)
            else:
                bench.subject.drive.step(optimizer, problem)
        ends.append(problem.flat() - start)
    return Measured(relative(ends[1], ends[0]), 10 * bench.tolerance)


def _numbers(tree: Any) -> Iterator[Tensor]:
    """All floating-point tensors of a state dict, in order."""
    if isinstance(tree, Tensor):
        if tree.is_floating_point():
            yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _numbers(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _numbers(value)


def _spoiled(bench: Bench, number: int, base: BaseName, value: float) -> int:
    """Entries of weights and state that a bad gradient in pass ``number`` of the third step changed."""
    problem = network(bench.dtype)
    optimizer = bench.build(problem, base, momentum=0.9)
    bench.steps(optimizer, problem, 2)
    weights, state = problem.bits(), [t.clone() for t in _numbers(copy.deepcopy(optimizer.state_dict()))]
    start = len(problem.points)

    def spoil(gradient: Tensor) -> Tensor:
        bad = gradient.clone()
        if len(problem.points) - start == number:
            bad.view(-1)[0] = value
        return bad

    handle = next(iter(problem.model.parameters())).register_hook(spoil)
    bench.steps(optimizer, problem, 1)
    handle.remove()
    if len(problem.points) - start < number:
        raise NotApplicableError(f"takes {len(problem.points) - start} gradient in this step")
    after = list(_numbers(optimizer.state_dict()))
    if len(after) != len(state):
        raise ViolationError(f"the state has {len(after)} tensors after the step and had {len(state)}")
    return differing(problem.bits(), weights) + differing(after, state)


def _worst_spoiled(bench: Bench, number: int) -> Measured:
    changed = max(
        _spoiled(bench, number, base, value) for base in bench.bases for value in (float("inf"), float("nan"))
    )
    return Measured(changed, 0.0, "entries of weights and state that changed")


@check("not-finite-first", "safety", "an inf or NaN in g changes nothing", variants="float32")
def not_finite_first(bench: Bench) -> Measured:
    """Section 7.17: weights and state are untouched. Figure: entries that changed, over SGD and AdamW."""
    return _worst_spoiled(bench, 1)


@check("not-finite-second", "safety", "an inf or NaN in h changes nothing", variants="float32")
def not_finite_second(bench: Bench) -> Measured:
    """Section 7.17: weights and state are untouched. Figure: entries that changed, over SGD and AdamW."""
    return _worst_spoiled(bench, 2)
