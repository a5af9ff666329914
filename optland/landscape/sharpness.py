r"""Sharpness measures: the rise of the loss inside a ball around the weights, in every common form.

.. math::
    \text{average} &: \mathbb{E}_{u \sim N(0, I)}\, L(w + \rho\, T u) - L(w)
        \;\approx\; \tfrac12 \rho^2 \operatorname{tr}(T H T) \\
    \text{worst} &: \max_{\lVert T^{-1} \delta \rVert_p \le \rho} L(w + \delta) - L(w) \\
    \text{sam} &: L\bigl(w + \rho\, T^2 g / \lVert T g \rVert\bigr) - L(w) \\
    \text{random} &: \max_{i \le n} L(w + \rho\, T u_i / \lVert u_i \rVert) - L(w)

T is the identity, or |w| entry by entry for adaptive sharpness, which does not change when a ReLU layer is scaled up
and the next one down (Dinh et al. 2017, arXiv:1703.04933, showed that the others can be made anything that way).

With m samples per batch, *m-sharpness* is the mean over disjoint batches of each batch's own value: larger than that of
all data together, and the one that SAM lowers. **A value without (m, radius, p, T, mode) means nothing**, so the result
carries all of them in its name.

**Caveats.** ``worst`` is found by ascent from several starts, a lower bound of the maximum. ``random`` (the best of n
random directions) sees next to nothing in high dimension. No sharpness has been found to predict generalisation
across settings (Andriushchenko et al. 2023, arXiv:2302.07011); it follows the learning rate first of all.

References: Keskar et al. 2017, arXiv:1609.04836; Foret et al. 2021, arXiv:2010.01412 (SAM, m-sharpness); Kwon et al.
2021, arXiv:2102.11600 (adaptive); Croce and Hein 2020, arXiv:2003.01690 (the ascent's step rule).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from optland import vectors
from optland.archive import Archived
from optland.estimate import Estimate
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["Sharpness", "average_sharpness", "random_sharpness", "sam_sharpness", "worst_sharpness"]

Metric = Literal["identity", "adaptive"]

FLOOR = 1e-12
"""Added to |w| in the adaptive metric: a weight at 0 does not move, and nothing is divided by it."""


@dataclass(frozen=True, slots=True)
class Sharpness(Archived):
    """A rise of the loss, with everything that decides its value.

    Attributes:
        rise: The value; its error is the standard error over samples or batches, or none.
        kind: ``average``, ``worst``, ``sam`` or ``random``.
        m: Samples of a batch; None for all the data together.
        radius: Of the ball; of ``sam`` the rho of SAM, of ``average`` the deviation of each weight.
        p: Norm of the ball, 2 or infinity.
        metric: ``identity`` or ``adaptive``.
    """

    rise: Estimate
    kind: str
    m: int | None
    radius: float
    p: float
    metric: str

    @property
    def name(self) -> str:
        """The complete name of the measurement: two values can be compared where their names agree."""
        m = "all" if self.m is None else self.m
        p = "inf" if math.isinf(self.p) else f"{self.p:g}"
        T = "|w|" if self.metric == "adaptive" else "I"
        return f"{self.kind}(m={m}, radius={self.radius:g}, p={p}, T={T}, {self.rise.provenance.mode})"

    def in_words(self, length: float | None = None) -> str:
        """What it measures, for a reader: of what is usual (all data, p = 2, evaluation mode) nothing is said.

        Args:
            length: Length of the noise of ``average``; None gives its deviation in each weight.
        """
        size = f"{self.radius if length is None else length:g}"
        noise = f"noise of {size} per weight" if length is None else f"noise of length {size}"
        words = {"average": noise, "sam": f"SAM step of {size}", "worst": f"worst within {size}"}
        parts = [words.get(self.kind, f"largest of random steps of {size}")]
        parts += ["relative to |w|"] if self.metric == "adaptive" else []
        parts += [] if self.m is None else [f"batches of {self.m}"]
        parts += ["largest entry"] if math.isinf(self.p) else []
        mode = self.rise.provenance.mode
        return ", ".join([*parts, *([] if mode == "eval" else [f"{mode} mode"])])

    def __str__(self) -> str:
        return f"{self.name} = {self.rise}"


def average_sharpness(
    objective: Objective,
    radius: float,
    *,
    metric: Metric = "identity",
    num_pairs: int = 25,
    m: int | None = None,
    seed: int = 0,
) -> Sharpness:
    """Mean rise under Gaussian noise of standard deviation ``radius`` (times |w|) in every weight.

    Noise comes in pairs +u and -u, which removes the slope's part of the error. Cost: 2 ``num_pairs`` + 1 forwards.

    Args:
        objective: The loss.
        radius: Standard deviation of a weight's move; of its relative move in the adaptive metric.
        metric: ``identity`` or ``adaptive``.
        num_pairs: Pairs of noise; 25 give the mean to about a fifth of the spread.
        m: Batch size of m-sharpness; None for all data together.
        seed: Of the noise.

    Raises:
        ValueError: A radius that is not positive, fewer than 2 pairs, or m below 1 or above the data.

    Example:
        >>> from optland.problems import quadratic
        >>> L = quadratic(torch.diag(torch.tensor([2.0, 4.0], dtype=torch.float64)))
        >>> found = average_sharpness(L, 0.1, num_pairs=200)
        >>> abs(found.rise.value - 0.5 * 0.01 * 6.0) < 4 * found.rise.error
        True
    """
    _check(radius, metric)
    if num_pairs < 2:
        raise ValueError(f"num_pairs {num_pairs}: a mean with an error needs at least 2")

    def measure(part: Objective) -> list[float]:
        base = part.value()
        generator = torch.Generator().manual_seed(seed)
        T = scale(part, metric)
        rises = []
        for _ in range(num_pairs):
            u = [t * radius * x for t, x in zip(T, _gaussian(part, generator), strict=True)]
            there, back = part.value(part.displaced(u, 1.0)), part.value(part.displaced(u, -1.0))
            rises.append(0.5 * (there + back) - base)
        return rises

    return _over_batches(objective, measure, "average", m, radius, 2.0, metric, seed)


def random_sharpness(
    objective: Objective, radius: float, *, num_draws: int = 100, seed: int = 0
) -> Sharpness:
    """Largest rise over random directions of length ``radius``: a lower bound, and a weak one in high dimension.

    Args:
        objective: The loss; its batches are evaluated for every draw.
        radius: Length of the move.
        num_draws: Directions; the largest rise grows with their number, so compare at equal ones.
        seed: Seed of the directions.

    Returns:
        The largest rise as a lower bound of the worst one; ``worst_sharpness`` climbs and finds far more.

    Raises:
        ValueError: A radius that is not positive, or fewer than one draw.
    """
    _check(radius, "identity")
    if num_draws < 1:
        raise ValueError(f"num_draws {num_draws} must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    before = objective.cost_ge
    base, best = objective.value(), -math.inf
    for _ in range(num_draws):
        u = _gaussian(objective, generator)
        best = max(best, objective.value(objective.displaced(u, radius / float(vectors.norm(u)))))
    cost = objective.cost_ge - before
    provenance = objective.provenance(f"best of {num_draws} random directions", seed)
    rise = Estimate(best - base, math.nan, "none", True, cost, provenance, "A lower bound of the worst case.")
    return Sharpness(rise, "random", None, radius, 2.0, "identity")


def sam_sharpness(
    objective: Objective, radius: float, *, metric: Metric = "identity", m: int | None = None
) -> Sharpness:
    """The rise after SAM's one ascent step.

    Cost: a gradient and a forward.

    Args:
        objective: The loss.
        radius: Length of the ascent step, SAM's rho.
        metric: ``"identity"`` as SAM, or ``"adaptive"`` as ASAM.
        m: Batch size of m-sharpness, one ascent step for each batch on its own; None for all data together. The
            smaller, the larger the rise: a value without its m says nothing.

    Returns:
        The rise, its m and metric; over several batches the mean rise with its standard error.

    Raises:
        ValueError: A radius that is not positive, or m below 1 or above the data.
    """
    _check(radius, metric)

    def measure(part: Objective) -> list[float]:
        base, g = part.value_and_gradient()
        T = scale(part, metric)
        scaled = [t * x for t, x in zip(T, g, strict=True)]
        length = float(vectors.norm(scaled))
        if length == 0.0:
            return [0.0]
        return [
            part.value(part.displaced([t * x for t, x in zip(T, scaled, strict=True)], radius / length))
            - base
        ]

    return _over_batches(objective, measure, "sam", m, radius, 2.0, metric, None)


def worst_sharpness(
    objective: Objective,
    radius: float,
    *,
    p: float = 2.0,
    metric: Metric = "identity",
    num_steps: int = 20,
    num_restarts: int = 1,
    m: int | None = None,
    seed: int = 0,
) -> Sharpness:
    """Largest rise in a ball, by projected gradient ascent with momentum, its step halved when it stops paying.

    The first start is the centre, the others are random points of the ball. Cost:
    (``num_restarts`` + 1) x ``num_steps`` gradients.

    Args:
        objective: The loss.
        radius: Radius of the ball.
        p: 2, or infinity for a box.
        metric: ``identity`` or ``adaptive``.
        num_steps: Ascent steps of each start; 20.
        num_restarts: Random starts after the centre.
        m: Batch size of m-sharpness, the maximum found for each batch on its own; None for all data together.
        seed: Of the random starts.

    Raises:
        ValueError: A radius that is not positive, another norm, no steps, or m below 1 or above the data.

    Example:
        >>> from optland.problems import quadratic
        >>> L = quadratic(torch.diag(torch.tensor([5.0, 2.0], dtype=torch.float64)), torch.zeros(2).double())
        >>> round(worst_sharpness(L, 0.2).rise.value, 6)
        0.1
    """
    _check(radius, metric)
    if p not in (2.0, math.inf):
        raise ValueError(f"p={p} is not supported; use 2 or math.inf")
    if num_steps < 1 or num_restarts < 0:
        raise ValueError(f"num_steps {num_steps} must be at least 1, num_restarts {num_restarts} at least 0")

    def measure(part: Objective) -> list[float]:
        base = part.value()
        generator = torch.Generator().manual_seed(seed)
        T = scale(part, metric)
        tops = []
        for attempt in range(num_restarts + 1):
            # The gradient may be zero at the centre, so the first start is a short way off it.
            size = 1e-3 if attempt == 0 else 1.0
            u = _in_ball(_gaussian(part, generator), radius * size, p, always=True)
            tops.append(_ascend(part, T, u, radius, p, num_steps))
        return [max(tops) - base]

    return _over_batches(objective, measure, "worst", m, radius, p, metric, seed)


def _ascend(part: Objective, T: Vector, u: Vector, radius: float, p: float, steps: int) -> float:
    """The largest loss met from the start ``u`` (in units of T) on."""
    step, best, last, kept = 2.0 * radius, -math.inf, -math.inf, list(u)
    now, before, failures = list(u), list(u), 0
    for _ in range(steps):
        delta = [t * x for t, x in zip(T, now, strict=True)]
        loss, g = part.value_and_gradient(part.displaced(delta, 1.0))
        if loss > best:
            best, kept = loss, now
        failures = failures + 1 if loss <= last else 0
        if failures >= 2:  # two steps without a rise: too long a step
            step, now, before, failures = 0.5 * step, kept, kept, 0
            last = -math.inf
            continue
        last = loss
        ascent = _steepest([t * x for t, x in zip(T, g, strict=True)], p)
        trial = _in_ball([a + step * b for a, b in zip(now, ascent, strict=True)], radius, p)
        mixed = [a + 0.75 * (c - a) + 0.25 * (a - b) for a, b, c in zip(now, before, trial, strict=True)]
        before, now = now, _in_ball(mixed, radius, p)
    delta = [t * x for t, x in zip(T, now, strict=True)]
    return max(best, part.value(part.displaced(delta, 1.0)))


def _steepest(g: Vector, p: float) -> list[Tensor]:
    if math.isinf(p):
        return [x.sign() for x in g]
    length = float(vectors.norm(g))
    return vectors.scaled(1.0 / length, g) if length > 0 else list(g)


def _in_ball(u: Vector, radius: float, p: float, *, always: bool = False) -> list[Tensor]:
    """``u`` projected into the ball, or (``always``) scaled onto its surface."""
    if math.isinf(p):
        if always:
            top = max(float(x.abs().max()) for x in u if x.numel())
            return vectors.scaled(radius / top, u)
        return [x.clamp(-radius, radius) for x in u]
    length = float(vectors.norm(u))
    return vectors.scaled(radius / length, u) if always or length > radius else list(u)


def scale(objective: Objective, metric: Metric) -> list[Tensor]:
    """The diagonal of T.

    Args:
        objective: Gives the weights.
        metric: ``identity``, or else |w| with a floor, as in adaptive sharpness.

    Returns:
        In the shapes of the parameters.
    """
    params = [p.detach() for p in objective.params]
    if metric == "identity":
        return [torch.ones_like(p) for p in params]
    return [p.abs() + FLOOR for p in params]


def _gaussian(objective: Objective, generator: torch.Generator) -> list[Tensor]:
    return [
        torch.randn(p.shape, generator=generator, dtype=torch.float64).to(device=p.device, dtype=p.dtype)
        for p in objective.params
    ]


def _check(radius: float, metric: str) -> None:
    if not radius > 0 or not math.isfinite(radius):
        raise ValueError(f"radius {radius} must be above 0, for example 0.05")
    if metric not in ("identity", "adaptive"):
        raise ValueError(f"metric {metric!r} is not known; use 'identity' or 'adaptive'")


def _parts(objective: Objective, m: int) -> Iterator[Objective]:
    """The data cut into batches of m samples; a remainder smaller than m is left out where rows are samples."""
    kind = objective.kind
    for batch in objective.batches:
        whole = kind.count(batch) // m
        if whole == 0:
            continue
        even = not kind.by_rows or kind.count(batch) == whole * m
        for piece in kind.cut(batch if even else kind.first(batch, whole * m), whole):
            yield objective.on(piece, kind.count(piece))


def _over_batches(
    objective: Objective,
    measure: Callable[[Objective], Sequence[float]],
    kind: str,
    m: int | None,
    radius: float,
    p: float,
    metric: str,
    seed: int | None,
) -> Sharpness:
    """The mean over batches of m samples, with its standard error; or over the samples of one measurement."""
    before = objective.cost_ge
    if m is None:
        values = list(measure(objective))
    else:
        if m < 1:
            raise ValueError(f"m {m} must be at least 1 sample")
        values = [statistics.fmean(measure(part)) for part in _parts(objective, m)]
        if not values:
            raise ValueError(
                f"m {m} is larger than every batch of {objective.num_samples} samples; use a smaller m"
            )
    several = len(values) > 1
    error = statistics.stdev(values) / math.sqrt(len(values)) if several else math.nan
    what = (
        f"mean of {len(values)} batches"
        if m is not None
        else f"{len(values)} pairs"
        if several
        else "all data"
    )
    rise = Estimate(
        statistics.fmean(values), error, "standard_error" if several else "none", True,
        objective.cost_ge - before, objective.provenance(f"{kind} sharpness, {what}", seed),
    )  # fmt: skip
    return Sharpness(rise, kind, m, radius, p, metric)
