r"""The ceiling of an update on its own batch, its best length on fresh data, and the critical batch size.

.. math:: t_\mathrm{own} = \frac{-2\, g_B^\top u}{u^\top H u}, \qquad
          t_\mathrm{fresh} = \frac{-2\, G^\top u}{u^\top H u}, \qquad
          t_\mathrm{best} = \tfrac12\, t_\mathrm{fresh}, \qquad
          B_\mathrm{simple} = B \Big( \frac{g_B^\top u}{G^\top u} - 1 \Big)

The batch that made the update u overstates how well it does: along u = -g_B its slope is ``|G|^2`` + tr Sigma / B,
where fresh data show ``|G|^2``. The step that is best on fresh data is thus the noise-optimal one, eta_max / (1 +
B_noise / B), and the ratio of the slopes gives the batch size at which noise and signal are equal.

**Cost.** A gradient and a Hessian product on own and on fresh data. From two line searches that were made anyway
(:func:`ceiling_from_steps`) nothing.

**When.** For the update of any optimizer: t is in multiples of it. Below 1, t_own says that the step raises the loss of
its own batch; t_best well below 1 says that the learning rate is too high for this batch size.

**Defaults.** Fresh data in at least 3 batches, whose spread gives the standard errors.

**Caveats.** Fresh data must be independent of u: not seen by the momentum either. The critical batch size takes u to
be made from the own batch alone (plain or preconditioned descent); with momentum only a share of u is, and it comes
out too small. Its error counts the spread of the fresh batches alone; own batches differ too, so average over several.

**References.** McCandlish et al. 2018, arXiv:1812.06162 (noise-optimal step); Kalra et al. 2026, arXiv:2601.16979
(the own batch's critical step).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optland import vectors
from optland.archive import Archived
from optland.curvature.cost import costs
from optland.curvature.lines.critical_step import CriticalStep
from optland.curvature.operators.batchwise import each_batch, jackknife
from optland.curvature.operators.hessian import Method, declared_product_cost, hessian
from optland.estimate import Estimate, Provenance
from optland.objective import Objective
from optland.vectors import Vector

__all__ = [
    "Ceiling",
    "ceiling",
    "ceiling_from_steps",
]

SIGNIFICANCE = 2.0
"""Slope and curvature on fresh data have to exceed this many of their standard errors before a ratio is formed."""

FEWEST_BATCHES = 3


@dataclass(frozen=True, slots=True)
class Ceiling(Archived):
    """Lengths at which the loss along an update is level and lowest, on its own batch and on fresh data.

    Attributes:
        own: t_own, the multiple of the update at which its own batch's loss is level again (quadratic model).
        fresh: t_fresh, the same on fresh data; NaN when not resolved.
        best: t_best = t_fresh / 2, the noise-optimal multiple of the update; NaN when not resolved.
        critical_batch: B_simple in samples, may come out negative; NaN when not resolved.
        resolved: Whether the update significantly descends on fresh data and meets positive curvature there.
        batch_size: B, samples that made the update.
        cost_ge: Gradient evaluations spent.
    """

    own: Estimate
    fresh: Estimate
    best: Estimate
    critical_batch: Estimate
    resolved: bool
    batch_size: int
    cost_ge: float

    def __str__(self) -> str:
        if not self.resolved:
            return f"ceiling: own batch {self.own}, fresh data unresolved: {self.fresh.note}"
        return (
            f"ceiling: own batch {self.own}, fresh data {self.fresh}, best {self.best}, "
            f"critical batch {self.critical_batch}"
        )


def _cost(objective: Objective, fresh: Objective, *, method: Method = "auto") -> float:
    """The most that :func:`ceiling` can cost, in gradient evaluations."""
    one_batch = method if method != "auto" else "kept_graph"
    return sum(
        L.num_samples + max(declared_product_cost(L, 1, method=m) for m in (method, one_batch))
        for L in (objective, fresh)
    )


@costs(_cost)
def ceiling(objective: Objective, update: Vector, fresh: Objective, *, method: Method = "auto") -> Ceiling:
    """Measure slope and curvature along an update, on the data that made it and on data that did not.

    Args:
        objective: The loss on the own batch, at the weights before the update.
        update: u, the step that the optimizer makes: -lr * gradient, not the gradient.
        fresh: The loss on independent data, in three batches or more.
        method: How products are computed.

    Returns:
        A :class:`Ceiling`.

    Raises:
        ValueError: ``update`` is zero, not finite, or of other shapes than the parameters.

    Example:
        >>> from optland.problems import linear_regression
        >>> X = torch.ones(6, 1, dtype=torch.float64)                       # slopes -2 y, curvature 2
        >>> Y = torch.tensor([[3.0], [3.0], [1.0], [2.0], [3.0], [2.0]], dtype=torch.float64)
        >>> own = linear_regression(X[:2], Y[:2])
        >>> fresh = linear_regression(X[2:], Y[2:], sizes=[1, 1, 1, 1])
        >>> found = ceiling(own, [torch.full((1, 1), 0.6, dtype=torch.float64)], fresh)
        >>> [round(e.value, 4) for e in (found.own, found.fresh, found.best, found.critical_batch)]
        [10.0, 6.6667, 3.3333, 1.0]
    """
    update = vectors.require_shapes(update, objective.params, "update")
    length = vectors.direction_length(update, "update")
    u = vectors.scaled(1.0 / length, update)
    spent = (objective.cost_ge, fresh.cost_ge)
    slope, curvature, source = _along(objective, u, method)
    rows, counts = [], []
    for piece in each_batch(fresh):
        rows.append(_along(piece, u, method)[:2])
        counts.append(float(piece.num_samples))
    cost = objective.cost_ge - spent[0] + fresh.cost_ge - spent[1]
    terms = _left_out(torch.tensor(rows, dtype=torch.float64), torch.tensor(counts, dtype=torch.float64))
    resolved, why = _judged(terms, len(rows))
    B = objective.num_samples

    def ratio(values: Tensor) -> Estimate:
        source_fresh = fresh.provenance("slope and curvature along the update", fresh.seed)
        if not resolved:
            return Estimate(math.nan, math.nan, "none", False, cost, source_fresh, why)
        return Estimate(
            float(values[0]), float(jackknife(values[1:])), "standard_error", True, cost, source_fresh
        )

    slopes, curvatures = terms.unbind(dim=1)
    level = 2.0 * slope / (curvature * length) if curvature > 0 else math.nan
    note = "" if curvature > 0 else "The own batch's loss does not curve upwards along the update."
    return Ceiling(
        own=Estimate(level, 0.0 if curvature > 0 else math.nan, "none", curvature > 0, cost, source, note),
        fresh=ratio(2.0 * slopes / (curvatures * length)),
        best=ratio(slopes / (curvatures * length)),
        critical_batch=ratio(B * (slope / slopes - 1.0)),
        resolved=resolved,
        batch_size=B,
        cost_ge=cost,
    )


def ceiling_from_steps(own: CriticalStep, fresh: CriticalStep, batch_size: int) -> Ceiling:
    """The same from two critical steps along one update, own batch and fresh data: forward passes alone.

    Args:
        own: :func:`~optland.curvature.lines.critical_step.critical_step` on the batch that made the update.
        fresh: The same on independent data.
        batch_size: B, samples that made the update.

    Returns:
        A :class:`Ceiling` whose errors are those of the two brackets; how data differ is not among them.

    Raises:
        ValueError: ``batch_size`` is less than 1.

    Example:
        >>> from optland.curvature.lines.critical_step import critical_step
        >>> from optland.problems import quadratic
        >>> L = quadratic(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)))
        >>> step = critical_step(L, [-g for g in L.gradient()])
        >>> print(ceiling_from_steps(step, step, 32).best)
        0.2615 ± 0.0131 (bracket)
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    resolved = own.status == "resolved" and fresh.status == "resolved"
    cost = own.cost_ge + fresh.cost_ge
    t_own, t_fresh = own.step, fresh.step

    def estimate(value: float, relative: float) -> Estimate:
        met = t_own.converged and t_fresh.converged
        return Estimate(value, relative * abs(value), "bracket", met, cost, t_fresh.provenance)

    if not resolved:
        why = f"own batch {own.status}, fresh data {fresh.status}"
        blank = Estimate(math.nan, math.nan, "none", False, cost, t_fresh.provenance, why)
        return Ceiling(t_own, blank, blank, blank, False, batch_size, cost)
    wide_own, wide_fresh = t_own.error / t_own.value, t_fresh.error / t_fresh.value
    ratio = estimate(t_own.value / t_fresh.value, wide_own + wide_fresh)
    critical = replace(ratio, value=batch_size * (ratio.value - 1), error=batch_size * ratio.error)
    return Ceiling(
        own=t_own,
        fresh=estimate(t_fresh.value, wide_fresh),
        best=estimate(t_fresh.value / 2, wide_fresh),
        critical_batch=critical,
        resolved=True,
        batch_size=batch_size,
        cost_ge=cost,
    )


def _along(objective: Objective, u: Vector, method: Method) -> tuple[float, float, Provenance]:
    """-g'u and u'Hu, u of unit length."""
    slope = -float(vectors.dot(objective.gradient(), u))
    with hessian(objective, method=method) as H:
        curvature = float(vectors.dot(u, H.matvec(u)))
        return slope, curvature, H.provenance("slope and curvature along the update", objective.seed)


def _left_out(rows: Tensor, counts: Tensor) -> Tensor:
    """Means of (slope, curvature) over all batches, and with each left out: (1 + k, 2), weighted by counts."""
    total, whole = counts @ rows, counts.sum()
    weight = counts[:, None]
    left_out = (total - weight * rows) / (whole - weight)  # a single batch leaves nothing: NaN
    return torch.cat([(total / whole)[None], left_out])


def _judged(terms: Tensor, num_batches: int) -> tuple[bool, str]:
    if num_batches < FEWEST_BATCHES:
        return False, f"{num_batches} batches of fresh data are too few for a standard error."
    slopes, curvatures = terms.unbind(dim=1)
    if not float(slopes[0]) > SIGNIFICANCE * float(jackknife(slopes[1:])):
        return False, "The update does not significantly descend on fresh data."
    if not float(curvatures[0]) > SIGNIFICANCE * float(jackknife(curvatures[1:])):
        return False, "The curvature along the update is not significantly positive."
    return True, ""
