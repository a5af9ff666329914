"""Checks of exact identities of single methods, each from its paper's equations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optland.conformance.bench import Bench, Measured, Step, ViolationError, check, relative
from optland.conformance.checks.steps import NORMALISED, scaled_coordinates
from optland.conformance.oracles import ORACLES, unit
from optland.conformance.problems import Problem, Product, Quadratic, Slope, coupled_quadratic, on

LR = 0.1


def one_step(bench: Bench, **options: Any) -> tuple[Step, Problem]:
    """A first step of plain SGD on the coupled quadratic.

    Args:
        bench: Under test.
        **options: Of the method, over those of the claim.

    Returns:
        The record of the step, at ``LR``, and the problem after it.
    """
    problem = coupled_quadratic(bench.dtype)
    return bench.trace(bench.build(problem, lr=LR, groups=True, **options), problem, 1)[0], problem


def against_sam(bench: Bench, **options: Any) -> Measured:
    """Distance from four steps of SAM, over the distance travelled, when ``options`` make the method SAM.

    Args:
        bench: Under test.
        **options: Of the method, over those of the claim.
    """
    problem = coupled_quadratic(bench.dtype)
    w = start = problem.flat()
    seen = bench.trace(bench.build(problem, lr=LR, **options), problem, 4)
    oracle = ORACLES["sam"](bench.options, torch.ones_like(w, dtype=torch.bool))
    for _ in range(4):
        w = w - LR * oracle(w, problem.gradient, w).gradient
    return Measured(relative(seen[-1].after, w, w - start), bench.tolerance)


@check("radius", "method", "||eps|| is rho, over all tensors and groups", methods=NORMALISED | {"adam_sam"})
def radius(bench: Bench) -> Measured:
    """Section 7.1: one norm over everything; one for each tensor would give rho sqrt(number of tensors).

    Figure: relative deviation of ||eps|| from rho.
    """
    bench.require("rho")
    step, _ = one_step(bench)
    length = float(step.eps.norm())
    return Measured(abs(length / bench.options["rho"] - 1.0), bench.tolerance, f"||eps|| = {length:.4g}")


@check(
    "norm-precision",
    "method",
    "the norm has float64's digits",
    methods=NORMALISED | {"adam_sam"},
    variants="float64",
)
def norm_precision(bench: Bench) -> Measured:
    """Float64 weights are used where digits matter: a norm summed in float32 has eight of them.

    Figure: relative deviation of ||eps|| from rho.
    """
    bench.require("rho")
    step, _ = one_step(bench)
    return Measured(abs(float(step.eps.norm()) / bench.options["rho"] - 1.0), 1e-11)


@check("p-norm", "method", "||eps||_p = rho and g'eps = rho ||g||_q", methods={"sam"})
def p_norm(bench: Bench) -> Measured:
    """Section 7.6, for p in {1.5, 3}, 1/p + 1/q = 1. Figure: largest relative deviation of the two."""
    bench.require("p", "rho")
    worst, rho = 0.0, bench.options["rho"]
    for p in (1.5, 3.0):
        step, problem = one_step(bench, p=p)
        g = problem.gradient(step.before)
        dual = rho * float(g.norm(p / (p - 1.0)))
        worst = max(worst, abs(float(step.eps.norm(p)) / rho - 1.0), abs(float(g @ step.eps) / dual - 1.0))
    return Measured(worst, bench.tolerance)


@check("usam-stability", "method", "stable exactly below lr lam (1 + rho lam) = 2", methods={"usam"})
def usam_stability(bench: Bench) -> Measured:
    """Section 7.3: w+ = (I - lr H (I + rho H)) w, on both sides of the threshold.

    Figure: relative deviation of the factor by which the top coordinate is multiplied.
    """
    bench.require("rho")
    lam, rho, worst = 4.0, 0.05, 0.0
    for share in (0.9, 1.1):
        H = torch.diag(torch.tensor([lam, 1.0, 0.5], dtype=bench.dtype))
        problem = on(Quadratic(H, torch.tensor([1.0, 0.0, 0.0], dtype=bench.dtype)), bench.dtype)
        lr = share * 2.0 / (lam * (1.0 + rho * lam))
        last = bench.trace(bench.build(problem, lr=lr, rho=rho), problem, 10)[-1]
        factor = float(last.after[0] / last.before[0])
        worst = max(worst, abs(factor / (1.0 - 2.0 * share) - 1.0))
    return Measured(worst, bench.tolerance)


@check("asam-invariance", "method", "rescaling two layers changes nothing", methods={"asam"})
def asam_invariance(bench: Bench) -> Measured:
    """Section 7.5: for f = (w1 w2 - 1)^2, L(w + eps(w)) is the same at (c w1, w2 / c).

    Figure: largest relative deviation over c in {0.01, 30}.
    """
    bench.require("rho", "eta")
    values = []
    for c in (1.0, 0.01, 30.0):
        problem = on(Product(c, bench.dtype), bench.dtype)
        step = bench.trace(bench.build(problem, rho=0.1, eta=0.0), problem, 1)[0]
        values.append(float((step.points[1].prod() - 1.0) ** 2))
    return Measured(max(abs(v / values[0] - 1.0) for v in values), 10 * bench.tolerance)


@check("asam-radius", "method", "eps' T^-2 eps = rho^2", methods={"asam"})
def asam_radius(bench: Bench) -> Measured:
    """Section 7.5, over all tensors and groups. Figure: relative deviation of the square root."""
    bench.require("rho", "eta")
    step, problem = one_step(bench, eta=0.0)
    scaled = scaled_coordinates(bench, problem)
    T = torch.where(scaled, step.before.abs(), torch.ones_like(step.before))
    return Measured(abs(float((step.eps / T).norm()) / bench.options["rho"] - 1.0), 10 * bench.tolerance)


@check("gsam-orthogonal", "method", "what is taken from h is orthogonal to h", methods={"gsam"})
def gsam_orthogonal(bench: Bench) -> Measured:
    """Section 7.7: (out - h)'h = 0, and out differs from h. Figure: cosine of the two.

    Raises:
        ViolationError: Less than a thousandth of h is taken from it, so that the method is plain SAM.
    """
    step, problem = one_step(bench)
    h = problem.gradient(step.points[1])
    taken = step.received(LR) - h
    if float(taken.norm()) < 1e-3 * float(h.norm()):
        raise ViolationError("nothing is taken from h")
    return Measured(abs(float(unit(taken) @ unit(h))), 1e2 * bench.tolerance)


@check("gsam-alpha-zero", "method", "alpha = 0 is SAM", methods={"gsam"})
def gsam_alpha_zero(bench: Bench) -> Measured:
    """Section 7.7. Figure: distance from SAM over the distance travelled."""
    bench.require("alpha")
    return against_sam(bench, alpha=0.0)


@check("wsam-gamma-half", "method", "gamma = 1/2 is SAM", methods={"wsam"})
def wsam_gamma_half(bench: Bench) -> Measured:
    """Section 7.7. Figure: distance from SAM over the distance travelled."""
    bench.require("gamma")
    return against_sam(bench, gamma=0.5)


@check("wsam-gamma-zero", "method", "gamma = 0 is the base", methods={"wsam"})
def wsam_gamma_zero(bench: Bench) -> Measured:
    """Section 7.7. Figure: relative deviation of what SGD receives from g."""
    bench.require("gamma")
    step, problem = one_step(bench, gamma=0.0)
    return Measured(relative(step.received(LR), problem.gradient(step.before)), bench.tolerance)


@check("wsam-forms", "method", "coupled and decoupled agree over plain SGD", methods={"wsam"})
def wsam_forms(bench: Bench) -> Measured:
    """Section 7.7. Figure: distance of the two paths after four steps over the distance travelled."""
    bench.require("decouple")
    ends = []
    for decouple in (False, True):
        problem = coupled_quadratic(bench.dtype)
        start = problem.flat()
        bench.steps(bench.build(problem, lr=LR, decouple=decouple), problem, 4)
        ends.append(problem.flat() - start)
    return Measured(relative(ends[1], ends[0]), bench.tolerance)


@check("looksam-k-one", "method", "k = 1 is SAM", methods={"looksam"})
def looksam_k_one(bench: Bench) -> Measured:
    """Section 7.8. Figure: distance from SAM over the distance travelled."""
    bench.require("k")
    return against_sam(bench, k=1)


def _reuse(bench: Bench) -> tuple[Tensor, Tensor, Tensor]:
    """(g at the refresh, g at the reuse, out at the reuse) of two steps with k = 2."""
    bench.require("k", "alpha")
    problem = coupled_quadratic(bench.dtype)
    refresh, reuse = bench.trace(bench.build(problem, lr=LR, groups=True, k=2), problem, 2)
    return problem.gradient(refresh.before), problem.gradient(reuse.before), reuse.received(LR)


@check("looksam-reuse", "method", "on reuse ||out - g|| = alpha ||g||", methods={"looksam"})
def looksam_reuse(bench: Bench) -> Measured:
    """Section 7.8, with global norms. Figure: relative deviation."""
    _, g, out = _reuse(bench)
    share = float((out - g).norm() / g.norm())
    return Measured(abs(share / bench.options["alpha"] - 1.0), 10 * bench.tolerance, f"share {share:.4g}")


@check("looksam-orthogonal", "method", "g_v is orthogonal to its g", methods={"looksam"})
def looksam_orthogonal(bench: Bench) -> Measured:
    """Section 7.8: what reuse adds is along g_v, and g_v'g = 0 at the refresh. Figure: cosine."""
    g_then, g, out = _reuse(bench)
    return Measured(abs(float(unit(out - g) @ unit(g_then))), 1e2 * bench.tolerance)


@check("fsam-sigma-zero", "method", "sigma = 0 is SAM", methods={"fsam"})
def fsam_sigma_zero(bench: Bench) -> Measured:
    """Section 7.9. Figure: distance from SAM over the distance travelled."""
    bench.require("sigma")
    return against_sam(bench, sigma=0.0)


@check("fsam-constant", "method", "a constant gradient is no reason to go mad", methods={"fsam"})
def fsam_constant(bench: Bench) -> Measured:
    """Section 7.9: with sigma = 1 and a constant gradient d = 0, and eps must be 0 there, not NaN.

    Where the average starts at zero, d only tends to 0. Figure: relative deviation from plain SGD after six
    steps, which must be finite.
    """
    bench.require("sigma")
    problem = on(Slope(bench.dtype), bench.dtype)
    start = problem.flat()
    bench.steps(bench.build(problem, lr=LR, sigma=1.0), problem, 6)
    expected = start - 6 * LR * problem.gradient(start)
    return Measured(relative(problem.flat(), expected, expected - start), bench.tolerance)


@check("vasso-theta-one", "method", "theta = 1 is SAM", methods={"vasso"})
def vasso_theta_one(bench: Bench) -> Measured:
    """Section 7.9. Figure: distance from SAM over the distance travelled."""
    bench.require("theta")
    return against_sam(bench, theta=1.0)


@check("msam-point", "method", "the gradient is taken at w - rho v / ||v||", methods={"msam"})
def msam_point(bench: Bench) -> Measured:
    """Section 1.3: v is the momentum before the step. Figure: relative deviation of eps in step two."""
    bench.require("rho")
    problem = coupled_quadratic(bench.dtype)
    first, second = bench.trace(bench.build(problem, lr=LR, momentum=0.9), problem, 2)
    v = first.received(LR)
    eps = second.points[0] - second.before
    return Measured(relative(eps, -bench.options["rho"] * unit(v)), 10 * bench.tolerance)


@check("lesam-rise", "method", "g'eps = sigma below the cap", methods={"lesam"})
def lesam_rise(bench: Bench) -> Measured:
    """Section 7.11, and ||eps|| = rho at the cap. Figure: largest relative deviation of the two."""
    bench.require("sigma", "rho")
    free, problem = one_step(bench, sigma=0.05, rho=100.0)
    capped, _ = one_step(bench, sigma=1e6, rho=0.2)
    rise = float(problem.gradient(free.before) @ free.eps)
    return Measured(max(abs(rise / 0.05 - 1.0), abs(float(capped.eps.norm()) / 0.2 - 1.0)), bench.tolerance)


@check("fisher-radius", "method", "eps' F eps = rho^2", methods={"fisher_sam"})
def fisher_radius(bench: Bench) -> Measured:
    """Section 7.11 with F = 1 + eta g^2. Figure: relative deviation of the square root."""
    bench.require("rho", "eta")
    step, problem = one_step(bench)
    F = 1.0 + bench.options["eta"] * problem.gradient(step.before) ** 2
    length = float((step.eps * F) @ step.eps) ** 0.5
    return Measured(abs(length / bench.options["rho"] - 1.0), bench.tolerance)


@check("crsam-differences", "method", "on a quadratic the second difference is 0", methods={"crsam"})
def crsam_differences(bench: Bench) -> Measured:
    """Section 7.11: h+ - h- = 2 rho H ghat and h+ + h- = 2 g, so alpha changes nothing and beta adds the first.

    Figure: relative deviation of what SGD receives.
    """
    bench.require("rho", "alpha", "beta")
    worst = 0.0
    for alpha in (0.0, 0.5):
        step, problem = one_step(bench, alpha=alpha, beta=0.3)
        g = problem.gradient(step.before)
        rise = problem.gradient(step.before + bench.options["rho"] * unit(g)) - g
        worst = max(worst, relative(step.received(LR), g + 1.6 * rise))
    return Measured(worst, bench.tolerance)
