"""Smoothing of noisy probes: a symmetric average of logarithms, and a ratio of averages.

An asymmetric filter (fast down, slow up) on a noisy probe settles on a low quantile that depends on the probe's
noise and not on the landscape; asymmetry belongs into a guard. A mean of ratios is biased; a ratio of means is not.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["LogEMA", "Mean", "RatioEMA"]


class LogEMA:
    """Bias-corrected exponential moving average of log x, read back as exp.

    Args:
        beta: Weight of the past, in [0, 1); 0.9 averages about the last ten valid samples.

    Raises:
        ValueError: ``beta`` is outside [0, 1).

    Example:
        >>> ema = LogEMA(0.9)
        >>> for _ in range(3):
        ...     ema.update(2.0)
        >>> round(ema.value, 12)
        2.0
    """

    def __init__(self, beta: float = 0.9) -> None:
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"beta {beta} is not in [0, 1); use for example 0.9")
        self.beta = beta
        self._sum = 0.0
        self._weight = 0.0
        self.invalid = 0
        """Samples refused because they were not positive and finite."""

    def update(self, x: float) -> None:
        """Take in one sample; one that is not positive and finite is counted and left out."""
        if not (math.isfinite(x) and x > 0):
            self.invalid += 1
            return
        self._sum = self.beta * self._sum + (1 - self.beta) * math.log(x)
        self._weight = self.beta * self._weight + (1 - self.beta)

    @property
    def value(self) -> float | None:
        """The smoothed value; None before the first valid sample."""
        return math.exp(self._sum / self._weight) if self._weight > 0 else None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint."""
        return {"sum": self._sum, "weight": self._weight, "invalid": self.invalid}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._sum, self._weight, self.invalid = state["sum"], state["weight"], state["invalid"]


class RatioEMA:
    """Ratio of two exponential moving averages, E[numerator] / E[denominator].

    The denominator of a noise scale (the squared true gradient) is estimated without bias and can be negative in
    single samples; averaging both before dividing keeps those samples' information. Gradients shrink by orders of
    magnitude during training, so each pair is first divided by its own ``scale`` (the squared norm of the whole
    batch's gradient): otherwise the earliest pairs would always decide.

    Args:
        beta: Weight of the past, in [0, 1).

    Raises:
        ValueError: ``beta`` is outside [0, 1).

    Example:
        >>> noise = RatioEMA(0.8)
        >>> noise.update(200.0, 1.0, scale=2.0)
        >>> noise.update(2e-6, 1e-9, scale=2e-8)
        >>> round(noise.value)
        400
    """

    def __init__(self, beta: float = 0.9) -> None:
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"beta {beta} is not in [0, 1); use for example 0.9")
        self.beta = beta
        self._numerator = 0.0
        self._denominator = 0.0
        self._weight = 0.0
        self._variances = [0.0, 0.0]

    def update(
        self,
        numerator: float,
        denominator: float,
        scale: float = 1.0,
        errors: tuple[float, float] = (math.nan, math.nan),
    ) -> None:
        """Take in one pair, both members and their errors divided by ``scale``; what is not finite is left out.

        Args:
            numerator: In its own unit.
            denominator: In its own unit; may be negative.
            scale: What both are divided by, above 0.
            errors: Standard errors of numerator and denominator; NaN where unknown, and then those of the averages are
                too.
        """
        if not (
            math.isfinite(numerator) and math.isfinite(denominator) and math.isfinite(scale) and scale > 0
        ):
            return
        numerator, denominator = numerator / scale, denominator / scale
        self._numerator = self.beta * self._numerator + (1 - self.beta) * numerator
        self._denominator = self.beta * self._denominator + (1 - self.beta) * denominator
        self._weight = self.beta * self._weight + (1 - self.beta)
        for i, error in enumerate(errors):
            kept = self.beta**2 * self._variances[i]
            self._variances[i] = kept + ((1 - self.beta) * error / scale) ** 2

    @property
    def numerator(self) -> float | None:
        """The smoothed numerator; None before the first pair."""
        return self._numerator / self._weight if self._weight > 0 else None

    @property
    def denominator(self) -> float | None:
        """The smoothed denominator; None before the first pair."""
        return self._denominator / self._weight if self._weight > 0 else None

    @property
    def value(self) -> float | None:
        """The ratio; None while it is unresolved (no pair yet, or a denominator that is not positive)."""
        if self._weight == 0 or self._denominator <= 0:
            return None
        return max(self._numerator, 0.0) / self._denominator

    @property
    def error(self) -> float:
        """Standard error of the ratio to first order, for independent pairs; NaN where an error was not given."""
        value = self.value
        if not value:
            return math.nan
        first, second = (math.sqrt(v) for v in self._variances)
        return value * math.hypot(first / self._numerator, second / self._denominator)

    @property
    def least(self) -> float:
        """Lower end of the ratio's interval of one standard error, by Fieller; NaN where that is not known.

        It holds where the denominator is known to a factor only, as the first order does not: the smaller r of
        (a - r b)^2 = v_a + r^2 v_b.
        """
        if self.value is None:
            return math.nan
        a, b, (va, vb) = self._numerator, self._denominator, self._variances
        if a * a <= va:
            return 0.0
        root = math.sqrt(max(a * a * vb + b * b * va - va * vb, 0.0))
        return (a * a - va) / (a * b + root)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint."""
        return {
            "numerator": self._numerator,
            "denominator": self._denominator,
            "weight": self._weight,
            "variances": list(self._variances),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._numerator, self._denominator = state["numerator"], state["denominator"]
        self._weight, self._variances = state["weight"], list(state["variances"])


class Mean:
    """A mean of samples: of all so far with equal weights, or an exponential moving average.

    Args:
        beta: Weight of the past, in [0, 1); None gives every sample the same weight.

    Raises:
        ValueError: ``beta`` is outside [0, 1).

    Example:
        >>> mean = Mean()
        >>> for x in (1.0, 2.0, math.nan, 6.0):
        ...     mean.update(x)
        >>> mean.value
        3.0
    """

    def __init__(self, beta: float | None = None) -> None:
        if beta is not None and not 0.0 <= beta < 1.0:
            raise ValueError(f"beta {beta} is not in [0, 1); use for example 0.95, or None for a plain mean")
        self.beta = beta
        self._sum = 0.0
        self._weight = 0.0

    def update(self, x: float, weight: float = 1.0) -> None:
        """Take in one sample, which stands for ``weight`` of them; one that is not finite is left out.

        Args:
            x: The sample.
            weight: How many samples it stands for, such as the updates since the last measurement.
        """
        if not math.isfinite(x):
            return
        keep = 1.0 if self.beta is None else self.beta**weight
        new = weight if self.beta is None else 1.0 - keep
        self._sum = keep * self._sum + new * x
        self._weight = keep * self._weight + new

    @property
    def value(self) -> float | None:
        """The mean; None before the first sample."""
        return self._sum / self._weight if self._weight > 0 else None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint."""
        return {"sum": self._sum, "weight": self._weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._sum, self._weight = state["sum"], state["weight"]
