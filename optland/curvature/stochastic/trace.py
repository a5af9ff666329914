r"""The trace of a curvature operator, whole and by layer, and its Frobenius norm, from a few random probes.

.. math:: \mathrm{tr}\,A = \mathrm{tr}\,K + E\,[w^\top P A P w], \qquad
          \mathrm{SE}^2 = \frac{1}{n (n - 1)} \sum_{j=1}^{n} (x_j - \bar x)^2

with a known part K (see :mod:`~optland.curvature.stochastic.probing`) and n independent samples x_j.

**Cost.** At most ``max_matvecs`` products; by parts of the data also 1.8 gradient evaluations per sample once, and the
memory of a second kept graph and of 32 vectors. Memory: the Krylov method keeps 0.6 ``max_matvecs`` vectors, Hutch++
as many as products; Hutchinson a handful, for models at the edge of memory.

**When.** Mean curvature tr(A) / d, the expected rise of the loss under random perturbations, sharpness by layer. On
trained nets 30 products give the trace to a few per cent, at 0.1 to 0.4 of Hutchinson's error, also where
the bulk holds as much as the outliers (transformers, label noise, an early stop) and deflation alone gains little.

**Defaults.** ``max_matvecs`` 30. ``method="auto"``: every column where d <= ``max_matvecs``; two Rademacher probes,
which show a diagonal (or zero) matrix to be one; else a Krylov space and probes outside it, with a test vector of its
own for each of 16 parts of the data where they can be cut (see :mod:`~optland.curvature.stochastic.parts`).

**Caveats.** Probing stops when the interval is narrower than ``rtol``, never because the running mean rests: a mean of
n samples moves by 1 / n of their spread and rests long before it is right. ``error`` is one standard error; from a
dozen samples per interval takes Student's t, which :meth:`Trace.interval` does. Errors are those of the estimator on
these data, not of the data.

**References.** Hutchinson 1990; Meyer et al. 2021, arXiv:2010.09649; Chen and
Hallman 2023, arXiv:2205.01736.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optland.archive import Archived
from optland.curvature.cost import costs
from optland.curvature.eigen.spectrum import Spectrum
from optland.curvature.operators.hessian import Method
from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.curvature.stochastic.probing import (
    DiagonalSamples,
    TraceMethod,
    check_probing,
    probe,
    probing_cost,
)
from optland.estimate import Estimate, Provenance
from optland.objective import Objective
from optland.statistics import student_quantile

__all__ = ["Trace", "frobenius", "trace", "trace_per_layer"]


@dataclass(frozen=True, slots=True)
class Trace(Archived):
    r"""The trace, its parts, and the Frobenius norm from the same products.

    Attributes:
        total: tr A with its standard error.
        per_layer: tr of the diagonal block of every parameter tensor, by its name; they add up to ``total``.
        frobenius: |A|_F^2, the sum of the squared eigenvalues.
        num_samples: Samples behind the standard errors, n.
        basis_size: Directions in which A is known exactly.
        num_matvecs: Products with the operator.
        cost_ge: Gradient evaluations spent.
        provenance: Method, data, mode and seed.
    """

    total: Estimate
    per_layer: dict[str, Estimate]
    frobenius: Estimate
    num_samples: int
    basis_size: int
    num_matvecs: int
    cost_ge: float
    provenance: Provenance

    def interval(self, confidence: float = 0.95, *, layer: str | None = None) -> tuple[float, float]:
        """Interval that holds the trace (of ``layer``, where named) with this confidence, by Student's t.

        Args:
            confidence: In (0, 1), two-sided.
            layer: Name of a parameter tensor; None for all.

        Returns:
            (low, high); a point where the trace is exact, NaN where one sample tells no spread.

        Raises:
            ValueError: No layer has that name.
        """
        if layer is not None and layer not in self.per_layer:
            raise ValueError(f"layer {layer!r} is not known; use one of {', '.join(self.per_layer)}")
        estimate = self.total if layer is None else self.per_layer[layer]
        if estimate.error == 0.0:
            return estimate.value, estimate.value
        half = estimate.error * student_quantile((1 + confidence) / 2, max(1, self.num_samples - 1))
        return estimate.value - half, estimate.value + half

    def __str__(self) -> str:
        width = max((len(name) for name in self.per_layer), default=0)
        head = f"trace: {self.total}, {self.num_matvecs} products, {self.cost_ge:.4g} GE"
        lines = [f"  {name:<{width}}  {part}" for name, part in self.per_layer.items()]
        return "\n".join([head, *lines, f"  ||A||_F^2 {self.frobenius}"])


def _cost(objective: Objective, max_matvecs: int = 30, *, method: Method = "auto") -> float:
    """The most that :func:`trace` on a fresh Hessian of ``objective`` can cost, in gradient evaluations."""
    return probing_cost(objective, max_matvecs, method)


@costs(_cost)
def trace(
    H: SymmetricOperator,
    *,
    method: TraceMethod = "auto",
    max_matvecs: int = 30,
    rtol: float | None = None,
    start: Spectrum | None = None,
    seed: int = 0,
) -> Estimate:
    """Estimate tr H.

    Args:
        H: The operator.
        method: ``"auto"``, ``"krylov"``, ``"hutchinson"`` or ``"hutch++"``.
        max_matvecs: Most products with ``H``, never exceeded.
        rtol: Wanted half width of the 95 % interval relative to the trace; None uses every product.
        start: Eigenpairs of a spectrum of the same parameters, however old, as a control variate: it costs nothing
            and leaves the estimate unbiased.
        seed: Seed of the test vectors.

    Returns:
        An :class:`~optland.estimate.Estimate` with a standard error, converged when the interval is within ``rtol``
        (without one: when there is a standard error). :func:`trace_per_layer` gives more for the same products.

    Raises:
        ValueError: An argument is out of range, or ``start`` has other shapes.

    Example:
        >>> import torch
        >>> from optland.curvature import hessian
        >>> from optland.problems import quadratic
        >>> print(trace(hessian(quadratic(torch.diag(torch.arange(100.0))))))     # diagonal: exact
        4950 ± 0 (standard_error)
    """
    found = trace_per_layer(H, method=method, max_matvecs=max_matvecs, rtol=rtol, start=start, seed=seed)
    return found.total


@costs(_cost)
def trace_per_layer(
    H: SymmetricOperator,
    *,
    method: TraceMethod = "auto",
    max_matvecs: int = 30,
    rtol: float | None = None,
    start: Spectrum | None = None,
    seed: int = 0,
) -> Trace:
    r"""Estimate tr H, the trace of every layer's block, and |H|_F^2, all from the products of :func:`trace`.

    Args:
        H: The operator, symmetric.
        method: As for :func:`trace`.
        max_matvecs: Most products with ``H``, never exceeded.
        rtol: Stop once the interval of the total is narrower than this share of it; the layers' may still be wide.
        start: As for :func:`trace`.
        seed: Seed of the test vectors.

    Returns:
        A :class:`Trace`; the values of its ``per_layer`` add up to ``total``, and each has its own standard error.

    Example:
        >>> import torch
        >>> from optland.curvature import hessian
        >>> from optland.problems import linear_regression
        >>> L = linear_regression(torch.eye(2), torch.zeros(2, 1))
        >>> print(trace_per_layer(hessian(L)))
        trace: 2 ± 0 (standard_error), 2 products, 22 GE
          weight  2 ± 0 (standard_error)
          ||A||_F^2 2 ± 0 (standard_error)
    """
    check_probing(H, method, max_matvecs, rtol, start)
    spent, already = H.cost_ge, H.num_matvecs
    samples = probe(H, method=method, max_matvecs=max_matvecs, rtol=rtol, start=start, seed=seed)
    source = H.provenance(f"{method} trace, rademacher", seed)
    cost = H.cost_ge - spent
    layers, total, square = estimates(samples, H.names, cost, source, rtol)
    return Trace(
        total, layers, square, samples.num, samples.basis_size, H.num_matvecs - already, cost, source
    )


@costs(_cost)
def frobenius(H: SymmetricOperator, *, max_matvecs: int = 30, seed: int = 0) -> Estimate:
    r"""Estimate ||H||_F^2 = sum of the squared eigenvalues, as the mean of ||Hw||^2 around a known part.

    Args:
        H: The operator, symmetric.
        max_matvecs: Most products with ``H``, never exceeded; 30 gives a few per cent on trained nets, d are exact.
        seed: Seed of the test vectors.

    Returns:
        The squared norm with its standard error; its root over that of d is the root mean square eigenvalue.

    Raises:
        ValueError: As :func:`trace`.

    Example:
        >>> import torch
        >>> from optland.curvature import hessian
        >>> from optland.problems import quadratic
        >>> print(frobenius(hessian(quadratic(torch.diag(torch.tensor([3.0, -4.0]))))))
        25 ± 0 (standard_error)
    """
    return trace_per_layer(H, max_matvecs=max_matvecs, seed=seed).frobenius


def estimates(
    samples: DiagonalSamples,
    names: Sequence[str],
    cost: float,
    source: Provenance,
    rtol: float | None = None,
) -> tuple[dict[str, Estimate], Estimate, Estimate]:
    """The trace by layer, in all, and the squared Frobenius norm, from their samples.

    Args:
        samples: What :func:`~optland.curvature.stochastic.probing.probe` gave.
        names: Of the layers.
        cost: Gradient evaluations, for the record.
        source: Of the numbers.
        rtol: Relative error at which one has converged; None counts every finite error.

    Returns:
        By name, the total, and ||A||_F^2; standard errors include those of the products.
    """
    t = samples.quantile
    # Errors of the products, independent from one coordinate to the next.
    d = sum(samples.sizes)
    length = math.sqrt(max(0.0, samples.mean_and_error(samples.squares)[0])) if samples.squares else 0.0

    def estimate(values: Sequence[float], scale: float) -> Estimate:
        value, error = samples.mean_and_error(values)
        error = math.hypot(error, scale * samples.inexact)
        met = math.isfinite(error) and (rtol is None or t * error <= rtol * abs(value))
        return Estimate(value, error, "standard_error", met, cost, source, _note(samples))

    columns = {name: [float(sums[i]) for sums in samples.layers] for i, name in enumerate(names)}
    return (
        {
            name: estimate(values, math.sqrt(size))
            for size, (name, values) in zip(samples.sizes, columns.items(), strict=True)
        },
        estimate(samples.totals, math.sqrt(d)),
        estimate(samples.squares, 2 * math.sqrt(d) * length),
    )


def _note(samples: DiagonalSamples) -> str:
    if samples.failed:
        return "A product with H was not finite."
    if samples.num == 0:
        return "The products allow no sample; raise max_matvecs."
    if samples.num == 1 and not samples.exact:
        return "A single sample has no standard error; raise max_matvecs."
    return samples.note
