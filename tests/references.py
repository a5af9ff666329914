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


def looksam(gradient: Gradient, rho: float, k: int, alpha: float) -> Rule:
    """Each k-th step h, keeping g_v = h - proj_g h; else g + alpha (||g|| / ||g_v||) g_v."""

    def rule(w, base):
        if base.t % k == 0:
            g, h = both(gradient, w, rho)
            base.own["g_v"] = plus(h, -inner(h, g) / inner(g, g), g)
            return h, None
        g = gradient(w)
        return plus(g, 1.0, over(base.own["g_v"], alpha * total_norm(g))), None

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
