r"""The mean difference of two methods over seeds, with its interval; and the setting that validation prefers.

.. math:: \Delta_s = a_s - b_s, \qquad \bar\Delta \pm t_{0.975, n - 1} \, \frac{\mathrm{std}(\Delta)}{\sqrt n}

The two runs of a seed share initial weights, data order and label noise, so the difference varies less than either.
Settings are chosen on clean validation data and on other seeds than those that are reported: a maximum over settings
is optimistic on the very runs that it was taken over.

**Cost.** None. **Defaults.** 95 %. **Caveats.** Student's t takes the differences as normal and independent; the
seeds vary training alone, so the interval does not cover the choice of the test set (one of 400 images has a standard
error of 0.7 points at 98 %, which both methods share).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from optland.statistics import student_quantile

__all__ = ["Gain", "best_setting", "paired_gain"]

Setting = TypeVar("Setting")


@dataclass(frozen=True, slots=True)
class Gain:
    """A mean difference over seeds.

    Attributes:
        mean: The mean, in the unit of what was compared (points of accuracy).
        error: Half the width of its interval; NaN for a single seed, which has none.
        count: Seeds.
        confidence: How often such an interval covers the true mean.
    """

    mean: float
    error: float
    count: int
    confidence: float = 0.95

    @property
    def p_value(self) -> float:
        """Of the two-sided paired t-test against no difference; NaN for a single seed."""
        from scipy.special import stdtr

        if math.isnan(self.error):
            return math.nan
        if self.error == 0.0:
            return 0.0 if self.mean else 1.0
        t = self.mean / self.error * student_quantile(0.5 + self.confidence / 2, self.count - 1)
        return 2.0 * float(stdtr(self.count - 1, -abs(t)))

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.error

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.error

    def __str__(self) -> str:
        if math.isnan(self.error):
            return f"{self.mean:+.2f} (one seed: no interval)"
        return f"{self.mean:+.2f} ± {self.error:.2f}"


def paired_gain(ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95) -> Gain:
    """The mean of ``ours - theirs`` with its interval.

    Args:
        ours: One number per seed.
        theirs: Those of the other method, for the same seeds in the same order.
        confidence: Between 0 and 1.

    Returns:
        The mean difference and half the width of its interval; with one seed the error is NaN.

    Raises:
        ValueError: The numbers are not pairs, or there are none.

    Example:
        >>> print(paired_gain([97.0, 98.0, 99.0], [96.0, 97.5, 97.5]))
        +1.00 ± 1.24
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError(
            f"{len(ours)} and {len(theirs)} numbers are no pairs; give one of each for every seed"
        )
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    count = len(differences)
    error = math.nan
    if count > 1:
        quantile = student_quantile(0.5 + confidence / 2, count - 1)
        error = quantile * statistics.stdev(differences) / math.sqrt(count)
    return Gain(statistics.fmean(differences), error, count, confidence)


def best_setting(scores: Mapping[Setting, Sequence[float]]) -> Setting:
    """The setting of the highest mean score; of equal ones the first.

    Args:
        scores: Clean validation accuracy of every setting, one number per seed. One that is not finite counts as the
            worst there is: a setting under which a seed dies is not chosen while another lives.

    Returns:
        The setting; where all have a score that is not finite, the first.

    Raises:
        ValueError: There is no setting, or one has no score.

    Example:
        >>> best_setting({0.05: [96.0, 97.0], 0.1: [97.0, 98.0], 0.2: [99.9, float("nan")]})
        0.1
    """
    if not scores or not all(scores.values()):
        raise ValueError(f"every setting needs a score to be chosen by; given: {dict(scores)}")

    def mean(setting: Setting) -> float:
        values = scores[setting]
        return statistics.fmean(values) if all(map(math.isfinite, values)) else -math.inf

    return max(scores, key=mean)
