r"""Curvature along many random rays, at a finite distance, and whether it agrees with the Hessian.

.. math:: c_h(u) = \frac{L(w + h u) - 2 L(w) + L(w - h u)}{h^2}, \qquad \lVert u \rVert = 1

For unit rays :math:`\mathbb{E}\, u^\top H u = \operatorname{tr}(H)/d` with variance
:math:`2 (\lVert H \rVert_F^2 - \operatorname{tr}(H)^2/d) / (d (d + 2))`, so the mean of rays is a trace
and the largest of them says nothing about the largest eigenvalue. Second differences equal u'Hu up to O(h^2) where the
loss is smooth.

**Kinks.** A ReLU net is not smooth: every unit that switches between the two ends adds to the second difference, by an
amount that depends on h and does not average out over rays, while the Hessian sees none of it. Rays at h and h/2 and
the Hessian product along the same rays are compared, pair by pair; where they differ by more than their errors the
``kinks`` flag is set, and the ray curvature is a property of the scale h and not of the point.

**Cost.** 5 forwards and one Hessian product per ray.

References: Duersch et al. 2024, arXiv:2411.16914 (curvature of piecewise linear nets); Santurkar et al. 2018,
arXiv:1805.11604 (gradient predictiveness and smoothness along the gradient).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from optland import vectors
from optland.archive import Archived
from optland.curvature import hessian
from optland.estimate import Estimate
from optland.landscape.directions import random_direction
from optland.landscape.sweep import sweep
from optland.objective import Objective

__all__ = ["GradientSmoothness", "Rays", "gradient_smoothness", "rays"]

SIGNIFICANT = 4.0
"""Standard errors by which two means of paired rays must differ to be called different."""

LEAST = 0.05
"""Relative difference below which no kink is called, however small the errors."""


@dataclass(frozen=True, slots=True)
class Rays(Archived):
    """Curvature along random unit rays.

    Attributes:
        mean: Mean second difference at distance h, an estimate of tr(H)/d at that scale.
        mean_half: The same at h/2.
        mean_hessian: Mean u'Hu along the same rays.
        spread: Standard deviation over rays at h.
        negative: Share of rays that bend down at h, with its standard error.
        kinks: Whether second differences and Hessian disagree beyond their errors.
        h: Distance, in the units of the weights.
        per_ray: (at h, at h/2, u'Hu) of every ray.
    """

    mean: Estimate
    mean_half: Estimate
    mean_hessian: Estimate
    spread: float
    negative: Estimate
    kinks: bool
    h: float
    per_ray: tuple[tuple[float, float, float], ...]

    def __str__(self) -> str:
        flag = ", KINKS: not a property of the point" if self.kinks else ""
        head = f"curvature along {len(self.per_ray)} rays at h={self.h:.3g}"
        return f"{head}: {self.mean}; Hessian {self.mean_hessian}{flag}"


def rays(objective: Objective, *, num_rays: int = 20, distance: float | None = None, seed: int = 0) -> Rays:
    """Second differences along random unit rays at a distance h and at h/2, and Hessian products along the same rays.

    Args:
        objective: The loss.
        num_rays: At least 2.
        distance: h; default a hundredth of ||w||.
        seed: Ray i has seed ``seed + i``.

    Raises:
        ValueError: Fewer than 2 rays, or a distance that is not positive.

    Example:
        >>> import torch
        >>> from optland.problems import quadratic
        >>> L = quadratic(3.0 * torch.eye(4, dtype=torch.float64))
        >>> found = rays(L, num_rays=3)
        >>> round(found.mean.value, 6), found.kinks
        (3.0, False)
    """
    if num_rays < 2:
        raise ValueError(f"num_rays {num_rays}: an error needs at least 2 rays")
    size = float(vectors.norm([p.detach() for p in objective.params]))
    distance = 0.01 * max(size, 1e-6) if distance is None else distance
    if not distance > 0 or not math.isfinite(distance):
        raise ValueError(
            f"distance {distance} must be above 0; a hundredth of the weights' norm is {0.01 * size:.3g}"
        )
    before = objective.cost_ge
    found = []
    with hessian(objective) as H:
        for i in range(num_rays):
            u = random_direction(objective, normalise="unit", seed=seed + i).tensors
            low, low_half, centre, high_half, high = sweep(
                objective, [u], [[-distance], [-0.5 * distance], [0.0], [0.5 * distance], [distance]]
            ).values.tolist()
            wide = (low - 2 * centre + high) / distance**2
            narrow = (low_half - 2 * centre + high_half) / (0.5 * distance) ** 2
            found.append((wide, narrow, float(vectors.dot(u, H.matvec(u)))))
    cost = objective.cost_ge - before
    # Rounding of the loss is amplified by 1/h^2, more so at h/2.
    rounding = 4 * 1.2e-7 * abs(centre) / (0.5 * distance) ** 2 if objective.dtype == "float32" else 0.0
    at_h, at_half, exact = (list(x) for x in zip(*found, strict=True))
    kinks = any(_differ(a, b, rounding) for a, b in ((at_h, exact), (at_half, exact)))
    share = statistics.fmean(float(c < 0) for c in at_h)
    share_error = math.sqrt(max(share * (1 - share), 0.25 / num_rays) / num_rays)
    provenance = objective.provenance(f"second differences along {num_rays} rays", seed)
    means = [
        _mean(objective, x, cost, seed, what)
        for x, what in ((at_h, "h"), (at_half, "h/2"), (exact, "Hessian"))
    ]
    negative = Estimate(share, share_error, "standard_error", True, cost, provenance)
    return Rays(means[0], means[1], means[2], statistics.stdev(at_h), negative, kinks, distance, tuple(found))


def _differ(a: Sequence[float], b: Sequence[float], rounding: float) -> bool:
    """Whether two measurements of the same rays differ: in the mean, or ray by ray in their spread."""
    gaps = [x - y for x, y in zip(a, b, strict=True)]
    scale = math.sqrt(statistics.fmean(y * y for y in b))
    size = math.sqrt(statistics.fmean(g * g for g in gaps))
    mean, error = statistics.fmean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps))
    in_mean = abs(mean) > SIGNIFICANT * error + rounding and abs(mean) > LEAST * scale
    return in_mean or size > max(0.5 * scale, SIGNIFICANT * rounding)


def _mean(objective: Objective, values: Sequence[float], cost: float, seed: int, what: str) -> Estimate:
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(
        statistics.fmean(values),
        error,
        "standard_error",
        True,
        cost,
        objective.provenance(f"rays, {what}", seed),
    )


@dataclass(frozen=True, slots=True)
class GradientSmoothness(Archived):
    """How the loss and its gradient change along the gradient itself.

    Attributes:
        distances: Steps against the gradient, in multiples of it.
        losses: Loss after each.
        predictiveness: ||g(w - t g) - g(w)|| at each, small where the gradient can be trusted.
        smoothness: The largest ratio of that change to the distance moved: a Lipschitz constant along this line.
        cost_ge: Gradient evaluations.
    """

    distances: tuple[float, ...]
    losses: tuple[float, ...]
    predictiveness: tuple[float, ...]
    smoothness: float
    cost_ge: float


def gradient_smoothness(objective: Objective, distances: Sequence[float]) -> GradientSmoothness:
    """Loss, change of the gradient and effective smoothness along the gradient.

    Cost: a gradient per distance, and one.

    Args:
        objective: The loss at the weights to look from.
        distances: Steps against the gradient, as multiples of it: learning rates of plain descent.

    Returns:
        Losses and changes of the gradient at each, and their largest ratio to the distance moved, which is at most the
        Lipschitz constant of the gradient.

    Raises:
        ValueError: No distances, or one that is not positive.

    Example:
        >>> import torch
        >>> from optland.problems import quadratic
        >>> A = torch.diag(torch.tensor([1.0, 5.0], dtype=torch.float64))
        >>> L = quadratic(A, torch.tensor([0.0, 2.0], dtype=torch.float64))
        >>> round(gradient_smoothness(L, [0.1, 0.2]).smoothness, 9)
        5.0
    """
    if not distances or any(not t > 0 for t in distances):
        raise ValueError(f"distances {list(distances)} must be numbers above 0, such as the learning rate")
    before = objective.cost_ge
    g = objective.gradient()
    length = float(vectors.norm(g))
    losses, changes, ratios = [], [], []
    for t in distances:
        loss, there = objective.value_and_gradient(objective.displaced(g, -t))
        change = float(vectors.norm(vectors.subtract(there, g)))
        losses.append(loss)
        changes.append(change)
        ratios.append(change / (t * length) if length > 0 else math.nan)
    cost = objective.cost_ge - before
    return GradientSmoothness(tuple(distances), tuple(losses), tuple(changes), max(ratios), cost)
