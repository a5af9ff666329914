r"""The verdict on one point of a loss, with the numbers that it rests on.

========================  ===========================================================================================
verdict                   what holds
========================  ===========================================================================================
``minimum up to tau``     critical, and every eigenvalue lies above tau
``local maximum``         critical, and every eigenvalue lies below -tau
``strict saddle``         critical, and at least ``index_at_least`` eigenvalues are negative. As in the literature on
                          escaping saddles, the others may have any sign: a maximum that the budget could not
                          certify is one too
``degenerate``            critical, the smallest eigenvalue lies within tau of 0: a flat valley, a minimum or a saddle
                          of higher order, which second derivatives cannot tell apart
``gradient-flat``         not critical, but Hg = 0 to a thousandth: where minimising |g| gets stuck (Frye et al. 2021)
``not critical``          the gradient exceeds its floor
``unknown``               too few products to tell, or numbers that are not finite
========================  ===========================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from optland.archive import Archived
from optland.estimate import Estimate, Provenance
from optland.words import Words

__all__ = ["CriticalPoint", "FloorKind", "PointKind"]


class PointKind(Words):
    """What a point is; see the module docstring."""

    MINIMUM = "minimum up to tau"
    STRICT_SADDLE = "strict saddle"
    LOCAL_MAXIMUM = "local maximum"
    DEGENERATE = "degenerate"
    GRADIENT_FLAT = "gradient-flat"
    NOT_CRITICAL = "not critical"
    UNKNOWN = "unknown"


FloorKind = Literal["rounding", "standard error", "tolerance"]


@dataclass(frozen=True, slots=True)
class CriticalPoint(Archived):
    """A verdict on one point, with all that it rests on.

    Attributes:
        verdict: One of the seven words above.
        critical: Whether the gradient counts as 0, whatever the curvature.
        index_at_least: Negative eigenvalues that are certain to be there.
        loss: L at the point.
        grad_norm: |g|; its error is ``floor``.
        floor: |g| up to which the point counts as critical.
        floor_kind: What the floor is.
        newton_step: Length of the Newton step to the critical point; where no full decomposition was made, the lower
            bound |g|^2 / |Hg|.
        flatness: |Hg| / (||H|| |g|), below 1e-3 at a gradient-flat point; NaN when g = 0.
        smallest: Smallest eigenvalue seen.
        largest: Largest eigenvalue seen.
        tau: Curvature that cannot be told from 0 here; inf when nothing is certified.
        tau_parts: What tau is made of: ``certificate``, ``rounding``, ``shift``, ``data``.
        negative: Number of eigenvalues below -tau_0, the error of a value that was seen (tau without its certificate):
            exact, or a share of d by quadrature, which says so.
        zero: Number within tau_0 of 0.
        positive: Number above tau_0.
        exact: Whether all eigenvalues were computed.
        escape_direction: Unit vector of the smallest eigenvalue when that is surely negative, signed so that the
            gradient does not point uphill along it; None otherwise.
        num_matvecs: Products with the Hessian.
        cost_ge: Gradient evaluations spent.
        provenance: Method, data, mode and seed.
        note: A sentence when something needs saying.
    """

    verdict: PointKind
    critical: bool
    index_at_least: int
    loss: float
    grad_norm: Estimate
    floor: float
    floor_kind: FloorKind
    newton_step: Estimate
    flatness: Estimate
    smallest: Estimate
    largest: Estimate
    tau: float
    tau_parts: dict[str, float]
    negative: Estimate
    zero: Estimate
    positive: Estimate
    exact: bool
    escape_direction: list[Tensor] | None = field(repr=False)
    num_matvecs: int
    cost_ge: float
    provenance: Provenance
    note: str = ""

    @property
    def index_fraction(self) -> float:
        """Negative eigenvalues as a share of all; NaN when they were not counted."""
        total = self.negative.value + self.zero.value + self.positive.value
        return self.negative.value / total

    def __str__(self) -> str:
        words: str = self.verdict
        if self.verdict is PointKind.MINIMUM:
            words = f"minimum up to tau = {self.tau:.3g}"
        elif self.verdict is PointKind.STRICT_SADDLE:
            words += f", index {'' if self.exact else 'at least '}{self.index_at_least}"
        parts = ", ".join(f"{name} {size:.2g}" for name, size in self.tau_parts.items() if size > 0)
        numbers = (self.negative, self.zero, self.positive)
        return "\n".join(
            [
                f"{words} (loss {self.loss:.6g}, {self.num_matvecs} products, {self.cost_ge:.4g} GE)",
                f"  |g| {self.grad_norm.value:.3g}, floor {self.floor:.3g} ({self.floor_kind})",
                f"  eigenvalues from {self.smallest} to {self.largest}",
                f"  tau {self.tau:.3g}" + (f" ({parts})" if parts else ""),
                "  negative, zero, positive: " + "; ".join(map(str, numbers)),
                *([f"  {self.note}"] if self.note else []),
            ]
        )
