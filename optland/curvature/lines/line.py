r"""Batch sharpness: the curvature along each batch's own gradient, averaged over batches B.

.. math:: \mathbb{E}_B \Big[ \frac{g_B^\top H_B\, g_B}{g_B^\top g_B} \Big]

which minibatch descent of learning rate lr drives to 2 / lr, while the largest eigenvalue stays below it.

**Cost.** A gradient and a Hessian product on every batch.

**When.** To hold the learning rate against the edge that belongs to minibatches.

**Caveats.** It is a matter of the batch size: keep it that of training. Over 20 batches it is a noisy number; its
standard error says how noisy. The product sees no kink of a ReLU. With momentum the edge is that of
:func:`optland.curvature.stability.thresholds.stability_threshold`.

**References.** Andreyev & Beneventano 2024, arXiv:2412.20553.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from optland import vectors
from optland.curvature.cost import costs
from optland.curvature.operators.batchwise import each_batch, mean_and_error
from optland.curvature.operators.hessian import Method, declared_product_cost, hessian
from optland.estimate import ErrorKind, Estimate, Provenance
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["batch_sharpness"]

FEWEST_BATCHES = 3


def _cost(objective: Objective, *, method: Method = "auto") -> float:
    """The most that :func:`batch_sharpness` can cost, in gradient evaluations."""
    return declared_product_cost(objective, 1, method=method) + objective.num_samples


@costs(_cost)
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
        >>> import torch
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

    Args:
        x: In the shapes of the parameters.
        preconditioner: P, entries above 0, in the same shapes.

    Raises:
        ValueError: P has other shapes than x.
    """
    preconditioner = vectors.require_shapes(preconditioner, x, "the preconditioner")
    return [(t / p).to(t.dtype) for t, p in zip(x, preconditioner, strict=True)]
