"""Choose how much ``optland probe`` measures, so that it ends in the time that is given on the machine at hand.

One Hessian product is timed, and the most products of a part are those whose declared cost fits the time. A clock may
have a say here: nothing trains, and with ``--max-matvecs`` the numbers are the same everywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from optland import vectors
from optland.curvature import hessian
from optland.curvature.points.portrait import PRODUCTS
from optland.objective import Objective

__all__ = ["Extent", "extent_within", "seconds_per_ge"]

STEPS = (PRODUCTS, 140, 100, 70, 50, 35, 25)
"""Most products of a part, from what the command makes of itself to the least that says something."""


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes:
        max_matvecs: Most Hessian products of each part.
        density: Whether the density of all eigenvalues is among the parts.
        note: What that leaves out, and how it is had; empty where it is all.
    """

    max_matvecs: int
    density: bool
    note: str = ""


def seconds_per_ge(objective: Objective) -> float:
    """Wall time of a gradient evaluation, from one Hessian product; the first, which builds the graph, does not count.

    Args:
        objective: What is to be probed. Its meter counts both products.
    """
    with hessian(objective) as H:
        v = vectors.random_unit(objective.params, seed=0)
        float(vectors.norm(H.matvec(v)))
        spent, began = objective.cost_ge, time.perf_counter()
        float(vectors.norm(H.matvec(v)))  # a number on the host: the device has finished
        return (time.perf_counter() - began) / max(objective.cost_ge - spent, 1.0)


def extent_within(
    seconds: float, pace: float, cost: Callable[[int, bool], float], *, density: bool | None = None
) -> Extent:
    """The most that fits: products are made fewer, and the density, the dearest part, is left out first.

    Args:
        seconds: How long it may take.
        pace: Seconds of a gradient evaluation.
        cost: The declared cost of so many products with or without the density, in gradient evaluations.
        density: Whether the user asked for the density, or for none; None where it may be left out.

    Returns:
        Where nothing fits, the least.

    Example:
        >>> cost = lambda m, density: 2.5 * m + (256 if density else 0)
        >>> [(e.max_matvecs, e.density) for e in (extent_within(s, 0.1, cost) for s in (80, 60, 20, 1))]
        [(200, True), (200, False), (70, False), (25, False)]
        >>> print(extent_within(20, 0.1, cost).note)
        To end in about 20 s, each part had at most 70 products in place of 200, and the density was left out: \
--max-matvecs 200 --density measures all, in up to 1:16.
    """
    whole = cost(PRODUCTS, density is not False)
    tried = [(PRODUCTS, True)] if density is not False else []
    tried += [(most, bool(density)) for most in STEPS]
    most, shown = next((t for t in tried if pace * cost(*t) <= seconds), tried[-1])
    fewer = [f"each part had at most {most} products in place of {PRODUCTS}"] if most < PRODUCTS else []
    fewer += ["the density was left out"] if density is None and not shown else []
    if not fewer:
        return Extent(most, shown)
    full = f"--max-matvecs {PRODUCTS}" + (" --density" if density is not False else "")
    left_out, longest = ", and ".join(fewer), clock(pace * whole)
    note = f"To end in about {seconds:g} s, {left_out}: {full} measures all, in up to {longest}."
    return Extent(most, shown, note)


def clock(seconds: float) -> str:
    """Minutes and seconds.

    Args:
        seconds: How many; a part of one counts as a whole one.

    Example:
        >>> clock(75.2)
        '1:16'
    """
    whole = math.ceil(seconds)
    return f"{whole // 60}:{whole % 60:02d}"
