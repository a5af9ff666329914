"""Checks of a step in several pieces: accumulation, m-sharpness, interruptions, calls in the wrong order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optland.conformance.bench import Bench, Measured, NotApplicableError, check, differing, relative
from optland.conformance.checks.steps import scaled_coordinates
from optland.conformance.oracles import ORACLES, unit
from optland.conformance.problems import Problem, network

HALVES = [slice(0, 5), slice(5, 12)]


@check("accumulation", "safety", "two micro-batches in each pass are the full batch")
def accumulation(bench: Bench) -> Measured:
    """Both passes over the same micro-batches. Figure: relative deviation of three steps from the full batch.

    Raises:
        NotApplicableError: The optimizer makes the backward pass itself.
    """
    if not bench.subject.drive.takes_parts:
        raise NotApplicableError("takes one batch, and makes the backward pass itself")
    ends = []
    for parts in ([slice(None)], HALVES):
        problem = network(bench.dtype)
        problem.parts = list(parts)
        start = problem.flat()
        bench.steps(bench.build(problem, momentum=0.9), problem, 3)
        ends.append(problem.flat() - start)
    return Measured(relative(ends[1], ends[0]), 10 * bench.tolerance)


@check("accumulation-misuse", "safety", "micro-batches outside the closure are not lost silently")
def accumulation_misuse(bench: Bench) -> Measured:
    """A trainer that accumulates runs the first micro-batches outside ``step``, and a closure that does not zero.

    An exception that leaves the weights alone is right, and so is the step of the full batch. Figure:
    relative deviation from the latter, and 0 for an exception.

    Raises:
        NotApplicableError: ``step`` takes no closure.
    """
    if not bench.subject.drive.takes_closure:
        raise NotApplicableError("is not driven by a closure")
    whole, pieces = network(bench.dtype), network(bench.dtype)
    start = whole.flat()
    bench.steps(bench.build(whole), whole, 1)
    optimizer = bench.build(pieces)
    optimizer.zero_grad()
    pieces.parts = [HALVES[0]]
    pieces.backward()

    def closure(*_: object) -> Tensor:
        pieces.parts = [HALVES[1]]
        return pieces.backward()

    if not bench.subject.drive.returns_loss:
        closure()  # the caller computes the whole first gradient
    try:
        optimizer.step(closure)
    except Exception:  # any refusal is right, whatever its type
        return Measured(relative(pieces.flat(), start), 1e-6, "refused")
    moved = relative(pieces.flat() - start, whole.flat() - start)
    return Measured(moved, 10 * bench.tolerance, "the step is that of other gradients")


@check("m-sharpness", "method", "a perturbation for each sample", methods=set(ORACLES), variants="float64")
def m_sharpness(bench: Bench) -> Measured:
    """Section 7.15: on linear regression the mean of per-sample SAM gradients is g + rho mean(sign(r) ||x|| x).

    Of other methods: the mean of what their oracle hands over for each sample. One part with the whole batch is
    the plain step. Figure: relative deviation of what SGD receives.

    Raises:
        NotApplicableError: No use with micro-batches is documented, the method climbs along a momentum, or it cannot do
            with SGD.
    """
    micro = bench.subject.micro
    if micro is None:
        raise NotApplicableError("offers no micro-batches")
    bench.require("rho")
    if bench.subject.claim.momentum > 0:
        raise NotApplicableError("climbs along one momentum, the same for every sample")
    if "sgd" not in bench.bases:
        raise NotApplicableError("has no SGD as its base, which would show what it receives")
    worst, lr = 0.0, 0.1
    for each in (True, False):
        problem, x, y = _regression(bench.dtype)
        w = problem.flat()
        optimizer = bench.build(problem, lr=lr)
        parts = [slice(i, i + 1) for i in range(len(x))] if each else [slice(None)]
        expected = _mean_of_parts(bench, problem, w, [(x[part], y[part]) for part in parts])
        if bench.subject.claim.method == "sam":
            expected = _sharp_regression(w, x, y, bench.options["rho"], each)
        micro(optimizer, problem, parts)
        worst = max(worst, relative((w - problem.flat()) / lr, expected))
    return Measured(worst, bench.tolerance)


def _sharp_regression(w: Tensor, x: Tensor, y: Tensor, rho: float, each: bool) -> Tensor:
    """What SAM with a perturbation for each sample, or one for all, hands to its base."""
    r = x @ w - y
    g = (r[:, None] * x).mean(0)
    along = r.sign() * x.norm(dim=1) if each else x @ unit(g)  # of each sample's x with the direction of eps
    sharp: Tensor = g + rho * (along[:, None] * x).mean(0)
    return sharp


ONE_MEMORY = {"sparse_sam"}
"""Methods of which the first micro-batch of a step decides something for the others."""


def _mean_of_parts(bench: Bench, problem: Problem, w: Tensor, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean of what the method's oracle hands over for each part, in its first step."""
    make = ORACLES[bench.subject.claim.method]
    scaled = scaled_coordinates(bench, problem)
    options = {**bench.options, "refresh": len(parts)}  # a mask lasts a whole step
    oracle, total = make(options, scaled), torch.zeros_like(w)
    for x, y in parts:
        if bench.subject.claim.method not in ONE_MEMORY:
            oracle = make(options, scaled)

        def gradient(at: Tensor, x: Tensor = x, y: Tensor = y) -> Tensor:
            return ((x @ at - y)[:, None] * x).mean(0)

        total += oracle(w, gradient, torch.zeros_like(w)).gradient / len(parts)
    return total


def _half_square(outputs: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (outputs.squeeze(-1) - target).square().mean()


def _regression(dtype: torch.dtype) -> tuple[Problem, Tensor, Tensor]:
    """Mean of (x'w - y)^2 / 2 over five samples, and its data."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    y = 3.0 * torch.randn(5, generator=generator, dtype=torch.float64)
    model = torch.nn.Linear(3, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -1.0, 2.0]]))
    return Problem(model, x.to(dtype), y.to(dtype), _half_square), x, y


class _Interruption(Exception):
    pass


@check("interrupted-step", "safety", "an exception at w + eps leaves the weights at w")
def interrupted_step(bench: Bench) -> Measured:
    """Out of memory, or Ctrl-C, happens in a forward pass; the handler then saves a checkpoint of the weights.

    The two-call conventions give control to the caller, and are exempt. Figure: entries that differ from w.

    Raises:
        NotApplicableError: The step is made of two calls, or has one pass.
    """
    if bench.subject.halves is not None and not bench.subject.drive.takes_closure:
        raise NotApplicableError("between its two calls the caller is in control")
    problem = network(bench.dtype)
    optimizer = bench.build(problem)
    bench.steps(optimizer, problem, bench.options.get("k", 1))  # on to a step that takes all its passes
    weights, start = problem.bits(), len(problem.points)
    perturbed = 0 if bench.subject.claim.method == "msam" else 1  # the number of the pass at w + eps

    def interrupt(module: Any, args: Any) -> None:
        if len(problem.points) - start == perturbed:
            raise _Interruption

    handle = problem.model.register_forward_pre_hook(interrupt)
    try:
        bench.steps(optimizer, problem, 1)
    except _Interruption:
        return Measured(differing(problem.bits(), weights), 0.0, "entries left at w + eps")
    finally:
        handle.remove()
    raise NotApplicableError("takes one gradient per step")


@check("call-order", "safety", "halves of a step in the wrong order raise", variants="one")
def call_order(bench: Bench) -> Measured:
    """Three mistakes: the first half once too often, the second half alone, ``state_dict`` between the two.

    The first would climb twice, the second would be a plain step of the base, the third a checkpoint in the
    middle of a step. Figure: mistakes that pass silently.

    Raises:
        NotApplicableError: A step has no halves.
    """
    if bench.subject.halves is None:
        raise NotApplicableError("has no halves")
    *climbs, second = bench.subject.halves
    first = climbs[0]
    again = tuple(name for climb in climbs for name in (climb, "backward"))
    silent = [
        name
        for name, calls in {
            f"{first} once too often": (*again, first),
            f"{second} alone": (second,),
            f"state_dict after {first}": (first, "state_dict"),
        }.items()
        if not _refused(bench, calls)
    ]
    return Measured(len(silent), 0.0, "silent: " + ", ".join(silent) if silent else "")


def _refused(bench: Bench, calls: tuple[str, ...]) -> bool:
    """Whether the last of these calls, after a backward pass, raises."""
    problem = network(bench.dtype)
    optimizer = bench.build(problem)
    problem.backward()
    for name in calls[:-1]:
        if name == "backward":
            problem.backward()
        else:
            getattr(optimizer, name)()
    try:
        getattr(optimizer, calls[-1])()
    except Exception:  # any refusal is right, whatever its type
        return True
    return False
