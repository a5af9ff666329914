r"""Survey one point of a loss: curvature, two planes, rays, sharpness, effective dimension.

A survey is what a report shows of one checkpoint. Its parts are the functions of :mod:`optland.landscape` and
:mod:`optland.curvature`, with one seed and on one set of data. The second plane runs along the eigenvectors of the
largest and the smallest eigenvalue, so that what two random directions cannot see is there to be seen.

Every part that is done lies in a folder, under a name that depends on the weights, the data and the settings: a survey
that was interrupted goes on there, and another one never takes it for its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from optland import vectors
from optland.archive import Archived
from optland.curvature.cost import costs
from optland.curvature.points.portrait import Portrait, portrait
from optland.landscape import (
    Direction,
    EffectiveDimension,
    Minimum,
    Rays,
    Slice,
    compare_minima,
    effective_dimension,
    eigenvector_direction,
    plane,
    random_direction,
    rate_sensitivity,
    rays,
)
from optland.landscape.rate import RateSensitivity
from optland.objective import FORWARD_GE, Objective
from optland.report.store import Store, key_of

__all__ = ["Survey", "SurveySettings", "survey"]

Watch = Callable[[str], None]


@dataclass(frozen=True)
class SurveySettings:
    """How much to look at; the defaults take about a minute for a small net on two cores.

    Attributes:
        num_points: Of a side of each plane, odd.
        distance: The random plane runs from minus to plus this multiple of its filter-normalised directions.
        k: Eigenvalues at each end.
        max_matvecs: Most Hessian products of each part of the curvature.
        density: Whether to take the density of all eigenvalues, the dearest part of the curvature.
        num_rays: Random rays.
        radii: Of the sharpness.
        num_gradients: Batch gradients for the effective dimension; 0 leaves it out.
        seed: Of everything random.

    Raises:
        ValueError: A value that cannot be.
    """

    num_points: int = 21
    distance: float = 1.0
    k: int = 3
    max_matvecs: int = 100
    density: bool = True
    num_rays: int = 20
    radii: tuple[float, ...] = (0.05, 0.2)
    num_gradients: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_points < 3 or self.num_points % 2 == 0:
            raise ValueError(
                f"num_points: {self.num_points} must be odd and at least 3, so that the centre is one of them"
            )
        if not self.distance > 0 or not all(r > 0 for r in self.radii) or not self.radii:
            raise ValueError(f"distance: {self.distance} and radii: {list(self.radii)} must all be above 0")
        if (
            min(self.k, self.max_matvecs) < 1
            or self.num_rays < 2
            or self.num_gradients < 0
            or 0 < self.num_gradients < 4
        ):
            raise ValueError(
                f"k: {self.k} and max_matvecs: {self.max_matvecs} must be at least 1, "
                f"num_rays: {self.num_rays} at least 2, num_gradients: {self.num_gradients} 0 or at least 4"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Survey(Archived):
    """The measurements at one point.

    Attributes:
        name: Of the point.
        portrait: Spectrum, trace, density and the kind of point.
        random: The plane of two filter-normalised random directions.
        eigen: The plane of the eigenvectors of the largest and the smallest eigenvalue; None where there are not two.
        rays: Curvature along random rays.
        minimum: Sharpness, and the gap where a test loss was given.
        dimension: Of batch gradients; None where it was left out.
        rate: The loss after one step of plain descent, by learning rate; None where the gradient is zero.
    """

    name: str
    portrait: Portrait
    random: Slice
    eigen: Slice | None
    rays: Rays
    minimum: Minimum
    dimension: EffectiveDimension | None
    rate: RateSensitivity | None = None

    @property
    def cost_ge(self) -> float:
        """Gradient evaluations of all that, whether in one go or not."""
        parts = [self.portrait.cost_ge, self.random.cost_ge, self.rays.mean.cost_ge, self.minimum.cost_ge]
        parts += [part.cost_ge for part in (self.eigen, self.rate) if part is not None]
        gradients = self.random.provenance.num_samples if self.dimension is not None else 0
        return sum(parts) + gradients


def _cost(objective: Objective, settings: SurveySettings) -> float:
    """The most that :func:`survey` can cost in gradient evaluations, known before it runs."""
    n = objective.num_samples
    forwards = 2 * (settings.num_points**2 + 1) + 5 * settings.num_rays
    forwards += 2 * len(settings.radii) * (2 * 25 + 1 + 2 + 40) + 2 + 12 + 25
    gradients = 1 + 2 * len(settings.radii) * (1 + 40) + (1 if settings.num_gradients else 0)
    products = 2.5 * (settings.num_rays + 80 + 4)
    own = portrait.cost(objective, max_matvecs=settings.max_matvecs, with_density=settings.density)
    return own + n * (forwards * FORWARD_GE + gradients + products)


@costs(_cost)
def survey(
    name: str,
    objective: Objective,
    settings: SurveySettings | None = None,
    *,
    test: Objective | None = None,
    is_sample: bool = False,
    partial: str | Path | None = None,
    watch: Watch | None = None,
) -> Survey:
    """Look at the present weights from all sides.

    Args:
        name: Of the point, for tables and files.
        objective: The loss.
        settings: How much to look at.
        test: The loss of the same model on test data, for a second surface and for the gap.
        is_sample: Whether the data are a sample of those that matter, for the verdict.
        partial: Folder for the parts that are done; an interrupted survey goes on from there.
        watch: Called with the name of each part before it begins.

    Returns:
        What was measured; the weights are those of before. At most ``survey.cost(objective, settings)`` gradient
        evaluations.

    Raises:
        ValueError: Settings that cannot be, or a test loss of another model.
    """
    chosen = settings or SurveySettings()
    store = Store(partial, name, key_of(asdict(chosen), *(o for o in (objective, test) if o is not None)))
    begin = watch or (lambda part: None)
    others = {} if test is None else {"test loss": test}

    begin("curvature")
    point = store.of("portrait", Portrait, lambda: portrait(
        objective, k=chosen.k, max_matvecs=chosen.max_matvecs, with_density=chosen.density, is_sample=is_sample,
        seed=chosen.seed,
    ))  # fmt: skip
    begin("random plane")
    first, second, far = _random_pair(objective, chosen)
    partial = store.path("random-partial")
    random = store.of("random", Slice, lambda: plane(
        objective, first, second, distance=far, num_points=chosen.num_points, others=others, partial=partial
    ))  # fmt: skip
    begin("plane of eigenvectors")
    eigen = _eigen_plane(objective, point, random, chosen, store)
    begin("rays")
    found_rays = store.of("rays", Rays, lambda: rays(objective, num_rays=chosen.num_rays, seed=chosen.seed))
    begin("sharpness")
    minimum = store.of("minimum", Minimum, lambda: compare_minima(
        {name: objective}, others={} if test is None else {name: test}, radii=chosen.radii, seed=chosen.seed
    ).minima[0])  # fmt: skip
    dimension = None
    if chosen.num_gradients:
        begin("effective dimension")
        dimension = store.of("dimension", EffectiveDimension, lambda: _dimension(objective, chosen))
    begin("sensitivity to the rate")
    rate = None
    if point.point.grad_norm.value > 0:
        rate = store.of("rate", RateSensitivity, lambda: rate_sensitivity(objective))
    return Survey(name, point, random, eigen, found_rays, minimum, dimension, rate)


def _random_pair(objective: Objective, settings: SurveySettings) -> tuple[Direction, Direction, float]:
    """Two filter-normalised directions and how far to go; of length |w| where there is no filter to normalise."""
    size = float(vectors.norm([p.detach() for p in objective.params]))
    filters = any(p.ndim >= 2 for p in objective.params)
    one, two = (
        random_direction(objective, normalise="filter" if filters else "unit", seed=settings.seed + i)
        for i in (1, 2)
    )
    return one, two, settings.distance * (1.0 if filters or size == 0.0 else size)


def _eigen_plane(
    objective: Objective, point: Portrait, random: Slice, settings: SurveySettings, store: Store
) -> Slice | None:
    r"""The plane of both extreme eigenvectors, as far as the loss rises over half of the random plane.

    .. math:: t = \min\Bigl(\sqrt{2 \Delta / |\lambda|},\; \tfrac12 \lVert w \rVert\Bigr)

    along each, with :math:`\Delta` the median rise over the random plane: where a parabola of that curvature has risen
    so far, and never farther than half of the weights' norm.
    """
    spectrum = point.spectrum
    if len(spectrum.vectors) < 2:
        return None
    finite = random.loss[torch.isfinite(random.loss)]
    rise = max(float(finite.median()) - random.centre["loss"], 1e-3 * abs(random.centre["loss"]), 1e-12)
    size = float(vectors.norm([p.detach() for p in objective.params]))

    def reach(value: float) -> float:
        return min(math.sqrt(2 * rise / max(abs(value), 1e-30)), 0.5 * max(size, 1e-6))

    top, bottom = (eigenvector_direction(objective, spectrum, i) for i in (0, -1))
    far = [reach(spectrum.values[i].value) for i in (0, -1)]
    return store.of("eigen", Slice, lambda: plane(
        objective, top, bottom, ranges=((-far[0], far[0]), (-far[1], far[1])), num_points=settings.num_points,
        partial=store.path("eigen-partial"),
    ))  # fmt: skip


def _dimension(objective: Objective, settings: SurveySettings) -> EffectiveDimension:
    """Of the gradients of so many pieces of the data's batches."""
    pieces, kind = [], objective.kind
    per_batch = max(1, math.ceil(settings.num_gradients / max(1, len(list(objective.batches)))))
    for batch in objective.batches:
        pieces += kind.cut(batch, min(per_batch, kind.count(batch)))
    chosen = pieces[: settings.num_gradients]
    return effective_dimension([objective.on(piece, kind.count(piece)).gradient() for piece in chosen])
