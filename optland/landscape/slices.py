r"""Slices of the loss: along a line, and over a plane, in weight space.

.. math:: f(\alpha) = L(w + \alpha d), \qquad f(\alpha, \beta) = L(w + \alpha d_1 + \beta d_2)

**Cost.** One forward per point (a third of a gradient evaluation per sample), plus one Hessian product per direction
for the curvature.

**What a slice says.** What is drawn, and no more: along a random direction in d dimensions the curvature is close to
its mean tr(H)/d for unit length, so a saddle usually looks like a bowl. Every slice therefore carries d'Hd along its
own directions. Distances are multiples of the direction; ``weight_units`` gives them in ||w||.

**Caveats.** Cells that are not finite stay NaN or infinite. Batch normalisation in eval mode keeps the running
statistics of the centre, so far from it the net is not the one that training would see; ``mode="train"`` recomputes
them in each point.

References: Goodfellow et al. 2015, arXiv:1412.6544 (lines); Li et al. 2018, arXiv:1712.09913 (planes); Böttcher and
Wheeler 2024, arXiv:2208.13219.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from optland import vectors
from optland.archive import Archived
from optland.curvature import hessian
from optland.estimate import Provenance
from optland.landscape.directions import Direction, cosine, difference, made
from optland.landscape.sweep import Progress, sweep
from optland.objective import FORWARD_GE, Objective

__all__ = ["Ruggedness", "Slice", "checkpoint_plane", "line", "plane", "ruggedness"]


@dataclass(frozen=True, slots=True)
class Slice(Archived):
    """Losses over a line or a plane.

    Attributes:
        directions: One or two.
        coordinates: Multiples along each of them, ascending.
        surfaces: By name (``loss``, and what else was asked for): a value for each point, one-dimensional for a line,
            with the first direction along the rows for a plane; float64.
        centre: By name: the value at the weights themselves.
        curvature: d'Hd along each direction, exact; NaN where it was not asked for.
        cosine: Cosine between the two directions; 0 for a line.
        markers: Named places, such as checkpoints.
        provenance: Data, mode, how.
        num_forwards: Passes over the data.
        cost_ge: Gradient evaluations, that of d'Hd included.
    """

    directions: tuple[Direction, ...]
    coordinates: tuple[Tensor, ...]
    surfaces: dict[str, Tensor]
    centre: dict[str, float]
    curvature: tuple[float, ...]
    cosine: float
    markers: dict[str, tuple[float, ...]]
    provenance: Provenance
    num_forwards: int
    cost_ge: float

    @property
    def loss(self) -> Tensor:
        """The first surface."""
        return next(iter(self.surfaces.values()))

    @property
    def weight_units(self) -> tuple[Tensor, ...]:
        """The coordinates as distances in units of the weights' norm."""
        return tuple(x * unit for x, unit in zip(self.coordinates, self.lengths, strict=True))

    @property
    def lengths(self) -> tuple[float, ...]:
        """Of each direction, in units of the weights' norm."""
        return tuple(d.norm / max(d.weight_norm, 1e-30) for d in self.directions)

    @property
    def nonfinite(self) -> float:
        """Share of points whose loss is not finite."""
        return 1.0 - float(torch.isfinite(self.loss).double().mean())

    def __str__(self) -> str:
        size = " x ".join(str(len(x)) for x in self.coordinates)
        bends = ", ".join(f"{c:.4g}" for c in self.curvature)
        return f"slice {size} of {self.provenance.data}, loss {self.centre[next(iter(self.centre))]:.4g}, d'Hd {bends}"


def line(
    objective: Objective,
    direction: Direction,
    *,
    distance: float = 1.0,
    num_points: int = 41,
    others: Mapping[str, Objective] | None = None,
    with_curvature: bool = True,
    num_together: int = 1,
    partial: str | Path | None = None,
    progress: Progress | None = None,
) -> Slice:
    """The loss along a line through the present weights.

    Args:
        objective: The loss.
        direction: Where to.
        distance: The line runs from minus to plus this multiple of the direction.
        num_points: Odd, so that the weights themselves are one of them; 41.
        others: Further surfaces of the same model, by name: the test loss, an error rate.
        with_curvature: Whether to measure d'Hd (one Hessian product).
        num_together: Points in one call of the model; 32 makes slices of small nets two to four times as fast.
        partial: File that an interrupted slice continues from.
        progress: Told how far it is.

    Raises:
        ValueError: Too few or an even number of points, a distance that is not positive, a direction of another
            model, or no finite point at all.

    Example:
        >>> from optland.problems import quadratic
        >>> from optland.landscape import line, random_direction
        >>> L = quadratic(torch.diag(torch.tensor([2.0, 4.0], dtype=torch.float64)))
        >>> d = random_direction(L, normalise="unit")
        >>> f = line(L, d, num_points=3)
        >>> bool(torch.isclose(f.loss[0] - 2 * f.loss[1] + f.loss[2], torch.tensor(f.curvature[0]).double()))
        True
    """
    axis = _axis(distance, num_points)
    return _slice(
        objective,
        (direction,),
        (axis,),
        others or {},
        {},
        with_curvature=with_curvature,
        num_together=num_together,
        partial=partial,
        progress=progress,
    )


def plane(
    objective: Objective,
    first: Direction,
    second: Direction,
    *,
    distance: float = 1.0,
    num_points: int = 25,
    others: Mapping[str, Objective] | None = None,
    markers: Mapping[str, tuple[float, float]] | None = None,
    ranges: tuple[tuple[float, float], tuple[float, float]] | None = None,
    with_curvature: bool = True,
    num_together: int = 1,
    partial: str | Path | None = None,
    progress: Progress | None = None,
) -> Slice:
    """The loss over the plane of two directions, ``num_points`` x ``num_points``.

    The directions are taken as they are: making filter-normalised ones orthogonal would undo the normalisation. Their
    cosine is in the result.

    Args:
        objective: The loss.
        first: Along the rows.
        second: Along the columns.
        distance: Both axes run from minus to plus this multiple of their direction.
        num_points: Along each axis.
        others: Further surfaces of the same model, by name.
        markers: Places to draw, such as checkpoints.
        ranges: (low, high) of each axis, instead of ``distance``.
        with_curvature: Whether to measure d'Hd (two Hessian products).
        num_together: Points in one call of the model; 32 makes slices of small nets two to four times as fast.
        partial: File that an interrupted slice continues from.
        progress: Told how far it is.

    Raises:
        ValueError: As :func:`line`, or two parallel directions.
    """
    if abs(cosine(first, second)) > 1.0 - 1e-9:
        raise ValueError(f"{first.kind!r} and {second.kind!r} are parallel; a plane needs two directions")
    axes = (
        (_axis(distance, num_points), _axis(distance, num_points))
        if ranges is None
        else (_between(*ranges[0], num_points), _between(*ranges[1], num_points))
    )
    return _slice(
        objective, (first, second), axes, others or {}, dict(markers or {}), with_curvature=with_curvature,
        num_together=num_together, partial=partial, progress=progress,
    )  # fmt: skip


def checkpoint_plane(
    objective: Objective,
    second: Sequence[Tensor],
    third: Sequence[Tensor],
    *,
    num_points: int = 25,
) -> Slice:
    """The plane through the present weights and two other checkpoints, in an orthonormal basis (Gram-Schmidt).

    Args:
        objective: The loss, at the first checkpoint.
        second: Weights of the second.
        third: Weights of the third.
        num_points: Along each axis, which has a quarter of the extent of the three as room around them.

    Returns:
        A slice whose markers are the three checkpoints, in units of the distance between weights.

    Raises:
        ValueError: The checkpoints have other shapes, or lie on a line.
    """
    to_second, to_third = difference(objective, second), difference(objective, third)
    u = vectors.scaled(1.0 / to_second.norm, to_second.tensors)
    along = float(vectors.dot(to_third.tensors, u))
    rest = [t - along * a for t, a in zip(to_third.tensors, u, strict=True)]
    height = float(vectors.norm(rest))
    if height < 1e-6 * to_third.norm:
        raise ValueError("the three checkpoints lie on a line; draw a line slice instead")
    v = vectors.scaled(1.0 / height, rest)
    places = {"first": (0.0, 0.0), "second": (to_second.norm, 0.0), "third": (along, height)}
    ranges = around(list(places.values()), 0.25)
    return plane(
        objective, made(objective, u, "first to second checkpoint"), made(objective, v, "towards the third"),
        ranges=ranges, num_points=num_points, markers=places, with_curvature=False,
    )  # fmt: skip


def around(
    places: Sequence[tuple[float, float]], margin: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """(low, high) of both coordinates of some places, with room around them as a share of their extent.

    Args:
        places: Pairs of coordinates, at least one.
        margin: Share of the extent of each coordinate, on both sides.
    """
    found = []
    for along in zip(*places, strict=True):
        low, high = min(along), max(along)
        room = margin * max(high - low, 1e-12)
        found.append((low - room, high + room))
    return found[0], found[1]


def _axis(distance: float, points: int) -> Tensor:
    if not distance > 0 or not math.isfinite(distance):
        raise ValueError(
            f"distance {distance} must be above 0, in multiples of the direction; use for example 1.0"
        )
    if points < 3 or points % 2 == 0:
        raise ValueError(
            f"num_points {points}: use an odd number of at least 3, so that the centre is one of them"
        )
    axis = _between(-distance, distance, points)
    axis[points // 2] = 0.0  # the centre itself, not what rounding makes of it
    return axis


def _between(low: float, high: float, points: int) -> Tensor:
    if not high > low:
        raise ValueError(f"the range ({low}, {high}) is empty; give (low, high)")
    return torch.linspace(low, high, points, dtype=torch.float64)


def _slice(
    objective: Objective,
    directions: tuple[Direction, ...],
    axes: tuple[Tensor, ...],
    others: Mapping[str, Objective],
    markers: dict[str, tuple[float, ...]],
    *,
    with_curvature: bool,
    num_together: int,
    partial: str | Path | None,
    progress: Progress | None,
) -> Slice:
    for d in directions:
        made(objective, d.tensors, d.kind)  # refuses another model's
    for name, other in others.items():
        if other.model is not objective.model:
            raise ValueError(f"the surface {name!r} has another model; make its Objective of the same module")
    places = torch.cartesian_prod(*axes).reshape(-1, len(axes)).tolist()
    shape = tuple(len(x) for x in axes)
    vectors_of = [d.tensors for d in directions]
    surfaces: dict[str, Tensor] = {}
    centre: dict[str, float] = {}
    forwards, cost = 0, 0.0
    for name, loss in {"loss": objective, **others}.items():
        file = None if partial is None else f"{partial}.{name}"
        found = sweep(loss, vectors_of, places, together=num_together, partial=file, progress=progress)
        surfaces[name] = found.values.reshape(shape)
        middle = tuple(int(x.abs().argmin()) for x in axes)
        at_centre = all(float(x[i]) == 0.0 for x, i in zip(axes, middle, strict=True))
        centre[name] = float(surfaces[name][middle]) if at_centre else loss.value()
        extra = 0 if at_centre else 1
        forwards += found.num_forwards + extra
        cost += found.cost_ge + extra * FORWARD_GE * loss.num_samples
    if not bool(torch.isfinite(surfaces["loss"]).any()):
        raise ValueError(
            "no point of the slice has a finite loss; use a smaller distance, or look at the weights"
        )
    before = objective.cost_ge
    curvature = tuple(_curvature(objective, d) if with_curvature else math.nan for d in directions)
    cost += objective.cost_ge - before
    between = cosine(*directions) if len(directions) == 2 else 0.0
    kinds = " x ".join(d.kind for d in directions)
    provenance = objective.provenance(f"slice along {kinds}", directions[0].seed)
    return Slice(directions, axes, surfaces, centre, curvature, between, markers, provenance, forwards, cost)


def _curvature(objective: Objective, direction: Direction) -> float:
    """The curvature d'Hd by one product."""
    with hessian(objective) as H:
        return float(vectors.dot(direction.tensors, H.matvec(direction.tensors)))


@dataclass(frozen=True, slots=True)
class Ruggedness(Archived):
    """Measures of how far a slice is from a smooth bowl.

    Attributes:
        nonconvex: Share of second differences along the axes that are negative, beyond rounding.
        roughness: Root mean square distance from the best quadratic, relative to the range of the loss.
    """

    nonconvex: float
    roughness: float


def ruggedness(found: Slice) -> Ruggedness:
    """Measures of a slice's shape, over its finite points.

    Args:
        found: A line or a plane; points that are not finite are left out.

    Returns:
        Two numbers without units: 0 and 0 for a convex quadratic.

    Raises:
        ValueError: Fewer finite points than a quadratic has coefficients.

    Example:
        >>> from optland.problems import quadratic
        >>> from optland.landscape import line, random_direction, ruggedness
        >>> L = quadratic(torch.eye(2, dtype=torch.float64))
        >>> ruggedness(line(L, random_direction(L, normalise="unit"))).nonconvex
        0.0
    """
    loss = found.loss
    bends = []
    for axis in range(loss.ndim):
        middle = loss.narrow(axis, 1, loss.shape[axis] - 2)
        low, high = loss.narrow(axis, 0, middle.shape[axis]), loss.narrow(axis, 2, middle.shape[axis])
        bends.append((low - 2 * middle + high).flatten())
    second = torch.cat(bends)
    finite = torch.isfinite(loss)
    eps = torch.finfo(getattr(torch, found.provenance.dtype)).eps
    rounding = 8 * eps * float(loss[finite].abs().max())
    known = second[torch.isfinite(second)]
    nonconvex = float((known < -rounding).double().mean()) if len(known) else math.nan
    return Ruggedness(nonconvex, _roughness(found, finite))


def _roughness(found: Slice, finite: Tensor) -> float:
    grids = [g[finite] for g in torch.meshgrid(*found.coordinates, indexing="ij")]
    columns = [torch.ones_like(grids[0]), *grids]
    columns += [grids[i] * grids[j] for i in range(len(grids)) for j in range(i, len(grids))]
    design, values = torch.stack(columns, dim=1), found.loss[finite]
    if len(values) < design.shape[1] + 1:
        raise ValueError(
            f"{len(values)} finite points are too few for a quadratic; use more or a smaller distance"
        )
    fit = torch.linalg.lstsq(design, values[:, None]).solution
    rest = values - (design @ fit)[:, 0]
    spread = float(values.max() - values.min())
    return float(rest.square().mean().sqrt()) / spread if spread > 0 else 0.0
