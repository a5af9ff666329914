"""Slow, literal oracles: each method written out from its paper's equations, with no code of the optimizers.

Those of the conformance suite are used where they state a method; here is what it does not state (other norms, parts of
a batch, eigenvectors), and the base optimizers.

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

from optland.conformance.oracles import ORACLES
from optland.conformance.ours import NAMES

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


def stated(method: str, **letters: Any) -> Callable[[Gradient], Rule]:
    """The oracle of the conformance suite, which sees one flat vector, as a rule for a gradient."""

    def of(gradient: Gradient) -> Rule:
        held: list[Any] = []  # the oracle, with what it remembers

        def rule(w, base):
            def apart(x):
                parts = x.split([wi.numel() for wi in w])
                return [part.reshape(wi.shape) for part, wi in zip(parts, w, strict=True)]

            def flat(tensors):
                return torch.cat([x.flatten() for x in tensors])

            if not held:
                matrices = [torch.full_like(wi, wi.ndim >= 2, dtype=torch.bool) for wi in w]
                held.append(ORACLES[method](letters, flat(matrices)))
            velocity = flat(base.velocity or [torch.zeros_like(wi) for wi in w])
            handed = held[0](flat(w), lambda x: flat(gradient(apart(x))), velocity)
            addition = None if handed.correction is None else apart(-base.lr * handed.correction)
            return apart(handed.gradient), addition

        return rule

    return of


def sam_in_norm(gradient: Gradient, rho: float, p: float) -> Rule:
    """eps = rho sign(g) |g|^(q-1) / (||g||_q^q)^(1/p), 1/p + 1/q = 1."""

    def rule(w, base):
        g, q = gradient(w), 1.0 if p == math.inf else p / (p - 1.0)
        power = sum(abs(x) ** q for t in g for x in t.flatten().tolist())
        return gradient(plus(w, rho / power ** (1.0 / p), [x.sign() * x.abs() ** (q - 1.0) for x in g])), None

    return rule


def layer_sam(gradient: Gradient, rho: float) -> Rule:
    """eps_l = rho g_l / ||g_l|| for each tensor (Liu et al. 2022, without the weight's norm)."""
    return lambda w, base: (
        gradient([wi + over([gi], rho)[0] for wi, gi in zip(w, gradient(w), strict=True)]),
        None,
    )


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


def gsam_at_w(gradient: Gradient, rho: float, alpha: float) -> Rule:
    """g + alpha (h - proj_g h)."""

    def rule(w, base):
        g = gradient(w)
        h = gradient(plus(w, 1.0, over(g, rho)))
        return plus(g, alpha, plus(h, -inner(g, h) / inner(g, g), g)), None

    return rule


def looksam_bounded(gradient: Gradient, rho: float, k: int, alpha: float) -> Rule:
    """LookSAM whose alpha is at most ||g_v|| / ||g|| as it was when g_v was taken."""
    return looksam_parts([gradient], [1.0], rho, k, alpha, bounded=True)


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


Case = tuple[str, dict[str, Any], Callable[[Gradient], Rule]]


def case(method: str, **letters: Any) -> Case:
    """A method with its paper's letters against its oracle of the conformance suite."""
    spelled = NAMES.get(method, {})
    return method, {spelled.get(x, x): value for x, value in letters.items()}, stated(method, **letters)


CASES: dict[str, Case] = {
    # case: method, its options, the oracle
    "sam": case("sam", rho=0.05),
    "sam, p = 3": ("sam", {"rho": 0.05, "p": 3.0}, lambda f: sam_in_norm(f, 0.05, 3.0)),
    "sam, p = inf": ("sam", {"rho": 0.01, "p": math.inf}, lambda f: sam_in_norm(f, 0.01, math.inf)),
    "sam by tensor": ("sam", {"rho": 0.05, "scope": "tensor"}, lambda f: layer_sam(f, 0.05)),
    "asam": case("asam", rho=0.5, eta=0.01),
    "usam": case("usam", rho=0.3),
    "usam, between": case("usam", rho=0.3, lam=0.3),
    "msam": case("msam", rho=0.3),
    "looksam": case("looksam", rho=0.2, k=3, alpha=0.7, bounded=False),
    "looksam, bounded": (
        "looksam",
        {"rho": 0.05, "k": 3, "alpha": 0.7},
        lambda f: looksam_bounded(f, 0.05, 3, 0.7),
    ),
    "gsam": case("gsam", rho=0.2, alpha=0.4),
    "gsam at w": ("gsam", {"rho": 0.2, "alpha": 0.4, "descend": "w"}, lambda f: gsam_at_w(f, 0.2, 0.4)),
    "wsam": case("wsam", rho=0.1, gamma=0.8, decouple=True),
    "wsam coupled": case("wsam", rho=0.1, gamma=0.8, decouple=False),
    "pgn": case("pgn", rho=0.1, a=0.6),
    "fsam": case("fsam", rho=0.2, sigma=0.7, lam=0.6),
    "vasso": case("vasso", rho=0.2, theta=0.4),
    "lesam": case("lesam", rho=0.3, sigma=0.05),
    # Of its own: AdamW's second moment is here that of betas other than the default, and of the whole batch.
    "adam_sam": ("adam_sam", {"rho": 0.1, "delta": 1e-4}, lambda f: adam_sam(f, 0.1, 1e-4)),
    "fisher_sam": case("fisher_sam", rho=0.1, eta=3.0),
    "stable_sam": case("stable_sam", rho=0.2),
    "sparse_sam": case("sparse_sam", rho=0.2, sparsity=0.3, refresh=7),
    "crsam": case("crsam", rho=0.1, alpha=0.2, beta=0.05),
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
