r"""Moves away from a point: along negative curvature with a forward search, or a kick in a random direction.

Along a direction v of curvature -a at a strict saddle the loss falls by about a t^2 / 2 until higher orders take over,
so the length is found by doubling while the loss falls. Nothing is accepted that does not lower the loss beyond
rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optland import vectors
from optland.optim.saddle.evaluations import Evaluations, is_lower
from optland.vectors import Vector

__all__ = ["Move", "forward_search", "kick_search", "uniform_in_ball"]

Check = Callable[[Vector], float]


@dataclass(frozen=True)
class Move:
    """An accepted move: the point, its loss, and the length of the way there.

    Attributes:
        point: In the shapes of the weights.
        loss: There.
        length: Of the way.
    """

    point: list[Tensor]
    loss: float
    length: float


def forward_search(
    seen: Evaluations, direction: Vector, loss: float, *, start: float, most: int = 40
) -> Move | None:
    """Double the step along a unit direction while the loss falls, from ``start`` on, both ways.

    Where the first step does not fall it is made four times shorter, a few times. None where no step lowers the loss.
    At most ``most`` losses either way.

    Args:
        seen: The loss; the weights are where they were afterwards.
        direction: Unit vector; its opposite is tried where the loss falls nowhere along it.
        loss: At the weights.
        start: First length.
        most: Lengths tried either way.

    Example:
        >>> from optland.optim.saddle.evaluations import OnObjective
        >>> from optland.problems import saddle  # x^2 - y^2
        >>> up = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
        >>> found = forward_search(OnObjective(saddle()), up, 0.0, start=1.0, most=3)
        >>> found.loss, found.length  # after 1, 2 and 4
        (-16.0, 4.0)
    """
    return _search(seen, direction, loss, start=start, most=most)[0]


def _search(
    seen: Evaluations, direction: Vector, loss: float, *, start: float, most: int
) -> tuple[Move | None, int]:
    """The move of :func:`forward_search`, and how many losses it took."""
    best: Move | None = None
    made = 0
    for sign in (1.0, -1.0):
        t, tries = start, 0
        while tries < most:
            point = seen.displaced(direction, sign * t)
            value = seen.value(point)
            tries += 1
            if is_lower(value, loss if best is None else best.loss, seen.rounding):
                best = Move(point, value, t)
                t *= 2.0
            elif best is None and t > start / 300:
                t /= 4.0
            else:
                break
        made += tries
        if best is not None:
            break
    return best, made


KICKS = 10
"""Random directions that a kick is looked for along."""


def kick_search(
    seen: Evaluations,
    loss: float,
    *,
    radius: float,
    generator: torch.Generator,
    most: int = 40,
    in_all: int | None = None,
) -> Move | None:
    """Random directions, each looked along with :func:`forward_search`; None where the loss falls along none.

    Args:
        seen: The loss.
        loss: At the point.
        radius: First length tried along a direction.
        generator: Of the directions.
        most: Losses along a direction, either way.
        in_all: Losses over all directions; None allows ``most`` along each.
    """
    left = 2 * most * KICKS if in_all is None else in_all
    for _ in range(KICKS):
        if left < 2:
            return None
        u = uniform_in_ball(seen.params, 1.0, generator)
        u = vectors.scaled(1.0 / float(vectors.norm(u)), u)
        found, made = _search(seen, u, loss, start=radius, most=min(most, left // 2))
        if found is not None:
            return found
        left -= made
    return None


def uniform_in_ball(params: Vector, radius: float, generator: torch.Generator) -> list[Tensor]:
    """A point drawn uniformly from the ball of this radius: a Gaussian direction, length radius U^(1/d).

    Args:
        params: Give shapes, types and devices.
        radius: Of the ball.
        generator: On the CPU; drawn from in float64, so that all devices get the same point.

    Example:
        >>> x = uniform_in_ball([torch.zeros(3)], 0.5, torch.Generator().manual_seed(0))
        >>> bool(x[0].norm() <= 0.5)
        True
    """
    draw = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]
    length = float(torch.sqrt(sum((t.square().sum() for t in draw), torch.zeros((), dtype=torch.float64))))
    share = float(torch.rand((), generator=generator, dtype=torch.float64)) ** (1.0 / vectors.numel(draw))
    return [(t * (radius * share / max(length, 1e-300))).to(p) for t, p in zip(draw, params, strict=True)]
