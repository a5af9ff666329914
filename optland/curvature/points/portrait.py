r"""A full portrait of one point: eigenvalues at both ends, trace by layer, density, and the kind of the point.

What each part means and how it errs is told in :mod:`~optland.curvature.eigen.lanczos`,
:mod:`~optland.curvature.stochastic.trace`, :mod:`~optland.curvature.stochastic.density` and
:mod:`~optland.curvature.points.classify`; here they share one graph, one seed and one loss, and the trace takes the
eigenvectors for its control variate.

**Cost.** At most ``max_matvecs`` Hessian products for the spectrum, as many for the verdict, half as many for the trace
and 256 for the density: ``portrait.cost`` says how many gradient evaluations that is.

**When.** Once, at the end of a run or at a checkpoint; in a training loop take the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from optland import vectors
from optland.archive import Archived
from optland.curvature.cost import costs
from optland.curvature.eigen.lanczos import lanczos
from optland.curvature.eigen.spectrum import Spectrum
from optland.curvature.operators.hessian import Method, hessian
from optland.curvature.points.classify import classify
from optland.curvature.points.verdict import CriticalPoint
from optland.curvature.stochastic.density import Density, density
from optland.curvature.stochastic.trace import Trace, trace, trace_per_layer
from optland.estimate import Estimate
from optland.objective import Objective

__all__ = ["Portrait", "portrait"]

PRODUCTS = 200
"""Most products of each part, at which the verdict's certificate is small; the spectrum mostly needs less."""

TRACE_TOL = 0.1
"""The trace ends as soon as its 95 % interval is within a tenth of it, or at half of ``max_matvecs``."""

DENSITY_STEPS, DENSITY_STARTS = 64, 4


@dataclass(frozen=True, slots=True, eq=False)
class Portrait(Archived):
    """All measurements at one point.

    Attributes:
        spectrum: The k largest and k smallest eigenvalues.
        trace: The trace, whole and by layer, and the Frobenius norm.
        density: Quadrature nodes of all eigenvalues; None where it was left out.
        point: The verdict on the point.
        dim: Number of weights d.
        method: How Hessian products were computed, and why.
        num_matvecs: Hessian products spent.
        cost_ge: Gradient evaluations spent.
    """

    spectrum: Spectrum
    trace: Trace
    density: Density | None
    point: CriticalPoint
    dim: int
    method: str
    num_matvecs: int
    cost_ge: float

    @property
    def loss(self) -> float:
        """L at the point."""
        return self.point.loss

    def estimates(self) -> Iterator[tuple[str, Estimate]]:
        """Every number with a name of its own, in the order of a table.

        Yields:
            Pairs of a name and an estimate, NaN where it could not be had.
        """
        top, count = self.spectrum.num_top, len(self.spectrum.values)
        for i, value in enumerate(self.spectrum.values):
            yield f"largest eigenvalue {i + 1}" if i < top else f"smallest eigenvalue {count - i}", value
        yield "trace", self.trace.total
        yield "squared Frobenius norm", self.trace.frobenius
        if self.density is not None:
            yield "share of eigenvalues below 0", self.density.fraction_below(0.0)
        yield "gradient norm", self.point.grad_norm
        parts = self.point.tau_parts
        tau = max(
            size for name, size in parts.items() if name != "certificate"
        )  # that of a value that was seen
        yield f"eigenvalues below -{tau:.2g}", self.point.negative
        yield f"eigenvalues within {tau:.2g} of 0", self.point.zero
        yield f"eigenvalues above {tau:.2g}", self.point.positive

    def __str__(self) -> str:
        parts = [self.spectrum, self.trace, *([self.density] if self.density else []), self.point]
        return "\n".join(map(str, parts))


def _cost(
    objective: Objective,
    *,
    max_matvecs: int = PRODUCTS,
    with_density: bool = True,
    is_sample: bool = False,
    method: Method = "auto",
) -> float:
    """The most that :func:`portrait` can cost in gradient evaluations, known before it runs."""
    cost = lanczos.cost(objective, max_matvecs, method=method)
    cost += trace.cost(objective, _trace_matvecs(max_matvecs), method=method)
    if with_density:
        steps = min(max_matvecs, DENSITY_STEPS, vectors.numel(objective.params))
        cost += density.cost(objective, steps, DENSITY_STARTS, method=method)
    return cost + classify.cost(objective, max_matvecs, is_sample=is_sample, method=method)


@costs(_cost)
def portrait(
    objective: Objective,
    *,
    k: int = 3,
    max_matvecs: int = PRODUCTS,
    with_density: bool = True,
    is_sample: bool = False,
    method: Method = "auto",
    seed: int = 0,
    watch: Callable[[str], None] | None = None,
) -> Portrait:
    """Measure the curvature at the present weights from all sides.

    Args:
        objective: The loss.
        k: Eigenvalues at each end.
        max_matvecs: Most Hessian products of each of its parts.
        with_density: Whether to compute the density, the most expensive part.
        is_sample: Whether the data are a sample of those that matter; see
            :func:`~optland.curvature.points.classify.classify`.
        method: How products are computed.
        seed: Seed of all starts and probes.
        watch: Called with the name of each part before it begins.

    Returns:
        A :class:`Portrait`.

    Raises:
        ValueError: ``k`` or ``max_matvecs`` is below 1.

    Example:
        >>> from optland.problems import saddle
        >>> found = portrait(saddle(), k=1)
        >>> round(found.spectrum.top.value, 6), round(found.trace.total.value, 6), found.point.verdict
        (2.0, 0.0, 'strict saddle')
    """
    if k < 1 or max_matvecs < 1:
        raise ValueError(f"k={k} and max_matvecs={max_matvecs} must both be at least 1")
    begin = watch or (lambda name: None)
    spent, k = objective.cost_ge, min(k, vectors.numel(objective.params))
    with hessian(objective, method=method) as H:
        begin("spectrum")
        spectrum = lanczos(H, k, ends="both", max_matvecs=max_matvecs, seed=seed)
        begin("trace")
        start = spectrum if spectrum.vectors else None
        most = _trace_matvecs(max_matvecs)
        parts = trace_per_layer(H, max_matvecs=most, rtol=TRACE_TOL, start=start, seed=seed)
        shape = None
        if with_density:
            begin("density")
            shape = density(
                H, num_steps=min(max_matvecs, DENSITY_STEPS), num_starts=DENSITY_STARTS, seed=seed
            )
        num_matvecs, how = H.num_matvecs, f"{H.method} ({H.reason})"
    begin("kind of point")
    point = classify(objective, is_sample=is_sample, max_matvecs=max_matvecs, method=method, seed=seed)
    return Portrait(
        spectrum, parts, shape, point, vectors.numel(objective.params), how, num_matvecs + point.num_matvecs,
        objective.cost_ge - spent,
    )  # fmt: skip


def _trace_matvecs(max_matvecs: int) -> int:
    return max(1, max_matvecs // 2)
