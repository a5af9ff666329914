r"""Evaluate the loss at a list of points, one forward each, for slices, rays and paths.

The weights are written in place, point after point, and restored from a copy at the end: no copy per point, no
gradient, and never a restore by subtraction. In eval mode one guard holds for the whole sweep; in train mode every
point gets its own, since dropout masks and BatchNorm buffers must be the same at each, as where the forward writes
weights.

A long sweep keeps what it has in a file every few seconds, and goes on from there when it is started again with the
same points.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from optland import vectors
from optland.archive import Archived, load, save
from optland.landscape.together import stacked
from optland.objective import FORWARD_GE, Objective
from optland.vectors import Vector

__all__ = ["Progress", "Sweep", "sweep"]

Progress = Callable[[int, int, float], None]
"""``progress(done, total, seconds_left)``, called at most a few times per second."""

SAVE_EVERY = 5.0
REPORT_EVERY = 0.2


@dataclass(frozen=True, slots=True)
class _Part(Archived):
    """An unfinished sweep: which one, how far, and what was found."""

    key: str
    done: int
    values: Tensor


@dataclass(frozen=True, slots=True)
class Sweep:
    """Losses at points, and the number of forward passes over the data that they took.

    Attributes:
        values: A loss for each place, float64; NaN and infinities stay.
        num_forwards: Passes over the data in this call; what an interrupted sweep had found is not counted again.
        cost_ge: Gradient evaluations of these.
    """

    values: Tensor
    num_forwards: int
    cost_ge: float


def sweep(
    objective: Objective,
    directions: Sequence[Vector],
    places: Sequence[Sequence[float]],
    *,
    together: int = 1,
    partial: str | Path | None = None,
    progress: Progress | None = None,
) -> Sweep:
    r"""L(w + sum_i t_i d_i) at every place t.

    Args:
        objective: The loss.
        directions: d_i, each in the shapes of the parameters.
        places: Multiples t_i, one for each direction.
        together: Points in one call of the model, see :mod:`~optland.landscape.together`; 1 by default, which every
            model can do; 32 suits nets whose forward takes less than a millisecond or two.
        partial: File (without ending) that an interrupted sweep continues from; removed when done.
        progress: Told how far it is.

    Raises:
        ValueError: ``together`` is below 1, or more than the model or its mode can do.
        ValueError: ``partial`` is the file of a sweep of other points, weights or data.

    Returns:
        Losses in float64, NaN or infinite where the loss is.
    """
    if together < 1:
        raise ValueError(f"together {together}: at least one point at a time; use 1, or 32 for a small net")
    base = vectors.clone([p.detach() for p in objective.params])
    values = torch.full((len(places),), math.nan, dtype=torch.float64)
    key = _key(objective, directions, places, base) if partial is not None else ""
    first = _continue(partial, key, values)
    started = saved = told = time.monotonic()
    with _held(objective, base, directions, together) as value:
        for i in range(first, len(places), together):
            end = min(i + together, len(places))
            values[i:end] = value(places[i:end])
            now = time.monotonic()
            if partial is not None and now - saved > SAVE_EVERY:
                save(_Part(key, end, values), partial)
                saved = now
            if progress is not None and (now - told > REPORT_EVERY or end == len(places)):
                progress(end, len(places), (now - started) / (end - first) * (len(places) - end))
                told = now
    if partial is not None:
        for ending in (".json", ".npz"):
            Path(f"{partial}{ending}").unlink(missing_ok=True)
    count = len(places) - first
    return Sweep(values, count, count * FORWARD_GE * objective.num_samples)


@contextmanager
def _held(
    objective: Objective, base: Vector, directions: Sequence[Vector], together: int
) -> Iterator[Callable[[Sequence[Sequence[float]]], Tensor]]:
    """A function that gives the losses at some places, with the weights held for the whole block."""
    weights = [p.data for p in objective.params]
    several = stacked(objective, base, directions) if together > 1 else None

    def measure() -> float:
        total, count = 0.0, 0.0
        for loss, n in objective.losses():
            total += float(loss)
            count += n
        return total / count

    def one(place: Sequence[float]) -> float:
        vectors.copy_(weights, base)
        for t, d in zip(place, directions, strict=True):
            if t != 0.0:
                vectors.axpy_(t, d, weights)
        if held:
            return measure()
        if objective.mode == "eval" and objective.settled:
            guard.enter_context(objective.context())
            held.append(True)
            return measure()
        with objective.context():
            return measure()

    def value(places: Sequence[Sequence[float]]) -> Tensor:
        objective.cost_ge += len(places) * FORWARD_GE * objective.num_samples
        if several is not None:
            with objective.context():
                objective.notes.replaced = True
                return several(places)
        return torch.tensor([one(place) for place in places], dtype=torch.float64)

    with objective.at(weights), torch.no_grad(), ExitStack() as guard:
        held: list[bool] = []  # once it is known that the forward writes no weights
        yield value


def _continue(partial: str | Path | None, key: str, values: Tensor) -> int:
    """Fill in what an interrupted sweep of the same points has found; returns where to go on."""
    if partial is None or not Path(f"{partial}.json").exists():
        return 0
    part = load(partial, _Part)
    if part.key != key:
        raise ValueError(
            f"{partial}.json belongs to another sweep (other weights, directions, points or data); remove it or "
            "choose another file"
        )
    values[: part.done] = part.values[: part.done]
    return part.done


def _key(
    objective: Objective, directions: Sequence[Vector], places: Sequence[Sequence[float]], base: Vector
) -> str:
    """Tells sweeps apart: the points, the data's name and size, and sums over every vector."""
    sums = [[float(t.double().sum()), float(t.double().norm())] for v in (base, *directions) for t in v]
    text = repr((objective.data, objective.num_samples, objective.mode, [list(p) for p in places], sums))
    return hashlib.sha256(text.encode()).hexdigest()
