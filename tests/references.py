"""Slow, literal oracles: each method written out from its paper's equations, with no code of the package.

Everything is a flat list of float64 tensors; gradients come from a function of the weights. A method is a function
``rule(w, base)`` that returns the gradient for the base and an addition to the weights after its update, or None.
``base`` is what the base optimizer knows: its rate, its velocity or moments, and the number of the step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Gradient = Callable[[list[Tensor]], list[Tensor]]


def total_norm(tensors: list[Tensor]) -> float:
    """Square root of the sum of all squared entries, one entry after the other."""
    return sum(x * x for t in tensors for x in t.flatten().tolist()) ** 0.5


def inner(a: list[Tensor], b: list[Tensor]) -> float:
    """Sum of the products of all entries."""
    return sum(
        x * y
        for s, t in zip(a, b, strict=True)
        for x, y in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True)
    )


def plus(a: list[Tensor], factor: float, b: list[Tensor]) -> list[Tensor]:
    """a + factor b."""
    return [x + factor * y for x, y in zip(a, b, strict=True)]


def over(d: list[Tensor], radius: float) -> list[Tensor]:
    """radius d / ||d||, and zero for d = 0."""
    length = total_norm(d)
    return [radius * x / length if length > 0 else torch.zeros_like(x) for x in d]


@dataclass
class Base:
    """What the base optimizer knows before its step."""

    lr: float
    t: int = 0  # steps made
    velocity: list[Tensor] | None = None  # heavy-ball buffer, or first moment
    second: list[Tensor] | None = None  # second moment, corrected for its start
    own: dict[str, Any] = field(default_factory=dict)  # what the method keeps


Rule = Callable[[list[Tensor], Base], tuple[list[Tensor], list[Tensor] | None]]


def sgd_run(
    w: list[Tensor], rule: Rule, steps: int, lr: float, momentum: float, weight_decay: float
) -> list[Tensor]:
    """Heavy-ball SGD fed by a rule, weight decay at w."""
    w, base = [wi.clone() for wi in w], Base(lr)
    for _ in range(steps):
        h, addition = rule(w, base)
        d = plus(h, weight_decay, w)
        base.velocity = d if base.velocity is None else plus(d, momentum, base.velocity)
        w = plus(w, -lr, base.velocity)
        w = w if addition is None else plus(w, 1.0, addition)
        base.t += 1
    return w


def adamw_run(
    w: list[Tensor],
    rule: Rule,
    steps: int,
    lr: float,
    betas: tuple[float, float],
    floor: float,
    weight_decay: float,
) -> list[Tensor]:
    """AdamW (Loshchilov & Hutter 2019) fed by a rule."""
    (b1, b2), w, base = betas, [wi.clone() for wi in w], Base(lr)
    m, v = ([torch.zeros_like(wi) for wi in w] for _ in range(2))
    for t in range(1, steps + 1):
        h, addition = rule(w, base)
        m = [b1 * mi + (1 - b1) * hi for mi, hi in zip(m, h, strict=True)]
        v = [b2 * vi + (1 - b2) * hi * hi for vi, hi in zip(v, h, strict=True)]
        for i in range(len(w)):
            m_hat, v_hat = m[i] / (1 - b1**t), v[i] / (1 - b2**t)
            w[i] = w[i] * (1 - lr * weight_decay) - lr * m_hat / (v_hat.sqrt() + floor)
        w = w if addition is None else plus(w, 1.0, addition)
        base.t, base.velocity, base.second = t, m, [vi / (1 - b2**t) for vi in v]
    return w


def rmsprop_run(
    w: list[Tensor], rule: Rule, steps: int, lr: float, alpha: float, floor: float
) -> list[Tensor]:
    """RMSprop (Tieleman & Hinton 2012) fed by a rule."""
    w, base = [wi.clone() for wi in w], Base(lr)
    v = [torch.zeros_like(wi) for wi in w]
    for _ in range(steps):
        h, addition = rule(w, base)
        v = [alpha * vi + (1 - alpha) * hi * hi for vi, hi in zip(v, h, strict=True)]
        w = [wi - lr * hi / (vi.sqrt() + floor) for wi, hi, vi in zip(w, h, v, strict=True)]
        w = w if addition is None else plus(w, 1.0, addition)
        base.t += 1
    return w


def adadelta_run(
    w: list[Tensor], rule: Rule, steps: int, lr: float, rho: float, floor: float
) -> list[Tensor]:
    """Adadelta (Zeiler 2012) fed by a rule; rho is the decay of both its means."""
    w, base = [wi.clone() for wi in w], Base(lr)
    v, u = ([torch.zeros_like(wi) for wi in w] for _ in range(2))
    for _ in range(steps):
        h, addition = rule(w, base)
        v = [rho * vi + (1 - rho) * hi * hi for vi, hi in zip(v, h, strict=True)]
        d = [hi * (ui + floor).sqrt() / (vi + floor).sqrt() for hi, ui, vi in zip(h, u, v, strict=True)]
        u = [rho * ui + (1 - rho) * di * di for ui, di in zip(u, d, strict=True)]
        w = plus(w, -lr, d)
        w = w if addition is None else plus(w, 1.0, addition)
        base.t += 1
    return w


def asgd_run(w: list[Tensor], rule: Rule, steps: int, lr: float, lambd: float, alpha: float) -> list[Tensor]:
    """The weights of averaged SGD (Polyak & Juditsky 1992), whose rate falls as (1 + lambd lr t)^-alpha."""
    w, base, eta = [wi.clone() for wi in w], Base(lr), lr
    for t in range(1, steps + 1):
        h, addition = rule(w, base)
        w = [(1 - lambd * eta) * wi - eta * hi for wi, hi in zip(w, h, strict=True)]
        w = w if addition is None else plus(w, 1.0, addition)
        base.t, eta = t, lr / (1 + lambd * lr * t) ** alpha
    return w


# Perturbations ---------------------------------------------------------------------------------------


def sam(gradient: Gradient, rho: float, p: float = 2.0) -> Rule:
    """eps = rho g / ||g||; with another p, rho sign(g) |g|^(q-1) / (||g||_q^q)^(1/p)."""

    def rule(w, base):
        g = gradient(w)
        if p == 2.0:
            return gradient(plus(w, 1.0, over(g, rho))), None
        q = 1.0 if p == math.inf else p / (p - 1.0)
        power = sum(abs(x) ** q for t in g for x in t.flatten().tolist())
        return gradient(plus(w, rho / power ** (1.0 / p), [x.sign() * x.abs() ** (q - 1.0) for x in g])), None

    return rule


def layer_sam(gradient: Gradient, rho: float) -> Rule:
    """eps_l = rho g_l / ||g_l|| for each tensor (Liu et al. 2022, without the weight's norm)."""
    return lambda w, base: (
        gradient([wi + over([gi], rho)[0] for wi, gi in zip(w, gradient(w), strict=True)]),
        None,
    )


def asam(gradient: Gradient, rho: float, eta: float) -> Rule:
    """eps = rho T^2 g / ||T g||, with T = |w| + eta on matrices and 1 elsewhere."""

    def rule(w, base):
        g = gradient(w)
        T = [wi.abs() + eta if wi.ndim >= 2 else torch.ones_like(wi) for wi in w]
        length = total_norm([t * gi for t, gi in zip(T, g, strict=True)])
        return gradient([wi + rho * t * t * gi / length for wi, t, gi in zip(w, T, g, strict=True)]), None

    return rule


def usam(gradient: Gradient, rho: float, lam: float) -> Rule:
    """eps = rho (1 - lam + lam / ||g||) g."""

    def rule(w, base):
        g = gradient(w)
        return gradient(plus(w, rho * (1.0 - lam + lam / total_norm(g)), g)), None

    return rule


def lesam(gradient: Gradient, rho: float, sigma: float) -> Rule:
    """eps = min(sigma / ||g||, rho) g / ||g||."""

    def rule(w, base):
        g = gradient(w)
        return gradient(plus(w, 1.0, over(g, min(sigma / total_norm(g), rho)))), None

    return rule


def fisher_sam(gradient: Gradient, gamma: float, eta: float) -> Rule:
    """eps = gamma F^-1 g / sqrt(g' F^-1 g), F = 1 + eta g^2."""

    def rule(w, base):
        g = gradient(w)
        inverse = [gi / (1.0 + eta * gi * gi) for gi in g]
        return gradient(plus(w, gamma / inner(g, inverse) ** 0.5, inverse)), None

    return rule


def adam_sam(gradient: Gradient, rho: float, delta: float) -> Rule:
    """eps = rho P^-1 g / ||P^-1 g||, P = sqrt(v-hat) + delta of the steps before."""

    def rule(w, base):
        g = gradient(w)
        d = (
            g
            if base.second is None
            else [gi / (vi.sqrt() + delta) for gi, vi in zip(g, base.second, strict=True)]
        )
        return gradient(plus(w, 1.0, over(d, rho))), None

    return rule


def fsam(gradient: Gradient, rho: float, sigma: float, lam: float) -> Rule:
    """d = g - sigma m with m of the steps before; then m <- lam m + (1 - lam) g."""

    def rule(w, base):
        g = gradient(w)
        m = base.own.get("m")
        d = g if m is None else plus(g, -sigma, m)
        base.own["m"] = g if m is None else [lam * mi + (1 - lam) * gi for mi, gi in zip(m, g, strict=True)]
        return gradient(plus(w, 1.0, over(d, rho))), None

    return rule


def vasso(gradient: Gradient, rho: float, theta: float) -> Rule:
    """m <- (1 - theta) m + theta g; d = m."""

    def rule(w, base):
        g = gradient(w)
        m = base.own.get("m", g)
        base.own["m"] = [(1 - theta) * mi + theta * gi for mi, gi in zip(m, g, strict=True)]
        return gradient(plus(w, 1.0, over(base.own["m"], rho))), None

    return rule


def sparse_sam(gradient: Gradient, rho: float, sparsity: float, refresh: int) -> Rule:
    """SAM's eps where g^2 was among the largest when the mask was last made."""

    def rule(w, base):
        g = gradient(w)
        if base.t % refresh == 0:
            squares = sorted(x * x for t in g for x in t.flatten().tolist())
            cut = squares[int(sparsity * len(squares))]  # the smallest that is kept
            base.own["mask"] = [(gi * gi >= cut).to(gi) for gi in g]
        return gradient(
            [wi + m * e for wi, m, e in zip(w, base.own["mask"], over(g, rho), strict=True)]
        ), None

    return rule


def eigen_sam(
    gradient: Gradient, top: Callable[[list[Tensor]], list[Tensor]], rho: float, alpha: float
) -> Rule:
    """u = g-hat + alpha sign<g, v> (v - <v, g-hat> g-hat), with v the top eigenvector at w."""

    def rule(w, base):
        g = gradient(w)
        unit, v = over(g, 1.0), top(w)
        along = inner(unit, v)
        u = plus(unit, alpha * math.copysign(1.0, along), plus(v, -along, unit))
        return gradient(plus(w, 1.0, over(u, rho))), None

    return rule


def msam(gradient: Gradient, rho: float) -> Rule:
    """eps = -rho v / ||v|| with the velocity of the steps before; one gradient."""

    def rule(w, base):
        if base.velocity is None:
            return gradient(w), None
        return gradient(plus(w, 1.0, over(base.velocity, -rho))), None

    return rule


# Combinations ----------------------------------------------------------------------------------------


def both(gradient: Gradient, w: list[Tensor], rho: float) -> tuple[list[Tensor], list[Tensor]]:
    """g and SAM's h."""
    g = gradient(w)
    return g, gradient(plus(w, 1.0, over(g, rho)))


def gsam(gradient: Gradient, rho: float, alpha: float, descend: str = "w+eps") -> Rule:
    """h - alpha (g - proj_h g), or g + alpha (h - proj_g h)."""

    def rule(w, base):
        g, h = both(gradient, w, rho)
        if descend == "w+eps":
            return plus(h, -alpha, plus(g, -inner(g, h) / inner(h, h), h)), None
        return plus(g, alpha, plus(h, -inner(g, h) / inner(g, g), g)), None

    return rule


def wsam(gradient: Gradient, rho: float, gamma: float, decoupled: bool) -> Rule:
    """(1 - a) g + a h, a = gamma / (1 - gamma); decoupled: g, then w -= lr a (h - g)."""

    def rule(w, base):
        (g, h), a = both(gradient, w, rho), gamma / (1.0 - gamma)
        change = plus(h, -1.0, g)
        return (g, [-base.lr * a * c for c in change]) if decoupled else (plus(g, a, change), None)

    return rule


def pgn(gradient: Gradient, rho: float, a: float) -> Rule:
    """(1 - a) g + a h."""

    def rule(w, base):
        g, h = both(gradient, w, rho)
        return [(1 - a) * gi + a * hi for gi, hi in zip(g, h, strict=True)], None

    return rule


def stable_sam(gradient: Gradient, rho: float) -> Rule:
    """h ||g|| / ||h||."""

    def rule(w, base):
        g, h = both(gradient, w, rho)
        return over(h, total_norm(g)), None

    return rule


def looksam(gradient: Gradient, rho: float, k: int, alpha: float, *, bounded: bool = False) -> Rule:
    """Each k-th step h, keeping g_v = h - proj_g h; else g + alpha (||g|| / ||g_v||) g_v, alpha at most as seen."""

    def rule(w, base):
        if base.t % k == 0:
            g, h = both(gradient, w, rho)
            base.own["g_v"] = plus(h, -inner(h, g) / inner(g, g), g)
            base.own["seen"] = total_norm(base.own["g_v"]) / total_norm(g)
            return h, None
        g = gradient(w)
        length = min(alpha, base.own["seen"]) if bounded else alpha
        return plus(g, 1.0, over(base.own["g_v"], length * total_norm(g))), None

    return rule


def crsam(gradient: Gradient, rho: float, gamma: float, beta: float) -> Rule:
    """h+ + gamma (h+ + h- - 2 g) + beta (h+ - h-)."""

    def rule(w, base):
        g = gradient(w)
        eps = over(g, rho)
        up, down = gradient(plus(w, 1.0, eps)), gradient(plus(w, -1.0, eps))
        second = plus(plus(up, 1.0, down), -2.0, g)
        return plus(plus(up, gamma, second), beta, plus(up, -1.0, down)), None

    return rule


# A perturbation for each micro-batch (m-sharpness) ---------------------------------------------------
#
# ``gradients`` are those of each micro-batch's own mean loss, ``shares`` what each is of the batch.


def each_part(rule: Callable[[Gradient], Rule]) -> Callable[[list[Gradient], list[float]], Rule]:
    """The mean of what a rule without memory hands over for each micro-batch."""

    def of(gradients: list[Gradient], shares: list[float]) -> Rule:
        rules = [rule(gradient) for gradient in gradients]

        def mean(w, base):
            handed, addition = [torch.zeros_like(wi) for wi in w], None
            for one, share in zip(rules, shares, strict=True):
                h, more = one(w, base)
                handed = plus(handed, share, h)
                if more is not None:
                    addition = plus(addition or [torch.zeros_like(wi) for wi in w], share, more)
            return handed, addition

        return mean

    return of


def _mean(vectors: list[list[Tensor]], shares: list[float]) -> list[Tensor]:
    total = [torch.zeros_like(x) for x in vectors[0]]
    for vector, share in zip(vectors, shares, strict=True):
        total = plus(total, share, vector)
    return total


def fsam_parts(gradients: list[Gradient], shares: list[float], rho: float, sigma: float, lam: float) -> Rule:
    """d_i = g_i - sigma m with one m of the steps before; then m <- lam m + (1 - lam) mean g_i."""

    def rule(w, base):
        g, m = [gradient(w) for gradient in gradients], base.own.get("m")
        d = g if m is None else [plus(gi, -sigma, m) for gi in g]
        mean = _mean(g, shares)
        base.own["m"] = mean if m is None else plus([lam * x for x in m], 1 - lam, mean)
        h = [gradient(plus(w, 1.0, over(di, rho))) for gradient, di in zip(gradients, d, strict=True)]
        return _mean(h, shares), None

    return rule


def vasso_parts(gradients: list[Gradient], shares: list[float], rho: float, theta: float) -> Rule:
    """d_i = (1 - theta) m + theta g_i with one m of the steps before; then m moves to the mean of the d_i."""

    def rule(w, base):
        g, m = [gradient(w) for gradient in gradients], base.own.get("m")
        d = g if m is None else [plus([(1 - theta) * x for x in m], theta, gi) for gi in g]
        base.own["m"] = _mean(d, shares)
        h = [gradient(plus(w, 1.0, over(di, rho))) for gradient, di in zip(gradients, d, strict=True)]
        return _mean(h, shares), None

    return rule


def looksam_parts(
    gradients: list[Gradient], shares: list[float], rho: float, k: int, alpha: float, *, bounded: bool = False
) -> Rule:
    """g_v is the mean of the parts of h_i across g_i; in between each g_i is turned along it."""

    def rule(w, base):
        g = [gradient(w) for gradient in gradients]
        if base.t % k == 0:
            h = [gradient(plus(w, 1.0, over(gi, rho))) for gradient, gi in zip(gradients, g, strict=True)]
            rest = [plus(hi, -inner(hi, gi) / inner(gi, gi), gi) for hi, gi in zip(h, g, strict=True)]
            base.own["g_v"] = _mean(rest, shares)
            lengths = sum(s * total_norm(gi) for s, gi in zip(shares, g, strict=True))
            base.own["seen"] = total_norm(base.own["g_v"]) / lengths
            return _mean(h, shares), None
        length = min(alpha, base.own["seen"]) if bounded else alpha
        turned = [plus(gi, 1.0, over(base.own["g_v"], length * total_norm(gi))) for gi in g]
        return _mean(turned, shares), None

    return rule


CASES: dict[str, tuple[str, dict[str, Any], Callable[[Gradient], Rule]]] = {
    # case: method, its options, the oracle
    "sam": ("sam", {"rho": 0.05}, lambda f: sam(f, 0.05)),
    "sam, p = 3": ("sam", {"rho": 0.05, "p": 3.0}, lambda f: sam(f, 0.05, 3.0)),
    "sam, p = inf": ("sam", {"rho": 0.01, "p": math.inf}, lambda f: sam(f, 0.01, math.inf)),
    "sam by tensor": ("sam", {"rho": 0.05, "scope": "tensor"}, lambda f: layer_sam(f, 0.05)),
    "asam": ("asam", {"rho": 0.5, "eta": 0.01}, lambda f: asam(f, 0.5, 0.01)),
    "usam": ("usam", {"rho": 0.3}, lambda f: usam(f, 0.3, 0.0)),
    "usam, between": ("usam", {"rho": 0.3, "normalised": 0.3}, lambda f: usam(f, 0.3, 0.3)),
    "msam": ("msam", {"rho": 0.3}, lambda f: msam(f, 0.3)),
    "looksam": (
        "looksam",
        {"rho": 0.2, "k": 3, "alpha": 0.7, "bounded": False},
        lambda f: looksam(f, 0.2, 3, 0.7),
    ),
    "looksam, bounded": (
        "looksam",
        {"rho": 0.05, "k": 3, "alpha": 0.7},
        lambda f: looksam(f, 0.05, 3, 0.7, bounded=True),
    ),
    "gsam": ("gsam", {"rho": 0.2, "alpha": 0.4}, lambda f: gsam(f, 0.2, 0.4)),
    "gsam at w": (
        "gsam",
        {"rho": 0.2, "alpha": 0.4, "descend": "w"},
        lambda f: gsam(f, 0.2, 0.4, "w"),
    ),
    "wsam": ("wsam", {"rho": 0.1, "gamma": 0.8}, lambda f: wsam(f, 0.1, 0.8, True)),
    "wsam coupled": (
        "wsam",
        {"rho": 0.1, "gamma": 0.8, "decoupled": False},
        lambda f: wsam(f, 0.1, 0.8, False),
    ),
    "pgn": ("pgn", {"rho": 0.1, "a": 0.6}, lambda f: pgn(f, 0.1, 0.6)),
    "fsam": ("fsam", {"rho": 0.2, "sigma": 0.7, "decay": 0.6}, lambda f: fsam(f, 0.2, 0.7, 0.6)),
    "vasso": ("vasso", {"rho": 0.2, "theta": 0.4}, lambda f: vasso(f, 0.2, 0.4)),
    "lesam": ("lesam", {"rho": 0.3, "sigma": 0.05}, lambda f: lesam(f, 0.3, 0.05)),
    "adam_sam": ("adam_sam", {"rho": 0.1, "delta": 1e-4}, lambda f: adam_sam(f, 0.1, 1e-4)),
    "fisher_sam": ("fisher_sam", {"rho": 0.1, "eta": 3.0}, lambda f: fisher_sam(f, 0.1, 3.0)),
    "stable_sam": ("stable_sam", {"rho": 0.2}, lambda f: stable_sam(f, 0.2)),
    "sparse_sam": (
        "sparse_sam",
        {"rho": 0.2, "sparsity": 0.3, "refresh": 7},
        lambda f: sparse_sam(f, 0.2, 0.3, 7),
    ),
    "crsam": (
        "crsam",
        {"rho": 0.1, "gamma": 0.2, "beta": 0.05},
        lambda f: crsam(f, 0.1, 0.2, 0.05),
    ),
}
"""Name -> (method, options, its rule given a gradient); every method but Eigen-SAM, which needs more."""


PARTS: dict[str, Callable[[list[Gradient], list[float]], Rule]] = {
    "fsam": lambda f, shares: fsam_parts(f, shares, 0.2, 0.7, 0.6),
    "vasso": lambda f, shares: vasso_parts(f, shares, 0.2, 0.4),
    "looksam": lambda f, shares: looksam_parts(f, shares, 0.2, 3, 0.7),
    "looksam, bounded": lambda f, shares: looksam_parts(f, shares, 0.05, 3, 0.7, bounded=True),
    **{
        name: each_part(rule)
        for name, (_, _, rule) in CASES.items()
        if not name.startswith(("fsam", "vasso", "looksam", "sparse_sam"))
    },
}
"""Name of a case -> its rule given the gradients of micro-batches and their shares.

Sparse SAM is not among them: its mask is that of the first micro-batch.
"""


def first_second_step_run(
    w: list[Tensor], gradient: Gradient, steps: int, rho: float, lr: float, momentum: float, adaptive: bool
) -> list[Tensor]:
    """The most used implementation: 1e-12 under the division, and adaptive with |w| everywhere, without a floor."""
    w = [wi.clone() for wi in w]
    velocity: list[Tensor] | None = None
    for _ in range(steps):
        g = gradient(w)
        shape = [wi.abs() if adaptive else torch.ones_like(wi) for wi in w]
        scale = rho / (total_norm([s * gi for s, gi in zip(shape, g, strict=True)]) + 1e-12)
        h = gradient([wi + s * s * gi * scale for wi, s, gi in zip(w, shape, g, strict=True)])
        velocity = h if velocity is None else plus(h, momentum, velocity)
        w = plus(w, -lr, velocity)
    return w
