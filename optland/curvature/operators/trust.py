r"""Check PyTorch's second derivatives of a kind of graph: one product against differences of gradients.

.. math:: H u \stackrel{?}{=} \frac{g(\theta + h u) - g(\theta - h u)}{2h}

A backward written by hand may be differentiated twice without an error and without its curvature; kernels of PyTorch
have had wrong second derivatives, and some have wrong forward-mode ones. A wrong product is the same at every
repetition: a trace of it comes out wrong with an error of zero. So no graph is trusted unseen.

**How.** On the first samples of the first batch, whose graph is of the same kind, along a random unit vector u of its
own, since a special one (an eigenvector, a coordinate) may miss the fault. Where product and difference are apart by
more than a smooth loss explains, the difference is taken again on a float64 copy, with steps so short that hardly a
kink lies inside; where that copy cannot be had, with the error that
:mod:`~optland.curvature.operators.finite_difference` states. What is right in float64 and coarse in its own precision
(an autocast inside the model) is right, with that error stated. Parameters that the forward writes are held still.

**Not the gradient of the loss.** Where something is detached, or straight-through, the gradient itself is not that of
the loss, and no way to multiply gives its Hessian. Differences of the loss tell, and the verdict says so.

**Cost.** A product and two gradients of eight samples; more only where they disagree. The verdict is kept in the
model's notes, so that the next operator on the same kind of graph does not pay again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optland import vectors
from optland.context.notes import Verdict
from optland.curvature.operators.products import Product
from optland.objective import FORWARD_GE, Objective
from optland.vectors import Vector

__all__ = ["Comparison", "Differences", "Ways", "a_part", "compare", "kind_of"]

Differences = Callable[[Objective, Vector, float], list[Tensor]]
"""A product with a unit vector from first derivatives alone, with a step."""

SEED = 20_011

PART = 8
"""Samples that a comparison looks at."""

SMOOTH = {torch.float64: 1e-5, torch.float32: 5e-4}
"""Relative distance from one difference up to which a product is right, no more asked."""

DISTANCE = {torch.float64: 1e-4, torch.float32: 1e-2}
"""The same at the second look, beside the error of the difference."""

FINE = 1e-4
"""Relative error of a product in its own precision that needs no words."""

COARSE = 0.1
"""Relative error of a product in its own precision up to which it is right (and the error stated), where it is right in
float64: an autocast inside the model leaves two or three digits."""

LOST = 1e-3
"""Relative error of a gradient that has few digits left in its own precision."""

SAME_LOSS = 1e-2
"""Relative distance of the loss in float64 up to which it is the same function; other dropout masks make another."""

LARGEST_COPY = 4.0
"""Frozen parameters relative to trainable ones, up to which a model is copied in float64."""

SHORTER = 4.0
"""Factor from one step of the second look to the next, to tell their error."""

MARGIN = 4.0
"""On the error of a difference."""

UNDECIDED = 0.5
"""Error of a difference, relative to product and difference, beyond which it tells nothing."""

SLOPE = {torch.float64: 1e-6, torch.float32: 5e-2}
"""Distance of the slope of the loss from that of its gradient, relative to the gradient's length, beside rounding."""

FLOOR = 8.0
"""Roundings of the gradients, by which a difference of them is no curvature."""


@dataclass(frozen=True, slots=True)
class Ways:
    """One matrix in three ways, with their costs in GE per sample.

    Attributes:
        exact: Makes the products in question.
        stated: Makes finite differences that state their error.
        differences: One difference with a given step.
    """

    exact: Callable[[Objective], Product]
    exact_ge: float
    stated: Callable[[Objective], Product]
    stated_ge: float
    differences: Differences
    difference_ge: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A verdict (None where numbers that are not finite tell nothing) and what it took, in GE per sample.

    Attributes:
        verdict: None where it has to be made again.
        cost_ge: Gradient evaluations per sample of the data it was made on.
    """

    verdict: Verdict | None
    cost_ge: float


def kind_of(objective: Objective, matrix: str, derived: str) -> str:
    """The key of a verdict: matrix, way, mode, type and device.

    Args:
        objective: Gives mode, type and device.
        matrix: Which matrix, in words.
        derived: How its products are derived.
    """
    device = objective.params[0].device.type
    return f"{matrix}, {derived}, {objective.mode}, {objective.dtype}, {device}"


def a_part(objective: Objective) -> Objective | None:
    """The first samples of the first batch, which has the same kind of graph; None where batches cannot be cut."""
    batches = objective.own_batches
    if not isinstance(batches, Sequence):
        return None
    try:
        if min(PART, objective.kind.count(batches[0])) >= objective.num_samples:
            return None
        part = objective.kind.first(batches[0], PART)
    except TypeError:
        return None
    return objective.on(part, objective.kind.count(part))


def compare(product: Product, ways: Ways) -> Comparison:
    """Hold a product against differences; one product and one difference of it are not in the cost.

    Args:
        product: One of the exact ways.
        ways: The differences to hold it against.

    Returns:
        Right where both agree or are below rounding, and, with a note, where differences are too inexact to tell; else
        a fault in words, after a second look in float64 or with shorter steps.
    """
    L, u = product.objective, _direction(product.objective)
    if u is None:
        return Comparison(_right(product, "not confirmed: the forward writes all of its parameters"), 0.0)
    Hu = _double(product(u))
    D = _double(ways.differences(L, u, _step(L)))
    size = float(vectors.norm(D))
    if not math.isfinite(size + float(vectors.norm(Hu))):
        return Comparison(None, 0.0)
    if _distance(Hu, D) <= SMOOTH[_type(L)] * size:
        return Comparison(_right(product), 0.0)
    rounding = _rounding(L)
    if max(size, float(vectors.norm(Hu))) <= rounding:
        return Comparison(_right(product), 1.0)
    wide = _wide(L)
    spent = 1.0 + 2 * FORWARD_GE
    if wide is None or wide is L:
        found, more = _in_own_precision(product, u, Hu, rounding, ways)
    else:
        found, more = _in_float64(product, wide, _double(u), Hu, ways)
    spent += more
    if found.fault and (slopes := _slopes(wide or L, u)) is not None:
        fault = (
            f"the gradient that autograd gives is not that of the loss: along a direction it has a slope of "
            f"{slopes[1]:.6g}, the loss one of {slopes[0]:.6g} (something is detached, straight-through, or moves with "
            "the weights without a graph)"
        )
        found = replace(found, fault=fault, of_loss=False)
    return Comparison(found, spent + (1.0 + 2 * FORWARD_GE if found.fault else 0.0))


def _in_own_precision(
    product: Product, u: Vector, Hu: Vector, rounding: float, ways: Ways
) -> tuple[Verdict, float]:
    """The second look where the weights are in float64 anyway, or float64 is not available."""
    L = product.objective
    if _type(L) == torch.float64:
        D, error, count = _short_steps(L, ways, u)
        spent, rounding = count * ways.difference_ge, _of_one(L)
    else:
        stated = ways.stated(L)
        D, error, spent = _double(stated(u)), stated.error, ways.stated_ge
    size, apart = float(vectors.norm(D)), _distance(Hu, D)
    if apart <= DISTANCE[_type(L)] * size + MARGIN * error + rounding:
        if MARGIN * error <= UNDECIDED * max(size, float(vectors.norm(Hu))):
            return _right(product), spent
        words = "not confirmed: differences of gradients are too inexact here, objective.double() would tell"
        return _right(product, words), spent
    return _wrong(product, apart, size, error), spent


def _in_float64(
    product: Product, wide: Objective, u: Vector, Hu: Vector, ways: Ways
) -> tuple[Verdict, float]:
    """The second look on a float64 copy: are the derivatives right there, and how coarse are they in their own type?"""
    D, error, count = _short_steps(wide, ways, u)
    spent, size = count * ways.difference_ge, float(vectors.norm(D))
    spent += ways.exact_ge
    try:
        exact, allowed = ways.exact(wide)(u), DISTANCE[torch.float64]
    except (RuntimeError, TypeError, NotImplementedError):  # a kernel of the narrower type alone
        exact, allowed = list(Hu), DISTANCE[torch.float32]
    allowed = allowed * size + MARGIN * error + _of_one(wide)
    if (apart := _distance(exact, D)) > allowed:
        return _wrong(product, apart, size, error), spent
    coarse = _distance(Hu, exact)
    if coarse <= FINE * size:
        return _right(product), spent
    if coarse <= COARSE * size:
        share = MARGIN / 2 * coarse / size
        words = f"products are in lower precision than the weights, with an error of {100 * share:.2g} %"
        return _right(product, words, share), spent
    if _gradient_is_coarse(product.objective, wide):
        share = MARGIN / 2 * coarse / size
        words = f"products in the precision of the weights have an error of {100 * share:.2g} % here; "
        words += "objective.double() gives exact ones"
        return _right(product, words, share), spent + 2.0
    return _wrong(product, _distance(Hu, D), size, error), spent + 2.0


def _gradient_is_coarse(L: Objective, wide: Objective) -> bool:
    """Whether the gradient has lost its digits too, as at a loss that is all but zero.

    Then no second derivative is at fault, and differences of gradients would be no better.
    """
    g = _double(wide.gradient())
    return _distance(_double(L.gradient()), g) > LOST * float(vectors.norm(g))


def _wrong(product: Product, apart: float, size: float, error: float) -> Verdict:
    fault = (
        f"second derivatives are wrong: a product is {apart:.3g} away from differences of gradients "
        f"(of length {size:.3g}, error {error:.2g})"
    )
    return Verdict(frozenset(product.objective.names), frozenset(product.graphs), fault)


def _double(x: Vector) -> list[Tensor]:
    wide = torch.float32 if x[0].device.type == "mps" else torch.float64  # which has no float64
    return [t.to(wide) for t in x]


def _right(product: Product, note: str = "", rounding: float = 0.0) -> Verdict:
    names = frozenset(product.objective.names)
    return Verdict(names, frozenset(product.graphs), note=note, rounding=rounding)


def _direction(L: Objective) -> list[Tensor] | None:
    """A random unit vector, zero in parameters that the forward writes; None where it writes them all."""
    written = L.notes.written.get(L.mode, set())
    u = [
        torch.zeros_like(t) if id(p) in written else t
        for t, p in zip(vectors.random_unit(L.params, SEED), L.params, strict=True)
    ]
    length = float(vectors.norm(u))
    return vectors.scaled(1.0 / length, u) if length > 0 else None


def _type(L: Objective) -> torch.dtype:
    return torch.float64 if L.params[0].dtype == torch.float64 else torch.float32


def _step(L: Objective) -> float:
    size = float(vectors.norm([p.detach() for p in L.params]))
    eps = float(torch.finfo(L.params[0].dtype).eps)
    return 0.1 * (1.0 + size) * math.pow(eps, 1 / 3)


def _rounding(L: Objective) -> float:
    """The error of a difference from rounding of the gradients alone."""
    eps = float(torch.finfo(L.params[0].dtype).eps)
    return FLOOR * eps * float(vectors.norm(L.gradient())) / _step(L)


def _of_one(L: Objective) -> float:
    """The same where a gradient near zero is a difference of numbers of order one, such as probabilities."""
    return FLOOR * float(torch.finfo(L.params[0].dtype).eps) / _step(L)


def _wide(L: Objective) -> Objective | None:
    """The same function in float64; None where that is not available."""
    if L.params[0].dtype == torch.float64:
        return L
    of = {
        frozen: [p for p in L.model.parameters() if p.requires_grad is not frozen] for frozen in (True, False)
    }
    if vectors.numel(of[True]) > LARGEST_COPY * vectors.numel(of[False]):
        return None  # a frozen base, of which a copy would cost more than all the rest
    try:
        wide = L.double()
        own, copied = L.value(), wide.value()
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None  # a loss with tensors of its own, a model that cannot be copied, a device without float64
    return wide if abs(own - copied) <= SAME_LOSS * abs(own) + 1e-6 else None


def _short_steps(L: Objective, ways: Ways, u: Vector) -> tuple[list[Tensor], float, int]:
    """The best of three differences with ever shorter steps, its error, and how many were needed."""
    h = _step(L)
    last = ways.differences(L, u, h)
    best, error, count = last, math.inf, 1
    while count < 3:
        h, count = h / SHORTER, count + 1
        D = ways.differences(L, u, h)
        if (apart := _distance(D, last)) < error:
            best, error = D, apart
        if error <= DISTANCE[torch.float64] * float(vectors.norm(D)):
            break
        last = D
    return best, error, count


def _slopes(L: Objective, u: Vector) -> tuple[float, float] | None:
    """Slope of the loss and of its gradient along u and the gradient, where they differ."""
    g = L.gradient()
    length = float(vectors.norm(g))
    if not length > 0:
        return None
    v = vectors.add([t.to(p.dtype) for t, p in zip(u, g, strict=True)], 1.0 / length, g)
    h = _step(L)
    forth, back = L.value(L.displaced(v, h)), L.value(L.displaced(v, -h))
    ahead, along = (forth - back) / (2 * h), float(vectors.dot(g, v))
    # A loss near zero is a difference of larger numbers, such as logits, and has their rounding.
    rounding = FLOOR * float(torch.finfo(L.params[0].dtype).eps) * max(abs(forth), 1.0) / h
    return (ahead, along) if abs(ahead - along) > SLOPE[_type(L)] * length + rounding else None


def _distance(x: Vector, y: Vector) -> float:
    return float(vectors.norm(vectors.subtract(x, y)))
