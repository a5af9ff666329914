"""A named number that a policy may act on: value, error, validity, and the step it was measured at."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Signal"]


@dataclass(frozen=True, slots=True)
class Signal:
    """One measurement on its way from a probe to a policy.

    Attributes:
        name: Metric key, ``group/name``.
        value: The measured value; meaningless when not ``valid``.
        step: Training step at which it was measured; its age is the current step minus this.
        error: Error of ``value`` in its own unit; NaN when unknown.
        valid: False when the probe could not resolve the value. Invalid samples are counted, never averaged.
        why: For an invalid sample, the reason: ``not_descent``, ``unresolved``, ``nonfinite``, ``flat``.
    """

    name: str
    value: float
    step: int
    error: float = float("nan")
    valid: bool = True
    why: str = ""

    def age(self, step: int) -> int:
        """Steps since the measurement."""
        return step - self.step
