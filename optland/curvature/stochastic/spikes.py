"""Isolated eigenvalues of a spectral density: nodes of small residual that every random start has found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from optland.archive import Archived
from optland.curvature.eigen.krylov import Array
from optland.estimate import Estimate

__all__ = ["Spike", "spikes"]

RESOLVED = 1e-3
"""Largest residual of a resolved node, as a part of the width of the spectrum: well below what smoothing shows."""

FEW = 20.0
"""Most eigenvalues that an outlier stands for: the weight of a single one is below 20 / d in all but 1e-5 of starts."""

SMALL = 0.1
"""Largest share of an outlier, which decides in small matrices."""


@dataclass(frozen=True, slots=True, eq=False)
class Spike(Archived):
    """One resolved eigenvalue.

    Attributes:
        value: The eigenvalue with its residual.
        mass: Its share of the spectrum, multiplicity / d, with the standard error from start to start.
        masses: The share in every start, (starts,).
        places: Index of its node in every start.
    """

    value: Estimate
    mass: Estimate
    masses: Array
    places: tuple[int, ...]

    def holds(self, start: int, node: int) -> bool:
        """Whether the node with this index belongs to it.

        Args:
            start: Number of the start.
            node: Index among its nodes, ascending.
        """
        return self.places[start] == node

    def few(self, d: int) -> bool:
        """Whether it is a single eigenvalue, or a few."""
        return self.mass.value <= min(FEW / d, SMALL)

    def __str__(self) -> str:
        return f"{self.value}, share {self.mass}"


def spikes(
    nodes: tuple[Array, ...],
    weights: tuple[Array, ...],
    residuals: tuple[Array, ...],
    estimate: Callable[[Array], Estimate],
) -> tuple[Spike, ...]:
    """Match the resolved nodes of all starts, descending.

    Args:
        nodes: Ritz values of each start, ascending.
        weights: Their weights.
        residuals: Their residuals.
        estimate: Mean and error of one number per start.

    Returns:
        Those whose residual in every start is below a share of the width of the spectrum, and whose intervals meet.
    """
    if not nodes:
        return ()
    width = max(max(t.max() for t in nodes) - min(t.min() for t in nodes), 0.0)
    enough = RESOLVED * width if width > 0 else np.inf
    found = []
    for i in reversed(range(len(nodes[0]))):
        places = [int(np.abs(theta - nodes[0][i]).argmin()) for theta in nodes]
        theta = np.array([t[j] for t, j in zip(nodes, places, strict=True)])
        residual = np.array([r[j] for r, j in zip(residuals, places, strict=True)])
        # Two nodes of small residuals show the same eigenvalue where their intervals meet.
        apart = np.abs(theta - theta[0]) - residual - residual[0] - 1e-9 * width
        if (residual > enough).any() or (apart > 0).any():
            continue
        masses = np.array([w[j] for w, j in zip(weights, places, strict=True)])
        best = int(residual.argmin())
        share = estimate(masses)
        value = Estimate(
            float(theta[best]), float(residual[best]), "residual", True, share.cost_ge, share.provenance
        )
        found.append(Spike(value, share, masses, tuple(places)))
    return tuple(found)
