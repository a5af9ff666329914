r"""Slow, literal oracles: each method from the equations of its paper, in float64, on one flat vector.

Nothing of the package is used. An oracle is called with the weights and the gradient as a function of them,
and returns what the base optimizer receives; its own state (a moving average, a cached gradient) is in it.

The functions that make an oracle take ``o``, the method's parameters in the letters of its paper, and ``scaled``, a
mask (d,) of the coordinates that an adaptive method scales (all others use it not). Letters that stand for a reading of
the paper that is left open, such as ``start``, have a default here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["ORACLES", "Handed", "Oracle", "adamw", "sgd", "unit"]

Gradient = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Handed:
    """The gradient that one step hands to the base optimizer, and a correction after the base's step.

    Attributes:
        gradient: (d,).
        correction: (d,), for methods with a decoupled part; w <- w - lr correction.
    """

    gradient: Tensor
    correction: Tensor | None = None  # w -= lr * correction after the base's step


Oracle = Callable[[Tensor, Gradient, Tensor], Handed]
"""(weights, gradient function, base's momentum buffer) -> what the base receives."""


def unit(g: Tensor) -> Tensor:
    """The unit vector g / ||g||, and 0 for 0.

    Example:
        >>> unit(torch.tensor([3.0, 4.0])), unit(torch.zeros(2))
        (tensor([0.6000, 0.8000]), tensor([0., 0.]))
    """
    length = math.sqrt(sum(x * x for x in g.tolist()))
    return g / length if length > 0 else torch.zeros_like(g)


def sam(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Foret et al. 2021: h = grad(w + rho g / ||g||).

    Args:
        o: ``rho``, the radius.
        scaled: Not used.
    """
    return lambda w, f, v: Handed(f(w + o["rho"] * unit(f(w))))


def usam(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Andriushchenko & Flammarion 2022: eps = rho (1 - lam + lam / ||g||) g; lam = 0 unless given.

    Args:
        o: ``rho``, the radius per unit of gradient, and ``lam``, the share of the normalised direction: 1 is SAM.
        scaled: Not used.
    """
    lam = o.get("lam", 0.0)
    return lambda w, f, v: Handed(f(w + o["rho"] * ((1 - lam) * f(w) + lam * unit(f(w)))))


def asam(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Kwon et al. 2021: eps = rho T^2 g / ||T g||, T = |w| + eta on the coordinates ``scaled``, else 1.

    Args:
        o: ``rho``, a radius relative to the weights, and ``eta``, which keeps a weight of 0 from standing still.
        scaled: Where T is |w| + eta.
    """

    def step(w: Tensor, f: Gradient, v: Tensor) -> Handed:
        T = torch.where(scaled, w.abs() + o["eta"], torch.ones_like(w))
        return Handed(f(w + o["rho"] * T * unit(T * f(w))))

    return step


def gsam(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Zhuang et al. 2022: h - alpha (g - proj_h g).

    Args:
        o: ``rho``, the radius, and ``alpha``, the weight of the component of g across h.
        scaled: Not used.
    """

    def step(w: Tensor, f: Gradient, v: Tensor) -> Handed:
        g = f(w)
        h = f(w + o["rho"] * unit(g))
        return Handed(h - o["alpha"] * (g - (g @ unit(h)) * unit(h)))

    return step


def wsam(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Yue et al. 2023: (1 - a) g + a h with a = gamma / (1 - gamma), or the base with g and then -lr a (h - g).

    Args:
        o: ``rho``, the radius, ``gamma`` in [0, 1), where 1/2 is SAM and 0 the base, and ``decouple``.
        scaled: Not used.
    """
    a = o["gamma"] / (1.0 - o["gamma"])

    def step(w: Tensor, f: Gradient, v: Tensor) -> Handed:
        g = f(w)
        h = f(w + o["rho"] * unit(g))
        return Handed(g, a * (h - g)) if o.get("decouple", False) else Handed((1 - a) * g + a * h)

    return step


def looksam(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Liu et al. 2022: every k-th step h, of which g_v = h - proj_g h is kept; else g + alpha ||g|| g_v / ||g_v||.

    Args:
        o: ``rho``, the radius, ``k``, the steps from one refresh to the next, and ``alpha``, the weight of what is
            reused.
        scaled: Not used.
    """
    kept: list[Tensor] = []

    def step(w: Tensor, f: Gradient, v: Tensor) -> Handed:
        g, count = f(w), len(kept)
        if count % o["k"] == 0:
            h = f(w + o["rho"] * unit(g))
            kept.append(h - (h @ unit(g)) * unit(g))
            return Handed(h)
        kept.append(kept[-1])
        return Handed(g + o["alpha"] * math.sqrt(float(g @ g)) * unit(kept[-1]))

    return step


def fsam(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Li et al. 2024: eps along d = g - sigma m, m <- lam m + (1 - lam) g.

    The paper and its code differ in whether m holds this step's g yet and in where it starts; ``fresh`` and
    ``start`` choose.

    Args:
        o: ``rho``, the radius, ``sigma``, the share of m that is taken away, ``lam``, the decay of m; and the two
            readings ``fresh`` (m with this step's g) and ``start`` (``"zero"``, or else the first g).
        scaled: Not used.
    """
    held: list[Tensor] = []

    def step(w: Tensor, f: Gradient, v: Tensor) -> Handed:
        g = f(w)
        first = not held
        old = held[-1] if held else (torch.zeros_like(g) if o.get("start") == "zero" else g)
        m = o["lam"] * old + (1 - o["lam"]) * g
        held.append(m)
        d = g - o["sigma"] * (m if o.get("fresh") else old)
        if first and not o.get("fresh"):
            d = g
        return Handed(f(w + o["rho"] * unit(d)))

    return step


def vasso(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Li & Giannakis 2023: eps along m <- (1 - theta) m + theta g, started at 0 or at the first g.

    Args:
        o: ``rho``, the radius, ``theta``, the weight of the new gradient, where 1 is SAM; and ``start`` as in
            :func:`fsam`.
        scaled: Not used.
    """
    held: list[Tensor] = []

    def step(w: Tensor, f: Gradient, v: Tensor) -> Handed:
        g = f(w)
        old = held[-1] if held else (torch.zeros_like(g) if o.get("start") == "zero" else g)
        held.append((1 - o["theta"]) * old + o["theta"] * g)
        return Handed(f(w + o["rho"] * unit(held[-1])))

    return step


def msam(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Becker et al. 2024: the one gradient is taken at w - rho v / ||v||, v the momentum before this step.

    Args:
        o: ``rho``, the radius.
        scaled: Not used.
    """
    return lambda w, f, v: Handed(f(w - o["rho"] * unit(v)))


def lesam(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """SAM with the radius min(sigma / ||g||, rho): a fixed first-order rise of the loss.

    Args:
        o: ``sigma``, the rise in units of the loss, and ``rho``, the largest radius.
        scaled: Not used.
    """

    def step(w: Tensor, f: Gradient, v: Tensor) -> Handed:
        g = f(w)
        return Handed(f(w + min(o["sigma"] / math.sqrt(float(g @ g)), o["rho"]) * unit(g)))

    return step


def fisher_sam(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Kim et al. 2022: eps = rho F^-1 g / sqrt(g' F^-1 g), with F = 1 + eta g^2 on the diagonal.

    Args:
        o: ``rho``, the radius in the metric F, and ``eta``, the weight of the squared gradient in it.
        scaled: Not used.
    """

    def step(w: Tensor, f: Gradient, v: Tensor) -> Handed:
        g = f(w)
        down = g / (1.0 + o["eta"] * g * g)
        return Handed(f(w + o["rho"] * down / math.sqrt(float(g @ down))))

    return step


def crsam(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Wu et al. 2024: h+ + alpha (h+ + h- - 2 g) + beta (h+ - h-), h+- at w +- eps.

    Args:
        o: ``rho``, the radius, ``alpha``, the weight of the second difference, and ``beta``, that of the first.
        scaled: Not used.
    """

    def step(w: Tensor, f: Gradient, v: Tensor) -> Handed:
        g = f(w)
        up, down = f(w + o["rho"] * unit(g)), f(w - o["rho"] * unit(g))
        return Handed(up + o["alpha"] * (up + down - 2 * g) + o["beta"] * (up - down))

    return step


def pgn(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Zhao et al. 2022: (1 - a) g + a h.

    Args:
        o: ``rho``, the radius, and ``a``, the share of h: 1 is SAM, 0 the base.
        scaled: Not used.
    """
    return lambda w, f, v: Handed((1 - o["a"]) * f(w) + o["a"] * f(w + o["rho"] * unit(f(w))))


def stable_sam(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Tan et al. 2025: along h with the length of g.

    Args:
        o: ``rho``, the radius.
        scaled: Not used.
    """

    def step(w: Tensor, f: Gradient, v: Tensor) -> Handed:
        g = f(w)
        return Handed(math.sqrt(float(g @ g)) * unit(f(w + o["rho"] * unit(g))))

    return step


def sparse_sam(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Mi et al. 2022: SAM's eps on the share 1 - s of coordinates with the largest g^2 at the last refresh.

    Args:
        o: ``rho``, the radius before the mask, ``sparsity``, the share s that is left out, and ``refresh``, the steps
            that a mask lasts.
        scaled: Not used.
    """
    masks: list[Tensor] = []

    def step(w: Tensor, f: Gradient, v: Tensor) -> Handed:
        g = f(w)
        if len(masks) % o["refresh"] == 0:
            order = sorted(range(len(g)), key=lambda i: abs(float(g[i])))
            mask = torch.ones_like(g)
            mask[order[: int(o["sparsity"] * len(g))]] = 0.0
            masks.append(mask)
        else:
            masks.append(masks[-1])
        return Handed(f(w + masks[-1] * o["rho"] * unit(g)))

    return step


def adam_sam(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Singh et al. 2025: eps along g / (sqrt(v-hat) + delta), with AdamW's second moment before this step.

    Args:
        o: ``rho``, the radius, and ``delta``, added to the root of the second moment.
        scaled: Not used.
    """
    received: list[Tensor] = []

    def step(w: Tensor, f: Gradient, v: Tensor) -> Handed:
        g, steps = f(w), len(received)
        # v-hat as one weighted mean, where Adam has a recursion
        weights = [0.999 ** (steps - 1 - i) for i in range(steps)]
        second = sum((a * h * h for a, h in zip(weights, received, strict=True)), torch.zeros_like(g))
        d = g / ((second / sum(weights)).sqrt() + o["delta"]) if received else g
        received.append(f(w + o["rho"] * unit(d)))
        return Handed(received[-1])

    return step


def eigensam(o: Mapping[str, Any], scaled: Tensor) -> Oracle:
    """Luo et al. 2024, where the top eigenvector v is along (1, ..., 1): eps along ghat + alpha sign(ghat'v) v_perp.

    Args:
        o: ``rho``, the radius, and ``alpha``, the weight of the top eigenvector's part across g.
        scaled: Not used.
    """

    def step(w: Tensor, f: Gradient, v: Tensor) -> Handed:
        g = unit(f(w))
        top = unit(torch.ones_like(g))
        along = float(g @ top)
        return Handed(f(w + o["rho"] * unit(g + o["alpha"] * math.copysign(1.0, along) * (top - along * g))))

    return step


ORACLES: dict[str, Callable[[Mapping[str, Any], Tensor], Oracle]] = {
    **{f.__name__: f for f in (sam, usam, asam, gsam, wsam, pgn, looksam, fsam, vasso, msam, lesam)},
    **{f.__name__: f for f in (fisher_sam, adam_sam, eigensam, stable_sam, sparse_sam, crsam)},
}


def sgd(
    w: Tensor, f: Gradient, method: Oracle, steps: int, lr: float, momentum: float = 0.0, decay: float = 0.0
) -> list[Tensor]:
    """Heavy-ball SGD around a method: the weights after each step.

    Args:
        w: Start (d,) in float64.
        f: The gradient at a point.
        method: What each step hands over; its state goes on from one step to the next.
        steps: How many.
        lr: Learning rate.
        momentum: v <- momentum v + d, without dampening; v is d in the first step, as in PyTorch.
        decay: L2 penalty: decay w is added to what the method hands over.

    Returns:
        ``steps`` tensors (d,).

    Example:
        >>> plain = lambda w, f, v: Handed(f(w))
        >>> sgd(torch.ones(1), lambda w: w, plain, 2, lr=0.5)
        [tensor([0.5000]), tensor([0.2500])]
    """
    v, path = torch.zeros_like(w), []
    for t in range(steps):
        handed = method(w, f, v)
        d = handed.gradient + decay * w
        v = d if t == 0 else momentum * v + d
        w = w - lr * v
        if handed.correction is not None:
            w = w - lr * handed.correction
        path.append(w)
    return path


def adamw(w: Tensor, f: Gradient, method: Oracle, steps: int, lr: float, decay: float) -> list[Tensor]:
    """AdamW (Loshchilov & Hutter 2019) with betas (0.9, 0.999) around a method: the weights after each step.

    Args:
        w: Start (d,) in float64.
        f: The gradient at a point.
        method: What each step hands over; its state goes on from one step to the next.
        steps: How many.
        lr: Learning rate.
        decay: Decoupled: w is multiplied by 1 - lr decay before the move.

    Returns:
        ``steps`` tensors (d,).

    Example:
        >>> plain = lambda w, f, v: Handed(f(w))
        >>> w = adamw(torch.ones(1), lambda w: w, plain, 1, lr=0.1, decay=0.5)[0]
        >>> round(float(w), 4)  # 1 (1 - 0.05) - 0.1
        0.85
    """
    m, s, path = torch.zeros_like(w), torch.zeros_like(w), []
    for t in range(1, steps + 1):
        handed = method(w, f, m)
        m = 0.9 * m + 0.1 * handed.gradient
        s = 0.999 * s + 0.001 * handed.gradient**2
        w = w * (1 - lr * decay) - lr * (m / (1 - 0.9**t)) / ((s / (1 - 0.999**t)).sqrt() + 1e-8)
        if handed.correction is not None:
            w = w - lr * handed.correction
        path.append(w)
    return path
