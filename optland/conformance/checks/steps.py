"""Checks of the step itself, against the method's oracle and against facts that hold for every method."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optland.conformance import oracles
from optland.conformance.bench import (
    Bench,
    Measured,
    NotApplicableError,
    ViolationError,
    check,
    differing,
    relative,
)
from optland.conformance.problems import Problem, Quadratic, coupled_quadratic, network, on
from optland.conformance.subject import BaseName

__all__ = ["deviation", "scaled_coordinates"]

NORMALISED = {
    "sam", "gsam", "wsam", "pgn", "looksam", "fsam", "vasso", "crsam", "eigensam", "stable_sam"
}  # fmt: skip
"""Methods whose perturbation has the length rho, whatever the loss."""
DIRECT = {
    "sam", "asam", "usam", "fsam", "vasso", "msam", "lesam", "fisher_sam", "adam_sam", "eigensam", "sparse_sam"
}  # fmt: skip
"""Methods that hand h itself to the base."""


def scaled_coordinates(bench: Bench, problem: Problem) -> Tensor:
    """Which coordinates ASAM scales: all, or those of matrices where the claim says ``matrices_only``.

    Args:
        bench: Its claim decides.
        problem: Its model gives the order of the coordinates.

    Returns:
        A mask (d,).
    """
    only = bool(bench.options.get("matrices_only", False))
    return torch.cat([torch.full((p.numel(),), p.ndim >= 2 or not only) for p in problem.model.parameters()])


def deviation(
    bench: Bench,
    problem: Problem,
    base: BaseName | None = None,
    steps: int = 6,
    groups: bool = False,
) -> float:
    """Largest deviation of the weights from the oracle's, over the distance travelled.

    SGD runs at lr 0.05 with momentum 0.9 and weight decay 0.01 (none for MSAM, which reads the momentum buffer), AdamW
    at lr 0.02 with decay 0.05. Where a paper leaves two readings open, the nearer one counts.

    Args:
        bench: Under test.
        problem: The loss, at its start.
        base: The base optimizer, the preferred one unless named.
        steps: How many are compared.
        groups: A group for every parameter.

    Returns:
        0 for the oracle's own path; NaN where the weights are.
    """
    method = bench.subject.claim.method
    start, base = problem.flat(), base or bench.bases[0]
    lr, momentum, decay = (
        (0.05, 0.9, 0.0 if method == "msam" else 0.01) if base == "sgd" else (0.02, 0.0, 0.05)
    )
    scaled = scaled_coordinates(bench, problem)
    optimizer = bench.build(problem, base, lr=lr, momentum=momentum, decay=decay, groups=groups)
    seen = [step.after for step in bench.trace(optimizer, problem, steps)]
    readings = []
    for convention in _conventions(method):
        oracle = oracles.ORACLES[method]({**bench.options, **convention}, scaled)
        if base == "sgd":
            path = oracles.sgd(start, problem.gradient, oracle, steps, lr, momentum, decay)
        else:
            path = oracles.adamw(start, problem.gradient, oracle, steps, lr, decay)
        worst = max(float((a - b).norm()) for a, b in zip(seen, path, strict=True))
        readings.append(worst / float((path[-1] - start).norm()))
    return min(readings, key=lambda x: math.inf if math.isnan(x) else x)


def _conventions(method: str) -> list[dict[str, object]]:
    """Readings of a paper that its own code and text do not settle: any of them passes."""
    if method == "fsam":
        return [{"fresh": fresh, "start": start} for fresh in (False, True) for start in ("g", "zero")]
    if method == "vasso":
        return [{"start": "g"}, {"start": "zero"}]
    return [{}]


ALL = set(oracles.ORACLES)


@check("step", "method", "six steps on a coupled quadratic are those of the paper", methods=ALL)
def step(bench: Bench) -> Measured:
    """Section 7.1: on f = w'Hw/2 over two tensors in two groups, SAM is w - lr H (w + rho Hw / ||Hw||).

    Of every method: six steps with momentum and weight decay against its oracle (of AdamW where the method
    cannot do with SGD). Figure: largest distance of the weights over the distance travelled.
    """
    return Measured(deviation(bench, coupled_quadratic(bench.dtype), groups=True), bench.tolerance)


@check(
    "step-adamw",
    "method",
    "six AdamW steps on a net are those of the paper",
    methods=ALL,
    variants="float64",
)
def step_adamw(bench: Bench) -> Measured:
    """Six steps over AdamW on a net of four tensors against the oracle; figure as for ``step``.

    Raises:
        NotApplicableError: The claim has no AdamW among its bases.
    """
    if "adamw" not in bench.bases:
        raise NotApplicableError("is not made for AdamW")
    # Adam divides by small numbers, which enlarges rounding.
    return Measured(deviation(bench, network(bench.dtype), "adamw"), 100 * bench.tolerance)


@check("limit-cycle", "method", "ends in a two-cycle of known amplitude", methods={"sam"}, variants="one")
def limit_cycle(bench: Bench) -> Measured:
    """Section 7.2: amplitude lr lam rho / (2 - lr lam) on the top eigenvector (Bartlett, Long & Bousquet 2022).

    H = diag(4, 1, 1/4), lr 0.1, rho 0.05: 0.0125. Figure: relative deviation, and of w_t + w_{t+1} from 0.
    """
    bench.require("rho")
    H = torch.diag(torch.tensor([4.0, 1.0, 0.25], dtype=bench.dtype))
    problem = on(Quadratic(H, torch.tensor([0.03, 0.002, 1e-6], dtype=bench.dtype)), bench.dtype)
    optimizer = bench.build(problem, rho=0.05)
    bench.steps(optimizer, problem, 200)
    last = bench.trace(optimizer, problem, 1)[0]
    size = abs(float(last.after.abs().max()) / 0.0125 - 1.0)
    return Measured(max(size, float((last.after + last.before).norm()) / 0.0125), 1e-6)


@check("evaluations", "method", "takes as many gradients as the method says", methods=ALL)
def evaluations(bench: Bench) -> Measured:
    """Section 7.8: T steps cost 2T gradient evaluations, T for MSAM, 3T for CR-SAM, T + ceil(T/k) for LookSAM.

    Figure: evaluations more or fewer in ten steps.
    """
    steps, method = 10, bench.subject.claim.method
    expected = {"msam": steps, "crsam": 3 * steps}.get(method, 2 * steps)
    if method == "looksam":
        expected = steps + math.ceil(steps / bench.options["k"])
    problem = coupled_quadratic(bench.dtype)
    bench.steps(bench.build(problem), problem, steps)
    taken = len(problem.points)
    return Measured(abs(taken - expected), 0.0, f"{taken} in {steps} steps, the method needs {expected}")


@check("rho-zero", "method", "without a radius it is the base optimizer, bit for bit")
def rho_zero(bench: Bench) -> Measured:
    """Section 7.4: rho = 0 reproduces the base optimizer bit for bit, SGD with momentum and AdamW.

    Methods that mix two gradients may do arithmetic on equal ones: there rounding is allowed. Figure: largest
    difference of a weight after five steps.

    Raises:
        NotApplicableError: The claim has no ``off``.
    """
    claim = bench.subject.claim
    if claim.off is None:
        raise NotApplicableError("no setting turns it into its base optimizer")
    worst = 0.0
    for base in bench.bases:
        one, two = network(bench.dtype), network(bench.dtype)
        plain = bench.base(base, lr=0.05, momentum=0.9)(one.model.parameters())
        for _ in range(5):
            plain.zero_grad()
            one.backward()
            plain.step()
        bench.steps(bench.build(two, base, lr=0.05, momentum=0.9, **claim.off), two, 5)
        worst = max(worst, float((one.flat() - two.flat()).abs().max()))
    exact = claim.method in DIRECT or claim.method not in ALL
    return Measured(worst, 0.0 if exact else 0.1 * bench.tolerance)


@check("lr-zero", "method", "with a learning rate of zero it goes nowhere")
def lr_zero(bench: Bench) -> Measured:
    """Section 7.4: with lr = 0 the weights are where they were, up to rounding; ``exact-restore`` wants the bits.

    Figure: distance after three steps over the length of the weights.
    """
    problem = network(bench.dtype)
    start = problem.flat()
    bench.steps(bench.build(problem, lr=0.0), problem, 3)
    return Measured(relative(problem.flat(), start), 1e-12 if bench.dtype == torch.float64 else 1e-5)


@check("exact-restore", "method", "the weights come back bit for bit", variants="all")
def exact_restore(bench: Bench) -> Measured:
    """Section 1.4: adding eps and subtracting it leaves rounding behind, which differs between ranks.

    Figure: entries that are not the same bit for bit after twenty steps with lr = 0.
    """
    problem = network(bench.dtype)
    start = problem.bits()
    bench.steps(bench.build(problem, lr=0.0), problem, 20)
    entries = sum(p.numel() for p in start)
    return Measured(differing(problem.bits(), start), 0.0, f"of {entries} entries")


@check("returned-loss", "contract", "step(closure) returns the loss at the weights")
def returned_loss(bench: Bench) -> Measured:
    """The closure's value at w, not at w + eps, as ``torch.optim`` has it. Figure: relative deviation.

    Raises:
        NotApplicableError: The caller computes the first loss, or the one gradient is taken elsewhere than at w.
        ViolationError: ``step(closure)`` returned None.
    """
    if not bench.subject.drive.returns_loss:
        raise NotApplicableError("the caller computes the first loss himself")
    problem = coupled_quadratic(bench.dtype)
    clean = float(problem.loss().detach())
    returned = bench.trace(bench.build(problem), problem, 1)[0].returned
    if returned is None:
        raise ViolationError("step(closure) returned None")
    if bench.subject.claim.method == "msam":
        raise NotApplicableError("takes its one gradient elsewhere than at the weights")
    return Measured(abs(float(returned) / clean - 1.0), bench.tolerance, f"L(w) = {clean:.6g}")


@check(
    "loss-scale",
    "method",
    "the scale of the loss does not matter",
    methods=NORMALISED | {"asam", "sparse_sam"},
)
def loss_scale(bench: Bench) -> Measured:
    """Section 7.17: a constant factor changes neither eps nor, divided out, the step.

    Figure: relative deviation of eps, and of the step at a learning rate divided by the factor.
    """
    plain = coupled_quadratic(bench.dtype)
    first = bench.trace(bench.build(plain), plain, 1)[0]
    worst = 0.0
    for factor in (1024.0, 2.0**-10):
        problem = coupled_quadratic(bench.dtype)
        problem.scale = factor
        other = bench.trace(bench.build(problem, lr=0.1 / factor), problem, 1)[0]
        moved = relative(other.after - other.before, first.after - first.before)
        worst = max(worst, relative(other.eps, first.eps), moved)
    return Measured(worst, bench.tolerance)
