"""A measured number with its error, convergence, cost and provenance.

Every probe returns :class:`Estimate` or a result that holds several. Printing one shows its error, and shows
plainly when the estimator did not converge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from optland.archive import Archived

__all__ = ["ErrorKind", "Estimate", "Provenance"]

ErrorKind = Literal["residual", "standard_error", "certificate", "bracket", "none"]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a number came from, enough to take it again.

    Attributes:
        method: How it was computed, and why that method where there was a choice.
        num_samples: Number of data points the loss was averaged over.
        data: Which data: ``"step batch"``, ``"probe set"``, ``"validation"``.
        mode: ``"eval"`` or ``"train"``: the module mode (BatchNorm statistics, dropout) of the measured loss.
        seed: Seed of the estimator's own randomness; None when it has none.
        dtype: Floating type of the model's parameters during the measurement.
    """

    method: str
    num_samples: int = 0
    data: str = ""
    mode: str = "eval"
    seed: int | None = None
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Estimate(Archived):
    """A value with its error and its price.

    Attributes:
        value: The estimate; NaN when it could not be had at all.
        error: Size of the error in the unit of ``value``; NaN when unknown.
        error_kind: What ``error`` is: an eigenvalue ``residual`` (some eigenvalue lies within it), a
            ``standard_error``, a probabilistic ``certificate``, half a search ``bracket``, or ``none``.
        converged: Whether the estimator met its own tolerance.
        cost_ge: Cost in gradient evaluations: one forward and backward of one sample is 1, a forward is 1/3.
        provenance: Method, data, mode and seed.
        note: One sentence when something needs saying (why it did not converge, which fallback was taken).

    Example:
        >>> print(Estimate(7.25, 0.02, "residual", True, 96.0, Provenance("lanczos", 32)))
        7.25 ± 0.02 (residual)
        >>> print(Estimate(8.5, 1.5, "residual", False, 96.0, Provenance("lanczos", 32)))
        8.5 ± 1.5 (residual) NOT CONVERGED
    """

    value: float
    error: float
    error_kind: ErrorKind
    converged: bool
    cost_ge: float
    provenance: Provenance
    note: str = field(default="")

    def __str__(self) -> str:
        error = "" if self.error_kind == "none" else f" ± {self.error:.3g} ({self.error_kind})"
        return f"{self.value:.4g}{error}" + ("" if self.converged else " NOT CONVERGED")

    @property
    def finite(self) -> bool:
        """Whether the value can be computed with."""
        return math.isfinite(self.value)

    def with_note(self, note: str) -> Estimate:
        """The same estimate with a sentence added.

        Args:
            note: Put after what is there already.
        """
        return replace(self, note=f"{self.note} {note}".strip())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary of all fields.

        Returns:
            The fields by name; ``provenance`` is a dictionary of its own. NaN stays NaN.
        """
        provenance = {name: getattr(self.provenance, name) for name in Provenance.__slots__}
        own = {name: getattr(self, name) for name in self.__slots__ if name != "provenance"}
        return {**own, "provenance": provenance}
