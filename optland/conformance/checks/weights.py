"""Checks of parameters and their memory: partial gradients, frozen, unused and tied ones, storage."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optland.conformance.bench import (
    Bench,
    Measured,
    NotApplicableError,
    ViolationError,
    check,
    differing,
)
from optland.conformance.checks.steps import ALL, deviation
from optland.conformance.problems import Problem, Switch, cross_entropy, network, on


@check("storage", "contract", "parameters keep their memory", variants="float64")
def storage(bench: Bench) -> Measured:
    """Flattened buffers, DDP and CUDA graphs hold on to addresses. Figure: parameters that moved elsewhere."""
    problem = network(bench.dtype)
    addresses = [p.data_ptr() for p in problem.model.parameters()]
    bench.steps(bench.build(problem), problem, 2)
    moved = sum(p.data_ptr() != a for p, a in zip(problem.model.parameters(), addresses, strict=True))
    return Measured(moved, 0.0, f"of {len(addresses)} parameters")


def _switched(bench: Bench, used_in: int) -> Measured:
    """With lr = 0, how far a parameter is from where it was after one step in which it took part once."""
    problem = on(Switch(used_in, bench.dtype), bench.dtype)
    start = problem.flat()
    step = bench.trace(bench.build(problem, lr=0.0), problem, 1)[0]
    if len(step.points) < 2:
        raise NotApplicableError("takes one gradient per step")
    return Measured(float((problem.flat() - start).norm()), 1e-12 if bench.dtype == torch.float64 else 1e-6)


@check("first-pass-only", "safety", "a parameter without a gradient in pass two comes back too")
def first_pass_only(bench: Bench) -> Measured:
    """Stochastic depth and routing leave parameters out at random. Figure: distance left behind with lr = 0."""
    return _switched(bench, 0)


@check("second-pass-only", "safety", "a parameter without a gradient in pass one is no error")
def second_pass_only(bench: Bench) -> Measured:
    """The reverse case. Figure: distance left behind with lr = 0."""
    return _switched(bench, 1)


@check("frozen-unused", "contract", "frozen and unused parameters are left alone", variants="float64")
def frozen_unused(bench: Bench) -> Measured:
    """A parameter whose ``.grad`` is None does not move, weight decay or not. Figure: entries that changed."""
    problem = network(bench.dtype)
    frozen: nn.Module = problem.model[0]  # type: ignore[index]
    frozen.requires_grad_(False)
    problem.model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=bench.dtype)))
    names = ("0.weight", "0.bias", "unused")
    held: dict[str, Tensor] = {n: p.detach() for n, p in problem.model.named_parameters()}
    start = [held[name].clone() for name in names]
    bench.steps(bench.build(problem, momentum=0.9, decay=0.1), problem, 2)
    now = dict(problem.model.named_parameters())
    return Measured(differing([now[name].detach() for name in names], start), 0.0)


class Tied(nn.Module):
    """Two layers that share their weight."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Linear(4, 4, bias=False, dtype=dtype)
        self.second = nn.Linear(4, 4, dtype=dtype)
        with torch.no_grad():
            for p in (self.first.weight, self.second.weight, self.second.bias):
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 4)."""
        out: Tensor = self.second(torch.tanh(self.first(x)))
        return out


@check("tied", "method", "a shared weight is perturbed once", methods=ALL)
def tied(bench: Bench) -> Measured:
    """Figure: as for ``step``, on a net with one weight in two layers, which it must still have afterwards.

    Raises:
        ViolationError: The layers no longer share their weight.
    """
    data = network(bench.dtype)
    model = Tied(bench.dtype)
    problem = Problem(model, data.x, data.y, cross_entropy)
    measured = deviation(bench, problem, steps=3)
    if model.first.weight is not model.second.weight:
        raise ViolationError("the two layers no longer share their weight")
    return Measured(measured, 10 * bench.tolerance)
