"""Curvature on many kinds of nets against differences in float64: right within its stated error, refused, or wrong.

    python benchmarks/curvature_nets.py                  # all nets, about five minutes
    python benchmarks/curvature_nets.py --nets lstm bf16

The nets and their oracles are those of the tests (tests/nets.py): a plain float64 twin of every net, its gradient also
by differences of losses, its Hessian by differences of gradients, its Gauss-Newton matrix from differences of outputs
and the closed form of the loss. A net whose forward bounds its weights is compared at the weights it leaves.

=============  ==================================================  ====================================================
quantity       of the package                                      right when
=============  ==================================================  ====================================================
loss           ``Objective.value``                                 within the net's own arithmetic
gradient       ``Objective.gradient``                              the same, in length
hvp            a product along a random vector                     within 3 stated errors of a product, and rounding
lambda_max     ``lanczos``, residual 1e-3                          within 2 stated residuals, and rounding
trace          ``trace`` with 30 products                          within 5 standard errors, and rounding
ggn_trace      the same of the Gauss-Newton matrix                 likewise
critical_step  along the negative gradient                         the twin's root lies in the bracket
=============  ==================================================  ====================================================

Rounding is 1e-5 of the size of what is compared (1e-4 of sum_ij |H_ij| for a trace, whose terms cancel).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from nets import NETS, Net, Net64, net  # noqa: E402

from optland import vectors  # noqa: E402
from optland.curvature import critical_step, ggn, hessian, lanczos, trace  # noqa: E402
from optland.objective import Objective  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "curvature_nets.json"
ROUNDING = 1e-5
SIGMAS = 5.0


@dataclass
class Row:
    """One quantity of one net; a vector is given by its length and ``apart``, its distance from the oracle."""

    net: str
    quantity: str
    value: float | None
    oracle: float | None
    apart: float | None
    stated_error: float | None
    verdict: str
    method: str
    reason: str


def rows_of(name: str) -> Iterator[Row]:
    found = net(name)
    twin = Net64(found)
    L = Objective(found.model, found.loss_fn, found.batches, mode=found.mode)
    g, H = twin.gradient(), twin.hessian()
    by_losses = float((twin.gradient_by_losses() - g).norm())
    loss = float(twin.loss())

    def attempt(quantity: str, measure: Callable[[], Row]) -> Row:
        try:
            return measure()
        except (RuntimeError, TypeError, ValueError) as error:
            return Row(found.name, quantity, None, None, None, None, "refused", "", str(error))

    def scalar(quantity: str, value: float, oracle: float, error: float, allowed: float, how: Any) -> Row:
        apart = abs(value - oracle)
        verdict = "right" if apart <= allowed else "wrong"
        return Row(found.name, quantity, value, oracle, apart, error, verdict, how.method, how.reason)

    class Plain:
        method = "backward()" if L.notes.backward else "autograd.grad"
        reason = L.notes.backward

    def of_loss() -> Row:
        return scalar("loss", L.value(), loss, 0.0, found.digits * abs(loss), Plain)

    def of_gradient() -> Row:
        own = vectors.flatten(L.gradient()).double()
        apart, length = float((own - g).norm()), float(g.norm())
        right = apart <= found.digits * length
        # A gradient that is not that of the loss is PyTorch's; curvature is refused there.
        detached = by_losses > 1e-6 * length
        reason = "autograd's gradient, which is not that of the loss" if detached else L.notes.backward
        method = "backward()" if L.notes.backward else "autograd.grad"
        verdict = "right" if right else "wrong"
        return Row(found.name, "gradient", float(own.norm()), length, apart, 0.0, verdict, method, reason)

    def of_product() -> Row:
        u, operator = vectors.random_unit(L.params, 1), hessian(L)
        own = vectors.flatten(operator.matvec(u)).double()
        exact = H @ vectors.flatten(u).double()
        apart, error = float((own - exact).norm()), operator.product_error
        right = apart <= 3 * error + ROUNDING * float(exact.norm())
        return Row(
            found.name, "hvp", float(own.norm()), float(exact.norm()), apart, error,
            "right" if right else "wrong", operator.method, operator.reason,
        )  # fmt: skip

    def of_top() -> Row:
        operator = hessian(L)
        top, exact = lanczos(operator, k=1, rtol=1e-3).top, float(torch.linalg.eigvalsh(H)[-1])
        allowed = 2 * top.error + ROUNDING * abs(exact)
        return scalar("lambda_max", top.value, exact, top.error, allowed, operator)

    def of_trace(quantity: str, make: Any, matrix: Callable[[], torch.Tensor]) -> Row:
        operator = make(L)
        total, exact = trace(operator), matrix()
        allowed = SIGMAS * total.error + 1e-4 * float(exact.abs().sum())
        return scalar(quantity, total.value, float(exact.trace()), total.error, allowed, operator)

    def of_step() -> Row:
        d = [-t for t in L.gradient()]
        step = critical_step(L, d, rtol=0.02, max_forwards=20).step
        root = root_of(twin, found)
        how = Plain()
        how.method, how.reason = "forward only", ""
        if math.isnan(step.error):  # the loss fell as far as was looked: a bound from below
            verdict = "right" if root >= step.value else "wrong"
            return Row(
                found.name, "critical_step", step.value, root, None, None, verdict, how.method, step.note
            )
        allowed = 1.1 * step.error + 1e-3 * abs(root)
        return scalar("critical_step", step.value, root, step.error, allowed, how)

    yield attempt("loss", of_loss)
    yield attempt("gradient", of_gradient)
    yield attempt("hvp", of_product)
    yield attempt("lambda_max", of_top)
    yield attempt("trace", lambda: of_trace("trace", hessian, lambda: H))
    if found.mode == "eval" and found.has_outputs:
        yield attempt("ggn_trace", lambda: of_trace("ggn_trace", ggn, twin.gauss_newton))
    yield attempt("critical_step", of_step)


def root_of(twin: Net64, found: Net) -> float:
    """Where the twin's loss along the negative gradient is back at its start; by doubling and bisection."""
    start, d = twin.start, -twin.gradient()
    own = [p.detach().double().flatten() for p in found.model.parameters() if p.requires_grad]
    w, base = torch.cat(own), float(twin.loss())

    def rises(t: float) -> bool:
        with torch.no_grad():
            return float(twin.loss(bounded(found, w + t * d))) > base

    high = 1.0
    while not rises(high) and high < 1e6:
        high *= 2
    low = high / 2
    while low > 1e-9 and rises(low):
        low, high = low / 2, low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rises(middle) else (middle, high)
    torch.nn.utils.vector_to_parameters(start, twin.params)
    return (low + high) / 2


def bounded(found: Net, w: torch.Tensor) -> torch.Tensor:
    """The weights as a forward that bounds its embedding leaves them."""
    e: Any = getattr(found.model, "e", None)
    bound = getattr(e, "max_norm", None)
    if bound is None:
        return w
    rows = w[: e.weight.numel()].view_as(e.weight).clone()
    used = torch.cat([b[0].flatten() for b in found.batches]).unique()
    torch.embedding_renorm_(rows, used, bound, 2.0)
    return torch.cat([rows.flatten(), w[e.weight.numel() :]])  # the embedding comes first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # PyTorch's compiler and its older norms warn of themselves
    rows = []
    for name in arguments.nets:
        for row in rows_of(name):
            rows.append(row)
            value = "" if row.value is None else f"{row.value:.5g} for {row.oracle:.5g} +- {row.stated_error}"
            print(f"{row.net:32s} {row.quantity:14s} {row.verdict:8s} {value}", flush=True)
    counts = {verdict: sum(r.verdict == verdict for r in rows) for verdict in ("right", "refused", "wrong")}
    print(counts)
    result = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "nets": len(arguments.nets),
        "counts": counts,
        "rows": [{k: _plain(v) for k, v in asdict(row).items()} for row in rows],
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if counts["wrong"] else 0)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
