"""Checks of model state in the second pass: batch norm, dropout masks, compiled modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optland.conformance.bench import (
    Bench,
    Measured,
    NotApplicableError,
    ViolationError,
    check,
    relative,
)
from optland.conformance.problems import network

STEPS = 4


def _after_steps(bench: Bench) -> tuple[nn.BatchNorm1d, nn.BatchNorm1d]:
    """Batch norm after steps that do not move, and after as many forward passes."""
    norms = []
    for stepping in (True, False):
        norm = nn.BatchNorm1d(8)
        problem = network(bench.dtype, norm)
        if stepping:
            bench.steps(bench.build(problem, lr=0.0), problem, STEPS)
        else:
            for _ in range(STEPS):
                problem.loss()
        norms.append(norm)
    return norms[0], norms[1]


@check("batchnorm-statistics", "model", "running statistics are those of one pass", variants="one")
def batchnorm_statistics(bench: Bench) -> Measured:
    """Section 7.19: as the original has it, only pass one, at w, writes them, and the layer is as before.

    Figure: relative deviation of mean and variance after four steps with lr = 0 from four forward passes.

    Raises:
        NotApplicableError: The method's one pass is at w + eps.
        ViolationError: The layer's momentum was changed and not put back.
    """
    if bench.subject.claim.method == "msam":
        raise NotApplicableError("its one pass is not at the weights")
    seen, expected = _after_steps(bench)
    if seen.momentum != expected.momentum:
        raise ViolationError(
            f"the layer's momentum is {seen.momentum} after the steps, was {expected.momentum}"
        )
    worst = 0.0
    for name in ("running_mean", "running_var"):
        a, b = getattr(seen, name), getattr(expected, name)
        worst = max(worst, relative(a, b))
    return Measured(worst, 1e-12)


@check("batchnorm-count", "model", "num_batches_tracked counts one pass per step", variants="one")
def batchnorm_count(bench: Bench) -> Measured:
    """Section 7.19: it is the momentum of layers with ``momentum=None``. Figure: batches counted too much."""
    seen, expected = _after_steps(bench)
    assert seen.num_batches_tracked is not None
    assert expected.num_batches_tracked is not None
    count = int(seen.num_batches_tracked)
    return Measured(abs(count - int(expected.num_batches_tracked)), 0.0, f"{count} in {STEPS} steps")


@check("dropout-masks", "model", "both passes see the same dropout masks", variants="one")
def dropout_masks(bench: Bench) -> Measured:
    """Section 7.19: with new masks, h - g is the difference of two networks rather than curvature.

    Figure: share of units that were dropped in one pass and not in the other, over three steps.

    Raises:
        NotApplicableError: A step has one pass.
    """
    drop = nn.Dropout(0.5)
    problem = network(bench.dtype, drop)
    masks: list[Tensor] = []
    drop.register_forward_hook(lambda module, args, out: masks.append(out == 0))
    optimizer = bench.build(problem, lr=0.01)
    worst, pairs = 0.0, 0
    for _ in range(3):
        masks.clear()
        bench.subject.drive.step(optimizer, problem)
        for other in masks[1:]:
            worst, pairs = max(worst, float((masks[0] != other).double().mean())), pairs + 1
    if pairs == 0:
        raise NotApplicableError("takes one gradient per step")
    return Measured(worst, 0.0)


@check("compiled-model", "model", "a compiled model gives the same numbers", variants="one")
def compiled_model(bench: Bench) -> Measured:
    """Three steps of a model under ``torch.compile(backend="eager")``; figure: relative deviation of the path."""
    ends = []
    for compiled in (False, True):
        problem = network(bench.dtype)
        start = problem.flat()
        if compiled:
            torch.compiler.reset()
            problem.model = torch.compile(problem.model, backend="eager")  # type: ignore[assignment]
        bench.steps(bench.build(problem, momentum=0.9), problem, 3)
        ends.append(problem.flat() - start)
    return Measured(relative(ends[1], ends[0]), 1e-9)
