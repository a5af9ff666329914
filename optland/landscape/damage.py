r"""The rise of the loss under a damage to the weights, predicted from slope and curvature, and measured.

.. math::
    \text{predicted} &: L(v) - L(w) \approx g^\top d + \tfrac12 d^\top H d, \qquad d = v - w \\
    \text{trace form} &: \tfrac12 \sum_l \operatorname{tr}(H_l)\, \overline{d_l^2} \qquad
        \text{(for a rounding in steps } s_l:\ \overline{d_l^2} \approx s_l^2 / 12)

The first takes the damage as it is, from one Hessian product; the second only its size in each layer l, as if its
entries were independent noise, so that it adds up over layers and says which of them are sensitive.

**Cost.** A gradient, a Hessian product and a forward for each damage, a forward, and ``max_matvecs`` products for the
traces. **Measuring alone is cheaper** (a forward each). What prediction gives beside it: what cannot be tried one by
one, such as every combination of bits (:func:`~optland.landscape.bits.bits_by_layer`), the share of each layer, and the
expectation over all damages of a size.

**When.** Before a net is rounded, pruned, or run on noisy hardware; to see which layers will not bear it; to compare
nets that were trained in other ways.

**Caveats.** Second order ends where the damage is large: ``verdict`` says whether the measured rise is within a factor
of 2. A net that fits its training data has next to no curvature there while every sample is right, and the loss grows
much faster once samples turn wrong, so that a prediction from its training data is far too low: use validation data.
The slope averages out over noise, but a pruning or an update may follow it. Errors are those of the estimators on
these data, not of the data.

**References.** Dong et al. 2020, arXiv:1911.03852 (bits by trace); LeCun et al. 1989, Optimal Brain Damage.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optland import vectors
from optland.archive import Archived
from optland.curvature import hessian, in_metric, subset, trace_per_layer
from optland.curvature.cost import costs
from optland.curvature.operators.hessian import CurvatureOperator, Method, declared_product_cost
from optland.estimate import Estimate, Provenance
from optland.objective import FORWARD_GE, Objective
from optland.words import Words

__all__ = ["Damage", "DamageOrder", "damage"]

Weights = Mapping[str, Tensor]

FACTOR = 2.0
"""Predicted and measured rises agree where neither is more than this many times the other."""

ROUNDING = 4.0
"""A difference of two losses is taken to be wrong by up to this many units of rounding of the loss."""


class DamageOrder(Words):
    """Whether slope and curvature at the weights explain what the damage does."""

    SECOND = "second order"
    HIGHER = "higher order"
    UNRESOLVED = "not resolved"


@dataclass(frozen=True, slots=True)
class Damage(Archived):
    """What a damage does to the loss.

    Attributes:
        predicted: Mean of g'd + d'Hd / 2 over the damages; with several, its error is their standard error.
        measured: Mean of L(v) - L(w) over the same damages.
        trace_form: The sum over layers of tr(H_l) times the mean square of d_l, halved, with the trace's standard
            error; NaN without products for it.
        per_layer: Each layer's part of it.
        verdict: ``second order`` where predicted and measured rise agree within a factor of 2, ``higher order``
            where they do not, ``not resolved`` where both lie within twice their errors of 0.
        slope: Mean of g'd.
        loss: L(w).
        distance: Root of the mean of |d|^2: as the control that knows no curvature, its square is d'd for H = I.
        weight_norm: |w|.
        num_damages: How many damages the means are over.
        cost_ge: Gradient evaluations.
        provenance: Method, data, mode and seed.
    """

    predicted: Estimate
    measured: Estimate
    trace_form: Estimate
    per_layer: dict[str, Estimate]
    verdict: DamageOrder
    slope: float
    loss: float
    distance: float
    weight_norm: float
    num_damages: int
    cost_ge: float
    provenance: Provenance

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4g} rises by {self.measured}; predicted {self.predicted} ({self.verdict}), "
            f"from traces {self.trace_form}"
        )


def _cost(
    objective: Objective, num_damages: int = 1, *, max_matvecs: int = 30, method: Method = "auto"
) -> float:
    """The most that :func:`damage` can cost, in gradient evaluations."""
    passes = 1.0 + FORWARD_GE * (1 + num_damages)
    products = declared_product_cost(objective, num_damages, method=method)
    traces = trace_per_layer.cost(objective, max_matvecs, method=method) if max_matvecs else 0.0
    return passes * objective.num_samples + products + traces


@costs(_cost)
def damage(
    objective: Objective,
    weights: Weights | Sequence[Weights],
    *,
    max_matvecs: int = 30,
    method: Method = "auto",
    seed: int = 0,
) -> Damage:
    """Predict and measure the rise of the loss when the weights become others.

    Args:
        objective: The loss at the weights as they are; on validation data, see the caveats.
        weights: What they become, by parameter name; those that are not named stay. From
            :func:`~optland.landscape.damages.rounded`, ``pruned`` or ``shaken``, or the weights after an update.
            Several for a random damage, such as the same noise with other seeds: means are over them.
        max_matvecs: Most Hessian products for the traces; 30 give them to a few per cent, 0 leaves the trace form out.
        method: How products are computed.
        seed: Seed of the traces' test vectors.

    Returns:
        A :class:`Damage`.

    Raises:
        ValueError: No damage, a name that is no trainable parameter, another shape, or weights that are not finite.

    Example:
        >>> from optland.problems import quadratic
        >>> L = quadratic(torch.diag(torch.tensor([2.0, 4.0], dtype=torch.float64)))
        >>> found = damage(L, {L.names[0]: L.params[0].detach() + torch.tensor([0.3, 0.1], dtype=torch.float64)})
        >>> round(found.predicted.value, 6), round(found.measured.value, 6), found.verdict
        (1.11, 1.11, 'second order')
    """
    several = [weights] if isinstance(weights, Mapping) else list(weights)
    moves = [_move(objective, given) for given in several]
    if not moves:
        raise ValueError("weights is empty; pass damaged weights by parameter name, or a list of such")
    spent = objective.cost_ge
    loss, g = objective.value_and_gradient()
    slopes = [float(vectors.dot(g, d)) for d in moves]
    with hessian(objective, method=method) as H:
        bends = [float(vectors.dot(d, H.matvec(d))) if _length(d) else 0.0 for d in moves]
        squares = _mean_squares(moves)
        parts, total = _trace_form(H, squares, max_matvecs, seed)
        product_error = H.product_error
        source = H.provenance(f"second order, {len(moves)} damages", seed)
    length = math.sqrt(statistics.fmean(_length(d) ** 2 for d in moves))
    rises = [objective.value(objective.displaced(d, 1.0)) - loss for d in moves]
    cost = objective.cost_ge - spent
    predicted = _mean(
        [s + 0.5 * b for s, b in zip(slopes, bends, strict=True)],
        0.5 * product_error * length**2,
        cost,
        source,
    )
    eps = float(torch.finfo(objective.params[0].dtype).eps)
    measured = _mean(
        rises, ROUNDING * eps * abs(loss), cost, objective.provenance("loss at the damaged weights")
    )
    return Damage(
        predicted, measured, total, parts, _verdict(predicted, measured), statistics.fmean(slopes), loss, length,
        float(vectors.norm([p.detach() for p in objective.params])), len(moves), cost, source,
    )  # fmt: skip


def _move(objective: Objective, weights: Weights) -> list[Tensor]:
    """The moves d = v - w, zero for what is not named."""
    strange = sorted(set(weights) - set(objective.names))
    if strange:
        raise ValueError(
            f"{strange[0]!r} is no trainable parameter of the objective; those are {', '.join(objective.names)}"
        )
    own = [p.detach() for p in objective.params]
    there = [
        weights[name].to(device=p.device, dtype=p.dtype) if name in weights else p
        for name, p in zip(objective.names, own, strict=True)
    ]
    move = vectors.subtract(vectors.require_shapes(there, own, "weights", objective.names), own)
    if not math.isfinite(_length(move)):
        raise ValueError("the damaged weights are not finite; damage a net that has not diverged")
    return move


def _length(d: Sequence[Tensor]) -> float:
    return float(vectors.norm(d))


def _mean_squares(moves: Sequence[Sequence[Tensor]]) -> list[float]:
    """Mean square of the entries of each layer, over the damages."""
    layers = zip(*moves, strict=True)
    return [statistics.fmean(float(t.double().square().mean()) for t in layer) for layer in layers]


def _trace_form(
    H: CurvatureOperator, squares: Sequence[float], max_matvecs: int, seed: int
) -> tuple[dict[str, Estimate], Estimate]:
    """Half the trace of THT with T the deviation of each layer's weights.

    Errors of layers that share test vectors do not add up like independent ones; that of this trace counts them.
    """
    moved = [(i, name, s) for i, (name, s) in enumerate(zip(H.names, squares, strict=True)) if s > 0]
    if not moved or not max_matvecs:
        value = math.nan if moved else 0.0
        source = H.provenance("no traces", seed)
        return {}, Estimate(value, value, "standard_error", not moved, 0.0, source)
    block = subset(H, [name for _, name, _ in moved])
    T = [torch.full_like(like, math.sqrt(s)) for like, (_, _, s) in zip(block.like, moved, strict=True)]
    found = trace_per_layer(in_metric(block, T), max_matvecs=max_matvecs, seed=seed)
    return {name: _halved(e) for name, e in found.per_layer.items()}, _halved(found.total)


def _halved(e: Estimate) -> Estimate:
    return Estimate(0.5 * e.value, 0.5 * e.error, e.error_kind, e.converged, e.cost_ge, e.provenance, e.note)


def _mean(values: Sequence[float], error: float, cost: float, source: Provenance) -> Estimate:
    """The mean with its standard error; a single value with the error of its computation."""
    mean = statistics.fmean(values)
    if len(values) > 1:
        spread = statistics.stdev(values) / math.sqrt(len(values)) if math.isfinite(mean) else math.nan
        return Estimate(mean, math.hypot(spread, error), "standard_error", math.isfinite(mean), cost, source)
    return Estimate(mean, error, "residual", math.isfinite(mean), cost, source)


def _verdict(predicted: Estimate, measured: Estimate) -> DamageOrder:
    a, b = predicted.value, measured.value
    if not (math.isfinite(a) and math.isfinite(b)):
        return DamageOrder.HIGHER if math.isfinite(a) else DamageOrder.UNRESOLVED
    if abs(a) <= 2 * predicted.error and abs(b) <= 2 * measured.error:
        return DamageOrder.UNRESOLVED
    agree = a * b > 0 and max(abs(a), abs(b)) <= FACTOR * min(abs(a), abs(b))
    return DamageOrder.SECOND if agree else DamageOrder.HIGHER
