r"""Curvature along one direction: the second derivative of the loss on a line through the weights.

.. math:: \kappa(d) = \frac{d^\top H d}{d^\top d}, \qquad
          \kappa_h(u) = \frac{L(\theta + h u) - 2 L(\theta) + L(\theta - h u)}{h^2} \quad (|u| = 1)

and, averaged over batches B along each one's own gradient, the *batch sharpness*

.. math:: \mathbb{E}_B \Big[ \frac{g_B^\top H_B\, g_B}{g_B^\top g_B} \Big]

which minibatch descent of learning rate lr drives to 2 / lr, while the largest eigenvalue stays below it.

**Cost.** One Hessian product; or 5 forwards (``method="forward"``: three points, and two more for the error),
which any kernel and any sharding can do. Batch sharpness: a gradient and a product on every batch.

**When.** To read the curvature that an update meets, which for most updates is far below the largest eigenvalue; to
hold the learning rate against the edge that belongs to minibatches.

**Defaults.** h = (1 + ``|theta|``) eps^(1/4) / 10, which balances the rounding of the loss, eps L / h^2, against the
fourth derivative; for a large network pass the length of the realised update as ``step``.

**Caveats.** On a kinked loss (ReLU) the second difference depends on h, and the product sees no kink at all: the error
of the forward form shows it. Batch sharpness is a matter of the batch size: keep it that of training. Over 20
batches it is a noisy number; its standard error says how noisy. With momentum its edge is that of
:func:`optland.curvature.stability.thresholds.stability_threshold`.

**References.** Andreyev & Beneventano 2024, arXiv:2412.20553 (batch sharpness).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from optland import vectors
from optland.curvature.cost import costs
from optland.curvature.operators.batchwise import each_batch, mean_and_error
from optland.curvature.operators.hessian import CurvatureOperator, Method, declared_product_cost, hessian
from optland.estimate import ErrorKind, Estimate, Provenance
from optland.objective import FORWARD_GE, Objective
from optland.vectors import Vector

__all__ = ["LineMethod", "batch_sharpness", "curvature_along"]

LineMethod = Method | Literal["forward"]

STEP_SCALE = 0.1
"""c in the default step c (1 + |theta|) eps^(1/4) of the second difference."""

ROUNDING = 4.0
"""A difference of three losses is taken to be wrong by up to this many units of rounding of L."""

FORWARDS = 5

FEWEST_BATCHES = 3

AGREEMENT = 0.1
"""Largest relative error of a second difference that counts as converged."""


def _cost(objective: Objective, *, method: LineMethod = "auto") -> float:
    """The most that :func:`curvature_along` can cost, in gradient evaluations."""
    if method == "forward":
        return FORWARDS * FORWARD_GE * objective.num_samples
    return declared_product_cost(objective, 1, method=method)


@costs(_cost)
def curvature_along(
    objective: Objective, direction: Vector, *, method: LineMethod = "auto", distance: float | None = None
) -> Estimate:
    """The curvature d'Hd / d'd of the loss along ``direction``.

    Args:
        objective: The loss to look at.
        direction: d, in the shapes of the parameters; its length does not matter.
        method: How: a way of :func:`~optland.curvature.operators.hessian.hessian` (one product, by finite differences
        of
            gradients where the model has no double backward), or ``"forward"`` (second differences of the loss).
        distance: Forward form only: h, the distance of the outer points in units of the weights.

    Returns:
        An :class:`~optland.estimate.Estimate`. Its error is that of the product, 0 where that is exact to rounding;
        in the forward form the distance to the value with 2h plus what rounding can do, and it is not converged
        where that is a tenth of the value.

    Raises:
        ValueError: ``direction`` has other shapes than the parameters, or is zero or not finite; ``distance`` is not
            positive, or was given with another method.

    Example:
        >>> from optland.problems import quadratic
        >>> L = quadratic(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)))
        >>> d = [torch.tensor([1.0, 1.0], dtype=torch.float64)]
        >>> print(curvature_along(L, d), "|", round(curvature_along(L, d, method="forward").value, 3))
        2.5 ± 0 (residual) | 2.5
    """
    direction = _checked(objective, direction, method, distance)
    if method == "forward":
        return _second_difference(objective, direction, distance)
    spent = objective.cost_ge
    with hessian(objective, method=method) as H:
        value = _rayleigh(H, direction)
        error, source = H.product_error, H.provenance("Rayleigh quotient")
    cost = objective.cost_ge - spent
    return Estimate(value, error, "residual", math.isfinite(value), cost, source)


def _rayleigh(H: CurvatureOperator, direction: Vector) -> float:
    """The curvature d'Hd / d'd from one product."""
    u = vectors.scaled(1.0 / float(vectors.norm(direction)), direction)
    # Rounded to the weights' type u is not quite of length one.
    return float(vectors.dot(u, H.matvec(u)) / vectors.dot(u, u))


def _batch_cost(objective: Objective, *, method: Method = "auto") -> float:
    """The most that :func:`batch_sharpness` can cost, in gradient evaluations."""
    return declared_product_cost(objective, 1, method=method) + objective.num_samples


@costs(_batch_cost)
def batch_sharpness(
    batches: Objective | Sequence[Objective], *, preconditioner: Vector | None = None, method: Method = "auto"
) -> Estimate:
    r"""The mean over batches of the curvature along each batch's own gradient.

    Args:
        batches: An objective, whose batches are taken one by one, or one objective for each batch. They should have
            the size of the training batches, and their mode.
        preconditioner: The diagonal P of an adaptive optimizer, in the shapes of the parameters; then the curvature
            is that of P^{-1/2} H_B P^{-1/2} along P^{-1/2} g_B, which is u'H_B u / g_B'u with u = P^{-1} g_B.
        method: How products are computed.

    Returns:
        The mean with its standard error over batches, not converged with fewer than three batches.

    Raises:
        ValueError: No batches, or the shapes of ``preconditioner`` are not those of the parameters.

    Example:
        >>> from optland.problems import linear_regression
        >>> X = torch.tensor([[1.0], [2.0], [1.0]], dtype=torch.float64)     # curvatures 2 x^2
        >>> print(batch_sharpness(linear_regression(X, torch.ones_like(X), sizes=[1, 1, 1])))
        4 ± 2 (standard_error)
    """
    values, cost, samples, source = [], 0.0, 0, None
    for piece in each_batch(batches) if isinstance(batches, Objective) else batches:
        before = piece.cost_ge
        value, source = _along_gradient(piece, preconditioner, method)
        values.append(value)
        cost += piece.cost_ge - before
        samples += piece.num_samples
    if source is None:
        raise ValueError("there are no batches; pass an objective that holds some, or a list of objectives")
    mean, error = mean_and_error(values)
    enough = len(values) >= FEWEST_BATCHES and math.isfinite(mean)
    note = "" if enough else f"{len(values)} batches are too few for a standard error."
    if not math.isfinite(mean):
        note = "A gradient is zero, or the loss of a batch is not finite."
    kind: ErrorKind = "standard_error" if math.isfinite(error) else "none"
    return Estimate(mean, error, kind, enough, cost, replace(source, num_samples=samples), note)


def _along_gradient(
    piece: Objective, preconditioner: Vector | None, method: Method
) -> tuple[float, Provenance]:
    """The ratio u'Hu / g'u of one batch, with u = g or P^-1 g, and where it comes from."""
    g = piece.gradient()
    u = g if preconditioner is None else divided(g, preconditioner)
    with hessian(piece, method=method) as H:
        length = float(vectors.norm(u))
        value = math.nan
        if length > 0.0 and math.isfinite(length):
            u = vectors.scaled(1.0 / length, u)  # finite differences and half precision want a unit vector
            value = length * float(vectors.dot(u, H.matvec(u)) / vectors.dot(g, u))
        name = "batch sharpness" + ("" if preconditioner is None else ", preconditioned")
        return value, H.provenance(name)


def divided(x: Vector, preconditioner: Vector) -> list[Tensor]:
    """P^-1 x for a diagonal P, entry by entry.

    Raises:
        ValueError: P has other shapes than x.
    """
    preconditioner = vectors.require_shapes(preconditioner, x, "the preconditioner")
    return [(t / p).to(t.dtype) for t, p in zip(x, preconditioner, strict=True)]


def _second_difference(objective: Objective, direction: Vector, step: float | None) -> Estimate:
    spent = objective.cost_ge
    u = vectors.scaled(1.0 / float(vectors.norm(direction)), direction)
    eps: float = torch.finfo(objective.params[0].dtype).eps
    size = float(vectors.norm([p.detach() for p in objective.params]))
    h = STEP_SCALE * (1.0 + size) * eps**0.25 if step is None else step
    base = objective.value()

    def difference(h: float) -> float:
        sides = [objective.value(objective.displaced(u, t)) for t in (h, -h)]
        return (sum(sides) - 2.0 * base) / h**2

    value, wider = difference(h), difference(2.0 * h)
    # The distance to 2h is three times the part of the fourth derivative, and shows a kink too.
    error = abs(value - wider) + ROUNDING * eps * abs(base) / h**2
    met = error <= AGREEMENT * abs(value)
    return Estimate(
        value=value,
        error=error,
        error_kind="residual",
        converged=met,
        cost_ge=objective.cost_ge - spent,
        provenance=objective.provenance(f"second difference of the loss, h = {h:.3g}"),
        note="" if met else "The step is too small for the rounding of the loss or too large for its shape.",
    )


def _checked(objective: Objective, direction: Vector, method: str, step: float | None) -> Vector:
    direction = vectors.require_shapes(direction, objective.params, "direction")
    vectors.direction_length(direction, "direction")
    if step is not None and method != "forward":
        raise ValueError(f"step={step} belongs to method='forward', not to {method!r}; leave it out")
    if step is not None and not 0.0 < step < math.inf:
        raise ValueError(f"step={step} must be positive and finite: it is a distance in units of the weights")
    return direction
