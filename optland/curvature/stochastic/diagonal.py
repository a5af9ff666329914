r"""The diagonal of a curvature operator, coordinate by coordinate, with an error for each.

.. math:: \mathrm{diag}\,A \approx \frac1n \sum_{j=1}^{n} x_j, \qquad
          x = \mathrm{diag}(K) + w \circ (P A P w)

with the samples of :mod:`~optland.curvature.stochastic.probing`: plain Hutchinson has the variance
:math:`\sum_{j \ne i} A_{ij}^2` a sample in coordinate i, which a known part K lowers where few eigenvalues dominate.

**Cost.** At most ``max_matvecs`` products; two vectors of memory beside those of the trace.

**When.** Diagonal preconditioners, and curvature by weight. A single coordinate is noisy: from a dozen samples its
error often exceeds its value. The sums over layers of the same samples are far better, and come with it.

**Caveats.** Coordinates share their test vectors, so their errors are correlated: the error of a sum is not the root of
the sum of squares; use ``per_layer``. A diagonal matrix takes one Rademacher vector, and is exact.

**Reference.** Bekas et al. 2007 (an estimator for the diagonal of a matrix).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from optland import vectors
from optland.archive import Archived
from optland.curvature.cost import costs
from optland.curvature.operators.hessian import Method
from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.curvature.stochastic.probing import (
    DiagonalSamples,
    TraceMethod,
    check_probing,
    probe,
    probing_cost,
)
from optland.curvature.stochastic.trace import estimates
from optland.estimate import Estimate, Provenance
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["Diagonal", "diagonal"]


@dataclass(frozen=True, slots=True, eq=False)
class Diagonal(Archived):
    """The diagonal of A, with errors.

    Attributes:
        values: The diagonal, in the shapes of the parameters.
        errors: Standard error of every entry, alike; NaN where one sample tells no spread.
        per_layer: Sum over every parameter tensor, by its name, with its own standard error.
        total: Sum of all, the trace.
        num_samples: Samples behind the standard errors.
        num_matvecs: Products with the operator.
        cost_ge: Gradient evaluations spent.
        provenance: Method, data, mode and seed.
    """

    values: tuple[Tensor, ...]
    errors: tuple[Tensor, ...]
    per_layer: dict[str, Estimate]
    total: Estimate
    num_samples: int
    num_matvecs: int
    cost_ge: float
    provenance: Provenance

    @property
    def relative_error(self) -> float:
        """Root of the sum of squared errors over that of the squared values: how far single entries can be read."""
        size = float(vectors.norm(self.values))
        return float(vectors.norm(self.errors)) / size if size > 0 else math.nan

    def __str__(self) -> str:
        entries = sum(t.numel() for t in self.values)
        head = (
            f"diagonal: {entries} entries, error of an entry {self.relative_error:.2g} of its size (rms), sum "
            f"{self.total}, {self.num_matvecs} products, {self.cost_ge:.4g} GE"
        )
        return "\n".join([head, *(f"  {name}  {part}" for name, part in self.per_layer.items())])


def _cost(objective: Objective, max_matvecs: int = 30, *, method: Method = "auto") -> float:
    """The most that :func:`diagonal` on a fresh Hessian of ``objective`` can cost, in gradient evaluations."""
    return probing_cost(objective, max_matvecs, method)


@costs(_cost)
def diagonal(
    H: SymmetricOperator,
    *,
    method: TraceMethod = "auto",
    max_matvecs: int = 30,
    seed: int = 0,
) -> Diagonal:
    """Estimate the diagonal of ``H``.

    Args:
        H: The operator.
        method: ``"auto"``, ``"krylov"``, ``"hutchinson"`` or ``"hutch++"``, as for the trace.
        max_matvecs: Most products with ``H``.
        seed: Seed of the test vectors.

    Returns:
        A :class:`Diagonal`, entries NaN where a product was not finite or no sample fits the budget.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from optland.curvature import hessian
        >>> from optland.problems import quadratic
        >>> A = torch.diag(torch.tensor([1.0, 2.0, -3.0]))
        >>> found = diagonal(hessian(quadratic(A)), method="hutchinson", max_matvecs=1)
        >>> found.values[0].tolist()
        [1.0, 2.0, -3.0]
    """
    check_probing(H, method, max_matvecs)
    spent, already = H.cost_ge, H.num_matvecs
    samples = probe(H, method=method, max_matvecs=max_matvecs, seed=seed, want_diagonal=True)
    source = H.provenance(f"{method} diagonal, rademacher", seed)
    cost = H.cost_ge - spent
    layers, total, _ = estimates(samples, H.names, cost, source)
    values, errors = _entries(samples, H.like)
    return Diagonal(values, errors, layers, total, samples.num, H.num_matvecs - already, cost, source)


def _entries(samples: DiagonalSamples, like: Vector) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Mean and standard error of every coordinate, in the type of the arithmetic and the shapes of ``like``."""
    flat = vectors.flatten(like)
    nothing = torch.full_like(flat, math.nan)
    mean, spread, n = samples.mean, samples.spread, samples.num
    if samples.failed or mean is None or spread is None:
        return _cut(nothing, like), _cut(nothing, like)
    if samples.exact:
        return _cut(mean, like), _cut(torch.zeros_like(flat), like)
    error = (spread / (n * (n - 1))).sqrt() if n > 1 else nothing
    return _cut(mean, like), _cut(error, like)


def _cut(flat: Tensor, like: Vector) -> tuple[Tensor, ...]:
    pieces = torch.split(flat, [t.numel() for t in like])
    return tuple(piece.reshape(t.shape) for piece, t in zip(pieces, like, strict=True))
