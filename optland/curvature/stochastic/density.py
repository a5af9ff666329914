r"""The spectral density of a curvature operator by stochastic Lanczos quadrature.

.. math:: \phi(t) = \frac1d \sum_{i=1}^{d} \delta(t - \lambda_i) \approx
          \frac1s \sum_{r=1}^{s} \sum_{i=1}^{m} \tau_{ri}^2\, K_\sigma(t - \theta_{ri})

with the nodes theta and weights tau^2 of m products from each of s random unit vectors
(:mod:`~optland.curvature.stochastic.quadrature`).

**Cost.** ``steps`` times ``starts`` products; ``steps`` + 1 vectors of memory.

**When.** The whole spectrum at a glance: bulk, outliers, the share below zero. For single eigenvalues use lanczos.

**Defaults.** ``steps`` 64 resolves a fiftieth of the width of the bulk; ``starts`` 4 give a spread. The width of the
kernel follows from the nodes that the bulk has, 2 / ((m - 1) sqrt(8 ln 3)) of half its width: a narrower kernel would
draw the nodes and not the density.

**Caveats.** The basis is orthogonalised in full, so a node is an eigenvalue at most once in each start, and may be
counted. Nodes of small residual that every start has found are drawn as spikes: smoothing would hide that they are
single. The share below a value is the quadrature's; between two starts it varies by its standard error, within one it
is known to the weight of the nearest node.

**References.** Ghorbani et al. 2019, arXiv:1901.10159; Lin et al. 2016, arXiv:1308.5467 (width of the kernel).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from optland import vectors
from optland.archive import Archived
from optland.curvature.cost import costs
from optland.curvature.eigen.krylov import Array
from optland.curvature.operators.hessian import Method, declared_product_cost
from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.curvature.stochastic.quadrature import Quadrature, quadrature
from optland.curvature.stochastic.random_vectors import RandomVectors
from optland.curvature.stochastic.spikes import Spike, spikes
from optland.estimate import Estimate, Provenance
from optland.objective import Objective

__all__ = ["Curve", "Density", "density"]

KERNEL = math.sqrt(8 * math.log(3.0))
"""Nodes of the mean spacing, smoothed at 2 / KERNEL of it, leave no more than a ripple."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve(Archived):
    r"""A smoothed density on a grid.

    Attributes:
        grid: Where, (n,): eigenvalues, or log10(|eigenvalue| + epsilon).
        value: Density per unit of the grid, mean over the starts, (n,).
        error: Its standard error from start to start, (n,); NaN from a single start.
        sigma: Standard deviation of the kernel, in units of the grid.
        scale: ``"linear"`` or ``"log"``.
        epsilon: Floor of the logarithm; 0 on a linear scale.
    """

    grid: Array
    value: Array
    error: Array
    sigma: float
    scale: str
    epsilon: float


@dataclass(frozen=True, slots=True, eq=False)
class Density(Archived):
    r"""Quadrature nodes and weights of every start.

    Attributes:
        nodes: Ritz values theta of each start, ascending, float64; as many as the start had products.
        weights: tau^2 of each node; they add up to 1 in each start.
        residuals: |Hy - theta y| of each node: where it is small, the node is an eigenvalue.
        d: Dimension of the operator.
        num_matvecs: Products with the operator.
        cost_ge: Gradient evaluations spent.
        provenance: Method, data, mode and seed.
        note: One sentence when something needs saying.
    """

    nodes: tuple[Array, ...]
    weights: tuple[Array, ...]
    residuals: tuple[Array, ...]
    d: int
    num_matvecs: int
    cost_ge: float
    provenance: Provenance
    note: str = ""

    @property
    def spikes(self) -> tuple[Spike, ...]:
        """Eigenvalues that every start has resolved, descending, with their share of the spectrum."""
        return spikes(self.nodes, self.weights, self.residuals, self._estimate)

    @property
    def outliers(self) -> tuple[Spike, ...]:
        """The spikes that are a single eigenvalue, or a few, and no part of the bulk."""
        return tuple(spike for spike in self.spikes if spike.few(self.d))

    @property
    def sigma(self) -> float:
        """Standard deviation of the kernel that the number of nodes in the bulk allows; 0 where all are spikes."""
        return _width(self._bulk()[0])

    def curve(
        self,
        grid: Array | None = None,
        *,
        sigma: float | None = None,
        spikes: bool = False,
        scale: Literal["linear", "log"] = "linear",
        epsilon: float | None = None,
        num_points: int = 512,
    ) -> Curve:
        r"""The density smoothed with a Gaussian kernel.

        Args:
            grid: Where to evaluate it, in eigenvalues or, on the log scale, in log10(|eigenvalue| + epsilon);
                by default ``num_points`` points that reach four sigma beyond the nodes.
            sigma: Standard deviation of the kernel in units of the grid (default: from the number of nodes).
            spikes: Whether to smooth the spikes too, so that the curve integrates to 1, or to leave their mass out
                (default), to be drawn as :attr:`spikes`.
            scale: ``"log"`` gives the density of log10(|eigenvalue| + epsilon).
            epsilon: Floor of the logarithm, to be chosen: eigenvalues below it pile up at its place.
            num_points: Points of the default grid.

        Raises:
            ValueError: ``scale`` is unknown, the log scale without a positive ``epsilon``, or ``sigma`` not positive.
        """
        nodes, weights = (self.nodes, self.weights) if spikes else self._bulk()
        floor = _floor(scale, epsilon)
        if scale == "log":
            nodes = tuple(np.log10(np.abs(theta) + floor) for theta in nodes)
        if sigma is not None and not sigma > 0:
            raise ValueError(f"sigma={sigma} must be positive: it is the standard deviation of the kernel")
        width = sigma or _width(nodes) or self._smallest_width(nodes)
        if grid is None:
            ends = np.concatenate([*nodes, np.zeros(0)])
            low, high = (float(ends.min()), float(ends.max())) if len(ends) else (0.0, 0.0)
            grid = np.linspace(low - 4 * width, high + 4 * width, num_points)
        if not nodes:  # no start had a finite product
            nothing = np.full(len(grid), math.nan)
            return Curve(grid, nothing, nothing, width, scale, floor)
        values = np.stack([_smooth(grid, theta, w, width) for theta, w in zip(nodes, weights, strict=True)])
        return Curve(grid, values.mean(axis=0), _spread(values), width, scale, floor)

    def fraction_below(self, x: float = 0.0) -> Estimate:
        """Share of the eigenvalues below ``x``, with its standard error.

        A node of the bulk stands for eigenvalues on both sides of it, so the share rises from node to node; at a
        resolved eigenvalue it jumps. With ``x`` = -tau, the fraction of negative directions.

        Args:
            x: A curvature.

        Returns:
            Between 0 and 1. A quarter of the mean weight of the nearest node of the bulk is in the error; from a single
            start it is never converged.
        """
        bulk, weights = self._bulk()
        sharp = sum(spike.masses * (spike.value.value < x) for spike in self.spikes)
        shares = np.array([_below(x, theta, w) for theta, w in zip(bulk, weights, strict=True)]) + sharp
        nearest = [_nearest_weight(x, theta, w) for theta, w in zip(bulk, weights, strict=True)]
        return self._estimate(shares, resolution=sum(nearest) / (4 * max(1, len(nearest))))

    def index(self, tau: float = 0.0) -> Estimate:
        """Number of eigenvalues below -tau, d times the share; an estimate, not a count.

        Args:
            tau: Curvature that cannot be told from 0.

        Raises:
            ValueError: ``tau`` is negative.
        """
        if tau < 0:
            raise ValueError(f"tau={tau} must not be negative: eigenvalues below -tau are counted")
        share = self.fraction_below(-tau)
        return Estimate(
            self.d * share.value, self.d * share.error, "standard_error", share.converged, share.cost_ge,
            share.provenance, share.note,
        )  # fmt: skip

    def moment(self, p: int) -> Estimate:
        """tr(H^p) / d, exact in each start's own measure for p <= 2m - 1.

        Args:
            p: 1 for the mean eigenvalue, 2 for ||H||_F^2 / d.

        Returns:
            The mean over the starts, with their standard error; NaN error from one start.

        Raises:
            ValueError: ``p`` is negative.
        """
        if p < 0:
            raise ValueError(f"p={p} must not be negative")
        return self._estimate(
            np.array([w @ theta**p for theta, w in zip(self.nodes, self.weights, strict=True)])
        )

    def quantile(self, q: float) -> Estimate:
        """The value that the share ``q`` of the eigenvalues lies below.

        Args:
            q: 0.5 for the median.

        Returns:
            Linear between the nodes of each start, then the mean over starts with its standard error.

        Raises:
            ValueError: ``q`` is not within [0, 1].
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q={q} must lie within 0 and 1")
        return self._estimate(
            np.array(
                [
                    np.interp(q, np.cumsum(w) - w / 2, theta) if len(w) else math.nan
                    for theta, w in zip(self.nodes, self.weights, strict=True)
                ]
            )
        )

    def __str__(self) -> str:
        outliers, shown = self.outliers, 5
        lines = [
            f"density: {len(self.nodes)} starts, {self.num_matvecs} products, {self.cost_ge:.4g} GE, "
            f"sigma {self.sigma:.3g}",
            f"  mean eigenvalue  {self.moment(1)}",
            f"  share below 0    {self.fraction_below(0.0)}",
            f"  outliers         {len(outliers)}",
        ]
        lines += [f"    {spike}" for spike in outliers[:shown]]
        return "\n".join(lines + ([f"  {self.note}"] if self.note else []))

    def _bulk(self) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Nodes and weights that belong to no spike."""
        found = self.spikes
        keep = [
            np.array([not any(spike.holds(r, i) for spike in found) for i in range(len(theta))], dtype=bool)
            for r, theta in enumerate(self.nodes)
        ]
        nodes = tuple(theta[k] for theta, k in zip(self.nodes, keep, strict=True))
        return nodes, tuple(w[k] for w, k in zip(self.weights, keep, strict=True))

    def _smallest_width(self, nodes: tuple[Array, ...]) -> float:
        """A kernel for nodes that all coincide or are exact: a hundredth of what there is to see."""
        ends = np.concatenate([*nodes, np.zeros(1)])
        return 0.01 * (float(ends.max() - ends.min()) or 1.0)

    def _estimate(self, values: Array, resolution: float = 0.0) -> Estimate:
        """Mean over the starts with its standard error; from a single start, only the resolution is known."""
        several, n = len(values) > 1, max(1, len(values))
        spread = float(np.std(values, ddof=1)) / math.sqrt(n) if several else 0.0
        error = math.hypot(spread, resolution) if several or resolution > 0 else math.nan
        mean = float(np.mean(values)) if len(values) else math.nan
        kind: Literal["standard_error"] = "standard_error"
        return Estimate(
            mean, error, kind, several and math.isfinite(error), self.cost_ge, self.provenance, self.note
        )


def _cost(
    objective: Objective, num_steps: int = 64, num_starts: int = 4, *, method: Method = "auto"
) -> float:
    """The most that :func:`density` on a fresh Hessian of ``objective`` can cost, in gradient evaluations."""
    return declared_product_cost(objective, num_steps * num_starts, method=method)


@costs(_cost)
def density(H: SymmetricOperator, *, num_steps: int = 64, num_starts: int = 4, seed: int = 0) -> Density:
    """Compute quadrature nodes and weights of the spectrum of ``H``.

    Args:
        H: The operator.
        num_steps: Products from each start, m; fewer where the Krylov space ends, and then the nodes are exact.
        num_starts: Random starts; from one there is no error.
        seed: Seed of the starts.

    Returns:
        A :class:`Density`. A product that is not finite ends its start, and the note says so.

    Raises:
        ValueError: ``num_steps`` or ``num_starts`` is less than 1.

    Example:
        >>> from optland.curvature import hessian
        >>> from optland.problems import quadratic, with_spectrum
        >>> found = density(hessian(quadratic(with_spectrum([3.0] * 6 + [-1.0] * 2))), num_starts=2)
        >>> [theta.round(6).tolist() for theta in found.nodes], found.num_matvecs
        ([[-1.0, 3.0], [-1.0, 3.0]], 4)
    """
    if num_steps < 1 or num_starts < 1:
        raise ValueError(f"num_steps={num_steps} and num_starts={num_starts} must both be at least 1")
    spent, already = H.cost_ge, H.num_matvecs
    draws, found = RandomVectors(H.like, seed), list[Quadrature]()
    while len(found) < num_starts and not any(q.failed for q in found):
        found.append(quadrature(H, vectors.unflatten(draws.direction(), H.like), num_steps))
    failed, found = found[-1].failed, [q for q in found if len(q.nodes)]
    return Density(
        tuple(q.nodes for q in found), tuple(q.weights for q in found), tuple(q.residuals for q in found),
        H.dim, H.num_matvecs - already, H.cost_ge - spent,
        H.provenance(f"Lanczos quadrature of {num_steps} steps", seed),
        "A product with H was not finite." if failed else "",
    )  # fmt: skip


def _floor(scale: str, epsilon: float | None) -> float:
    if scale not in ("linear", "log"):
        raise ValueError(f"scale {scale!r} is not known; use 'linear' or 'log'")
    if scale == "linear":
        return 0.0
    if epsilon is None or not epsilon > 0:
        raise ValueError(
            f"epsilon={epsilon} must be positive on the log scale: the smallest size that matters, for example 1e-6"
        )
    return epsilon


def _width(nodes: tuple[Array, ...]) -> float:
    """Kernel width from the number of nodes and their range, mean over the starts."""
    widths = [(t.max() - t.min()) / ((len(t) - 1) * KERNEL) for t in nodes if len(t) > 1]
    return float(np.mean(widths)) if widths else 0.0


def _smooth(grid: Array, nodes: Array, weights: Array, sigma: float) -> Array:
    z = (grid[:, None] - nodes[None, :]) / sigma
    smooth: Array = np.exp(-0.5 * z**2) @ weights / (sigma * math.sqrt(2 * math.pi))
    return smooth


def _spread(values: Array) -> Array:
    n = len(values)
    error: Array = values.std(axis=0, ddof=1) / math.sqrt(n) if n > 1 else np.full(values.shape[1], math.nan)
    return error


def _below(x: float, nodes: Array, weights: Array) -> float:
    """Mass of the bulk below x, half of a node's weight on each side of it."""
    if len(nodes) == 0:
        return 0.0
    ends = np.concatenate([nodes[:1], nodes, nodes[-1:]])
    masses = np.concatenate([[0.0], np.cumsum(weights) - weights / 2, [weights.sum()]])
    if x <= ends[0] or x >= ends[-1]:
        return 0.0 if x <= ends[0] else float(weights.sum())
    return float(np.interp(x, ends[1:-1], masses[1:-1]))


def _nearest_weight(x: float, nodes: Array, weights: Array) -> float:
    """Weight of the node of the bulk nearest to x; 0 outside the bulk."""
    if len(nodes) == 0 or not nodes[0] <= x <= nodes[-1]:
        return 0.0
    return float(weights[np.abs(nodes - x).argmin()])
