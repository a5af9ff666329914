"""Three rows of the claims computed again by plain loops: dense Hessians in float64, no probe of optland.

    python benchmarks/claims_check.py                 # seeds 0 and 1 on digits, at the dial 'check' below
    python benchmarks/claims_check.py --result benchmarks/results/claims_check.json

The nets are trained by the loop below, step by step, from the same initial weights and in the same order of the data as
the bank's. Rows: sharpness of a large batch against a small one at equal training loss, conditioning of a deep net
against a wide one, and the effective dimension of a wide net against a deep one.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from optland.train.experiments.bank_run import BankRun, load_splits
from optland.train.experiments.claims import batch_size, wide_deep
from optland.train.experiments.claims.cells import plain
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.methods import large_batch
from optland.train.experiments.claims.table import Work
from optland.train.loops.loader import BatchLoader
from optland.train.loops.seeding import seed_everything

DIAL = Dial(
    data=("digits",), samples=128, seeds=2, units=8, epochs=160, probed=32, checks=20, gradients=16, level=1.5
)
ROWS = {
    "batch: sharpness": batch_size.CLAIMS[0],
    "wide / deep: conditioning": wide_deep.CLAIMS[0],
    "wide / deep: dimension": wide_deep.CLAIMS[2],
}


def logits_of(model: nn.Module, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The logits as a function of all weights in one float64 vector, and that vector."""
    named = {name: p.detach().double() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]

    def logits(v: Tensor) -> Tensor:
        parts = zip(named.items(), v.split(sizes), strict=True)
        weights = {name: part.reshape(p.shape) for (name, p), part in parts}
        return torch.as_tensor(functional_call(model, weights, (x.double(),)))

    return logits, torch.cat([p.flatten() for p in named.values()])


def sharpness(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Largest eigenvalue of the dense Hessian of the mean cross-entropy."""
    logits, w = logits_of(model, x)
    H = torch.autograd.functional.hessian(lambda v: F.cross_entropy(logits(v), y), w)
    return float(torch.linalg.eigvalsh(H)[-1])


def conditioning(model: nn.Module, x: Tensor) -> float:
    """Largest eigenvalue of the Gauss-Newton matrix over its mean one, from the small matrix with the same others."""
    logits, w = logits_of(model, x)
    J = torch.autograd.functional.jacobian(logits, w)
    p = logits(w).detach().softmax(1)
    root = p.sqrt()[:, :, None] * (torch.eye(p.shape[1]) - p[:, None, :])  # A = R'R for A = diag p - p p'
    B = torch.einsum("nab,nbd->nad", root, J).flatten(0, 1) / math.sqrt(len(x))
    values = torch.linalg.eigvalsh(B @ B.T)
    return float(values[-1] * len(w) / values.sum())


def literal(run: BankRun) -> dict[str, float]:
    """The run trained by a plain loop, with what the three rows read of it."""
    splits = load_splits(run)
    x, y = splits.train
    seed_everything(run.seed)
    model = splits.build(run)
    optimizer = torch.optim.SGD(model.parameters(), lr=run.optimizer.lr, momentum=run.optimizer.momentum)
    steps = run.steps(len(x))
    checks = {round((k + 1) * steps / min(DIAL.checks, steps)) for k in range(min(DIAL.checks, steps))}
    keep = {round((k + 1) * steps / DIAL.gradients) for k in range(DIAL.gradients)}
    loader = BatchLoader((x, y), run.batch_size, epochs=math.ceil(run.samples / len(x)), seed=run.seed)
    found: dict[str, float] = {}
    rows = []
    for step, (a, b) in enumerate(loader, 1):
        optimizer.zero_grad()
        F.cross_entropy(model(a), b).backward()
        optimizer.step()
        if step in keep:
            rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())  # type: ignore[union-attr]
        part = x[: DIAL.probed], y[: DIAL.probed]
        if step in checks and "lambda_max" not in found:
            with torch.no_grad():
                loss = float(F.cross_entropy(model(part[0]), part[1]))
            if loss <= DIAL.level:
                found["lambda_max"] = sharpness(model, *part) if run.net.width == DIAL.units else math.nan
                found["kappa"] = conditioning(model, part[0])
        if step == steps:
            break
    G = torch.stack(rows) - torch.stack(rows).mean(0)
    shares = torch.linalg.svdvals(G).square().cumsum(0)
    return found | {"k90": float((shares < 0.9 * shares[-1]).sum() + 1)}


def by_hand() -> dict[str, list[float]]:
    """The three effects of each seed."""
    effects: dict[str, list[float]] = {name: [] for name in ROWS}
    for seed in range(DIAL.seeds):
        small, large = (literal(make(DIAL, "digits", seed)) for make in (plain, large_batch))
        wide, deep = (
            literal(wide_deep.at_base(DIAL, "digits", seed, shape))
            for shape in (wide_deep.WIDE, wide_deep.DEEP)
        )
        effects["batch: sharpness"].append(large["lambda_max"] / small["lambda_max"])
        effects["wide / deep: conditioning"].append(deep["kappa"] / wide["kappa"])
        effects["wide / deep: dimension"].append(wide["k90"] / deep["k90"])
    return effects


def by_probes() -> tuple[dict[str, list[float]], dict[str, float]]:
    """The same from the bank, and the relative error that its measures admit."""
    with tempfile.TemporaryDirectory() as folder:
        work = Work(DIAL, folder, claims=tuple(ROWS.values()))
        for piece in work.missing():
            work.make(piece)
        effects = {row.claim.name: list(row.found.values["digits"]) for row in work.rows()}
        errors = {"batch: sharpness": 0.0, "wide / deep: conditioning": 0.0, "wide / deep: dimension": 0.0}
        for seed in range(DIAL.seeds):
            runs = [plain(DIAL, "digits", seed), large_batch(DIAL, "digits", seed)]
            nets = [
                wide_deep.at_base(DIAL, "digits", seed, shape) for shape in (wide_deep.WIDE, wide_deep.DEEP)
            ]
            level = work.evidence.at_level
            one = math.hypot(*(level(run, "lambda_error") / level(run, "lambda_max") for run in runs))
            two = math.hypot(*(level(run, "kappa_error") / level(run, "kappa") for run in nets))
            errors["batch: sharpness"] = max(errors["batch: sharpness"], one)
            errors["wide / deep: conditioning"] = max(errors["wide / deep: conditioning"], two)
    return effects, errors


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--result", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    plainly, (probed, errors) = by_hand(), by_probes()
    table: dict[str, Any] = {}
    agree = True
    for name in ROWS:
        pairs = list(zip(plainly[name], probed[name], strict=True))
        off = max(abs(math.log(b / a)) for a, b in pairs)
        within = off <= 4 * errors[name] + 1e-3  # standard errors of the trace; residuals bound the rest
        agree &= within
        table[name] = {
            "by hand": plainly[name],
            "by probes": probed[name],
            "error": errors[name],
            "agree": within,
        }
        means = [statistics.fmean(side) for side in zip(*pairs, strict=True)]
        print(
            f"{name}: by hand {means[0]:.4g}, by probes {means[1]:.4g}, off by {off:.2%}, admitted {errors[name]:.2%}"
        )
    if arguments.result is not None:
        arguments.result.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
