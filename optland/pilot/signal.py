"""The signal that a probe gives to a policy: a named value with error, validity, and the update it is of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Signal"]


@dataclass(frozen=True, slots=True)
class Signal:
    """One measurement.

    Attributes:
        name: Metric key, ``group/name``.
        value: The measured value; meaningless when not ``valid``.
        step: Update at which it was measured.
        error: Error of ``value`` in its own unit; NaN when unknown.
        valid: False when the probe could not resolve the value. Invalid samples are counted, never averaged.
        why: What has to be known of it besides: for an invalid one the reason (``not_descent``, ``unresolved``,
            ``nonfinite``), for a valid one that it is a bound (``unbounded``).
    """

    name: str
    value: float
    step: int
    error: float = math.nan
    valid: bool = True
    why: str = ""

    def age(self, step: int) -> int:
        """Updates since the measurement."""
        return step - self.step

    def row(self) -> Iterator[tuple[str, float]]:
        """The logged row of a signal: the value and, where known, its error.

        Nothing of an invalid one, but for one that has not converged, which its own flag in the log marks.
        """
        if self.valid or (self.why == "unresolved" and math.isfinite(self.value)):
            yield self.name, self.value
            if math.isfinite(self.error):
                yield f"{self.name}_error", self.error
