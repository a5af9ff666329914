"""Slow, literal oracles: each method written out from its paper's equations, with no code of the package.

Everything is a flat list of float64 tensors; gradients come from a function of the weights.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Gradient = Callable[[list[Tensor]], list[Tensor]]


def total_norm(tensors: list[Tensor]) -> float:
    """Square root of the sum of all squared entries, one entry after the other."""
    return sum(x * x for t in tensors for x in t.flatten().tolist()) ** 0.5


def sam_point(w: list[Tensor], g: list[Tensor], rho: float) -> list[Tensor]:
    """w + rho g / ||g||."""
    length = total_norm(g)
    return [wi + rho * gi / length for wi, gi in zip(w, g, strict=True)]


def asam_point(w: list[Tensor], g: list[Tensor], rho: float, eta: float, scaled: list[bool]) -> list[Tensor]:
    """w + rho T^2 g / ||T g||, with T = |w| + eta where ``scaled`` and 1 elsewhere."""
    T = [wi.abs() + eta if s else torch.ones_like(wi) for wi, s in zip(w, scaled, strict=True)]
    length = total_norm([t * gi for t, gi in zip(T, g, strict=True)])
    return [wi + rho * t * t * gi / length for wi, t, gi in zip(w, T, g, strict=True)]


def sgd_run(
    w: list[Tensor],
    gradient: Gradient,
    point: Callable[[list[Tensor], list[Tensor]], list[Tensor]],
    steps: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> list[Tensor]:
    """Heavy-ball SGD fed with the gradient at ``point(w, g)``, weight decay at w."""
    w = [wi.clone() for wi in w]
    velocity: list[Tensor] | None = None
    for _ in range(steps):
        h = gradient(point(w, gradient(w)))
        d = [hi + weight_decay * wi for hi, wi in zip(h, w, strict=True)]
        velocity = d if velocity is None else [momentum * v + di for v, di in zip(velocity, d, strict=True)]
        w = [wi - lr * vi for wi, vi in zip(w, velocity, strict=True)]
    return w


def adamw_run(
    w: list[Tensor],
    gradient: Gradient,
    point: Callable[[list[Tensor], list[Tensor]], list[Tensor]],
    steps: int,
    lr: float,
    betas: tuple[float, float],
    floor: float,
    weight_decay: float,
) -> list[Tensor]:
    """AdamW (Loshchilov & Hutter 2019) fed with the gradient at ``point(w, g)``."""
    b1, b2 = betas
    w = [wi.clone() for wi in w]
    m = [torch.zeros_like(wi) for wi in w]
    v = [torch.zeros_like(wi) for wi in w]
    for t in range(1, steps + 1):
        h = gradient(point(w, gradient(w)))
        m = [b1 * mi + (1 - b1) * hi for mi, hi in zip(m, h, strict=True)]
        v = [b2 * vi + (1 - b2) * hi * hi for vi, hi in zip(v, h, strict=True)]
        for i in range(len(w)):
            m_hat, v_hat = m[i] / (1 - b1**t), v[i] / (1 - b2**t)
            w[i] = w[i] * (1 - lr * weight_decay) - lr * m_hat / (v_hat.sqrt() + floor)
    return w


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
        velocity = h if velocity is None else [momentum * v + hi for v, hi in zip(velocity, h, strict=True)]
        w = [wi - lr * vi for wi, vi in zip(w, velocity, strict=True)]
    return w
