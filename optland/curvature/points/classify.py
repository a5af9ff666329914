r"""Classify a point of the loss as minimum, saddle or not critical, claiming no more than the products show.

.. math:: |g| \le \text{floor}, \qquad
          \tau_0 = \max(\tau_\text{rounding}, \tau_\text{shift}, \tau_\text{data}), \qquad
          \tau = \tau_0 + \tau_\text{certificate}

tau_0 is the error of an eigenvalue that was seen, and decides counts and negative curvature; the certificate, what no
product has seen of the ends, counts as well in every claim about all eigenvalues. The verdicts are those of
:mod:`optland.curvature.points.verdict`.

**How.** The floor of the gradient is its rounding, from the two scales ||H|| |w| and sqrt(2 ||H|| |L|), or twice the
standard error of its data if these are a sample, or the tolerance that you give, if larger. Where all eigenvectors are
known, a Newton step of less than sqrt(eps) (1 + |w|) that leaves nothing of the gradient counts as well. Below the
floor but not at rounding, the true critical point lies a few Newton steps away: ``shift`` is how much the curvature
changes on the way there, so that a point near a monkey saddle is not taken for a strict one.

**Cost.** One gradient, and products as :func:`~optland.curvature.eigen.eigenvalues.eigenvalues` spends them (d, for d
up to 1000), one for Hg, up to 37 for the shift, and 5 GE per sample for a data error. ``classify.cost`` adds it up.

**When.** At the end of a run, on a plateau, at the points that
:func:`~optland.curvature.points.search.find_critical_points` finds.

**Caveats.** With ``is_sample=True`` the eigenvector was chosen on the data that test it, which makes negative curvature
look too negative: take the two-batch certificate on fresh batches before stepping along it. A trained network has
eigenvalues at 0 within any tau, so ``degenerate`` with no negative count is its usual verdict. Ends of the spectrum
hold with probability 99 % where they rest on a random start.

**References.** Dauphin et al. 2014, arXiv:1406.2572; Frye et al. 2021, arXiv:2003.10397; Lee et al. 2016,
arXiv:1602.04915 (strict saddles).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optland import vectors
from optland.curvature.cost import costs
from optland.curvature.eigen.eigenvalues import (
    RESOLUTION,
    Eigenvalues,
    budget,
    counts,
    eigenvalues,
    end,
    takes_dense,
)
from optland.curvature.noise.gradient_noise import gradient_noise
from optland.curvature.operators.hessian import (
    CurvatureOperator,
    Method,
    declared_product_cost,
    hessian,
)
from optland.curvature.points.newton_step import from_eigenvalues, from_gradient
from optland.curvature.points.part_curvature import DATA_PARTS, curvature_error
from optland.curvature.points.verdict import CriticalPoint, FloorKind, PointKind
from optland.estimate import Estimate, Provenance
from optland.objective import Objective
from optland.vectors import Vector

__all__ = [
    "classify",
]

ROUNDING = 10.0
"""Units of rounding of the gradient's scale below which it counts as 0."""

NOISE = 2.0
"""Standard errors of the gradient within which the data do not tell it from 0."""

SHIFT = 3.0
"""Newton steps over which the change of curvature is extrapolated. A regular critical point lies within two
(Kantorovich); at x^m, whose curvature vanishes there, one step changes it by a half to 0.63 of itself."""

REACH = 0.1
"""Longest step, relative to 1 + |w|, over which the change of curvature is measured."""

FLAT = 1e-3
"""|Hg| relative to ||H|| |g| up to which a gradient is flat; generic gradients have 0.1 and more."""

NEWTON_PRODUCTS = 30
"""Products for the Newton step where the matrix is not formed."""


def _cost(
    objective: Objective,
    max_matvecs: int | None = None,
    *,
    is_sample: bool = False,
    method: Method = "auto",
) -> float:
    """The most that :func:`classify` can cost in gradient evaluations, known before it runs."""
    dim = vectors.numel(objective.params)
    newton = 0 if takes_dense(dim, max_matvecs) else NEWTON_PRODUCTS + 1
    here = declared_product_cost(objective, budget(dim, max_matvecs) + 1 + newton + 3, method=method)
    there = declared_product_cost(objective, 3, method=method)
    data = objective.num_samples + declared_product_cost(objective, 1, method=method) if is_sample else 0.0
    return objective.num_samples + here + there + data


@costs(_cost)
def classify(
    objective: Objective,
    *,
    point: Vector | None = None,
    atol: float | None = None,
    is_sample: bool = False,
    max_matvecs: int | None = None,
    method: Method = "auto",
    seed: int = 0,
) -> CriticalPoint:
    """Say which kind of point of the loss this is.

    Args:
        objective: The loss.
        point: Where; the model's own weights by default.
        atol: |g| up to which you call a point critical; by default only its noise counts.
        is_sample: Whether the data are a sample of those that matter, so that a gradient within two standard errors of
            0 counts as 0. Off by default: the loss on these data is the function in question.
        max_matvecs: Budget for the eigenvalues; by default d for d up to 1000 (exact), else 200.
        method: How products are computed.
        seed: Seed of the random start.

    Returns:
        A :class:`CriticalPoint`.

    Raises:
        ValueError: ``atol`` is negative, or ``max_matvecs`` below 1.

    Example:
        >>> from optland.problems import monkey_saddle, saddle
        >>> print(classify(saddle()))
        strict saddle, index 1 (loss 0, 2 products, 12 GE)
          |g| 0, floor 0 (rounding)
          eigenvalues from -2 ± 8.88e-16 (residual) to 2 ± 8.88e-16 (residual)
          tau 8.88e-16 (rounding 8.9e-16)
          negative, zero, positive: 1; 0; 1
        >>> classify(monkey_saddle()).verdict
        'degenerate'
    """
    if atol is not None and not atol >= 0:
        raise ValueError(f"atol={atol} must not be negative: it is a norm of the gradient")
    spent = objective.cost_ge
    with objective.at(point):
        look = _Look(objective, atol, is_sample, method, seed)
        return look.at_the_point(max_matvecs, spent)


class _Look:
    """One classification in progress; the weights are at the point."""

    def __init__(
        self,
        L: Objective,
        atol: float | None,
        is_sample: bool,
        method: Method,
        seed: int,
    ) -> None:
        self.L, self.atol, self.is_sample, self.method, self.seed = L, atol, is_sample, method, seed
        self.loss, self.g = L.value_and_gradient()
        self.grad_norm = float(vectors.norm(self.g))
        self.weight_norm = float(vectors.norm([p.detach() for p in L.params]))
        self.eps = float(torch.finfo(L.params[0].dtype).eps)
        self.num_matvecs = 0
        self.critical = False
        self.far = False  # the Newton step leads out of the neighbourhood
        self.notes: list[str] = []

    def at_the_point(self, max_matvecs: int | None, spent: float) -> CriticalPoint:
        L = self.L
        with hessian(L, method=self.method) as H:
            seen = eigenvalues(H, max_matvecs=max_matvecs, seed=self.seed)
            Hg = self._along_gradient(H)
            rounding = self._rounding(seen)
            floor, kind = self._floor(rounding)
            critical = self.grad_norm <= floor
            step, null = self._newton(H, seen, critical)
            near = self._near_enough(step, null, rounding)
            shift = self._shift(H, seen, step) if (critical or near) and self.grad_norm > rounding else 0.0
            data = curvature_error(L, seen.bottom, method=self.method) if self.is_sample else 0.0
            source = H.provenance("eigenvalues" if seen.exact else "random-start Krylov space", self.seed)
            self.num_matvecs += H.num_matvecs
        if near and not critical:
            self.notes.append(
                "|g| is above its floor, but the critical point is within rounding of the weights."
            )
        tau_parts = {"certificate": seen.certificate, "rounding": seen.rounding, "shift": shift, "data": data}
        self.critical = critical or near
        verdict = self._verdict(seen, tau_parts, Hg)
        return self._result(verdict, seen, tau_parts, floor, kind, step, Hg, L.cost_ge - spent, source)

    def _along_gradient(self, H: CurvatureOperator) -> float:
        """|Hg| / |g|; 0 when there is no gradient to follow."""
        if not (self.grad_norm > 0 and math.isfinite(self.grad_norm)):
            return math.nan
        unit = vectors.scaled(1.0 / self.grad_norm, self.g)
        return float(vectors.norm(H.matvec(unit)))

    def _rounding(self, seen: Eigenvalues) -> float:
        """Rounding of the gradient: of the weights, carried by H, and of the terms that cancelled in it.

        A smooth loss that is nowhere negative has gradients of at most sqrt(2 ||H|| L), so those terms are that large.
        """
        terms = seen.scale * self.weight_norm + math.sqrt(2 * seen.scale * abs(self.loss))
        return ROUNDING * self.eps * terms

    def _floor(self, rounding: float) -> tuple[float, FloorKind]:
        floors: list[tuple[float, FloorKind]] = [(rounding, "rounding")]
        if self.atol is not None:
            floors.append((self.atol, "tolerance"))
        if self.is_sample:
            trace = gradient_noise(self.L, num_parts=DATA_PARTS).trace_cov.value
            floors.append((NOISE * math.sqrt(max(trace, 0.0) / self.L.num_samples), "standard error"))
        return max(floors, key=lambda entry: entry[0])

    def _newton(
        self, H: CurvatureOperator, seen: Eigenvalues, critical: bool
    ) -> tuple[list[Tensor] | None, float]:
        """The Newton step where it is worth its price, and how much of the gradient it does not remove."""
        if not (self.grad_norm > 0 and math.isfinite(self.grad_norm)):
            return None, 0.0
        if seen.basis is not None:
            return from_eigenvalues(seen, self.g).newton(seen.rounding)
        if not critical:
            return None, self.grad_norm
        step, _ = from_gradient(H, self.g, max_matvecs=NEWTON_PRODUCTS).newton(seen.rounding)
        rest = float(vectors.norm([a + b for a, b in zip(H.matvec(step), self.g, strict=True)]))
        return step, rest

    def _near_enough(self, step: list[Tensor] | None, null: float, rounding: float) -> bool:
        """Whether rounding of the weights alone explains the gradient."""
        if step is None or null > rounding:
            return False
        return float(vectors.norm(step)) <= math.sqrt(self.eps) * (1 + self.weight_norm)

    def _shift(self, H: CurvatureOperator, seen: Eigenvalues, step: list[Tensor] | None) -> float:
        """How much the curvature changes on the way to the true critical point, along the vectors that decide."""
        if step is None:
            return 0.0
        length, reach = float(vectors.norm(step)), REACH * (1 + self.weight_norm)
        self.far = length > reach
        if self.far:
            step = vectors.scaled(reach / length, step)
        probes = [seen.bottom, seen.middle, seen.top]
        here = [H.matvec(y) for y in probes]
        with self.L.at(self.L.displaced(step, 1.0)), hessian(self.L, method=self.method) as moved:
            changes = [
                float(vectors.norm(vectors.subtract(moved.matvec(y), Hy)))
                for y, Hy in zip(probes, here, strict=True)
            ]
            self.num_matvecs += moved.num_matvecs
        return SHIFT * max(changes)

    def _verdict(self, seen: Eigenvalues, tau_parts: dict[str, float], Hg: float) -> PointKind:
        if seen.failed or not math.isfinite(self.grad_norm) or not math.isfinite(self.loss):
            self.notes.append("The loss, its gradient or a product with the Hessian is not finite.")
            return PointKind.UNKNOWN
        if not self.critical:
            return PointKind.GRADIENT_FLAT if Hg <= FLAT * seen.scale else PointKind.NOT_CRITICAL
        error = _error(tau_parts)
        tau, bottom, top = tau_parts["certificate"] + error, float(seen.values[0]), float(seen.values[-1])
        if top < -tau:
            return PointKind.LOCAL_MAXIMUM
        if bottom < -error:
            return PointKind.STRICT_SADDLE
        if bottom > tau:
            return PointKind.MINIMUM
        lacking = self._lacking(seen, tau_parts)
        if lacking:
            self.notes.append(f"To tell the smallest eigenvalue from 0 it takes {lacking}.")
        return PointKind.UNKNOWN if lacking else PointKind.DEGENERATE

    def _lacking(self, seen: Eigenvalues, tau_parts: dict[str, float]) -> str:
        """What would have to be better before an eigenvalue near 0 can be called one; empty when nothing."""
        wanted = max(RESOLUTION * seen.scale, ROUNDING * self.eps * seen.scale)
        rounding = tau_parts["rounding"]
        vanishes = tau_parts["shift"] >= seen.scale  # on the way to the critical point, as at a monkey saddle
        short = {
            "more products": tau_parts["certificate"] > wanted,
            "more exact products (float64)": max(rounding, float(seen.residuals[0]) - rounding) > wanted,
            "more data": tau_parts["data"] > wanted,
            "a point nearer to the critical point": self.far
            or (tau_parts["shift"] > wanted and not vanishes),
        }
        return " and ".join(words for words, missing in short.items() if missing)

    def _result(
        self,
        verdict: PointKind,
        seen: Eigenvalues,
        tau_parts: dict[str, float],
        floor: float,
        kind: FloorKind,
        step: list[Tensor] | None,
        Hg: float,
        cost: float,
        source: Provenance,
    ) -> CriticalPoint:
        error = _error(tau_parts)
        tau = tau_parts["certificate"] + error
        negative = int((seen.values < -error).sum()) if not seen.failed else 0
        flat = Hg / seen.scale if seen.scale > 0 else 0.0 * Hg
        length = float(vectors.norm(step)) if step is not None and seen.exact else self.grad_norm / Hg
        length = 0.0 if self.grad_norm == 0 else length
        numbers = counts(seen, error, cost, source)

        def estimate(value: float, size: float, known: bool = True, note: str = "") -> Estimate:
            return Estimate(value, size, "residual" if size else "none", known, cost, source, note)

        bound = "" if seen.exact else "a lower bound"
        return CriticalPoint(
            verdict=verdict,
            critical=self.critical,
            index_at_least=negative,
            loss=self.loss,
            grad_norm=estimate(self.grad_norm, floor, math.isfinite(self.grad_norm)),
            floor=floor,
            floor_kind=kind,
            newton_step=estimate(length, 0.0, seen.exact or self.grad_norm == 0, bound),
            flatness=estimate(flat, 0.0, math.isfinite(flat)),
            smallest=end(seen, 0, cost, source),
            largest=end(seen, -1, cost, source),
            tau=tau,
            tau_parts=tau_parts,
            negative=numbers[0],
            zero=numbers[1],
            positive=numbers[2],
            exact=seen.exact,
            escape_direction=self._escape(seen.bottom) if negative else None,
            num_matvecs=self.num_matvecs,
            cost_ge=cost,
            provenance=source,
            note=" ".join(self.notes),
        )

    def _escape(self, u: list[Tensor]) -> list[Tensor]:
        return vectors.scaled(-1.0 if float(vectors.dot(self.g, u)) > 0 else 1.0, u)


def _error(tau_parts: dict[str, float]) -> float:
    """Error of an eigenvalue that was seen; what was not seen is the certificate's part of tau."""
    return max(tau_parts["rounding"], tau_parts["shift"], tau_parts["data"])
