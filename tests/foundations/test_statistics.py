"""The tests behind decisions, against SciPy and against series whose law is known."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import pytest
from scipy import stats

from optland.statistics import holm, mean_interval, slope_t, step_noise, student_quantile, trend_z


@pytest.mark.parametrize("p", [0.01, 0.2, 0.75, 0.975, 0.9995])
def test_student_quantiles_of_one_and_two_degrees_of_freedom_are_elementary(p: float) -> None:
    """The quantiles are tan(pi (p - 1/2)) for one degree of freedom and (2 p - 1) / sqrt(2 p (1 - p)) for two."""
    assert student_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-9)
    assert student_quantile(p, 2) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)), rel=1e-9)


def test_student_quantiles_grow_normal() -> None:
    assert student_quantile(0.975, 10**7) == pytest.approx(NormalDist().inv_cdf(0.975), rel=1e-6)


def test_what_has_no_quantile_is_refused() -> None:
    with pytest.raises(ValueError, match=r"probability=1\.0"):
        student_quantile(1.0, 3)
    with pytest.raises(ValueError, match="two measurements"):
        student_quantile(0.9, 0)


def test_slope_against_scipy() -> None:
    draw = random.Random(0)
    values = [1.0 - 0.01 * k + draw.gauss(0, 0.1) for k in range(60)]
    slope, t, bound = slope_t(values)
    peer = stats.linregress(range(60), values)
    assert slope == pytest.approx(peer.slope, rel=1e-10)
    assert t == pytest.approx(peer.slope / peer.stderr, rel=1e-10)
    assert bound == pytest.approx(stats.t.ppf(0.05, 58), rel=1e-9)


def test_mean_interval_covers_the_mean_of_a_correlated_series() -> None:
    """An AR(1) series: the interval that takes its samples as independent would cover in 60 % of cases."""
    draw, covered = random.Random(1), 0
    for _ in range(300):
        x, series = 0.0, []
        for _ in range(400):
            x = 0.7 * x + draw.gauss(0, 1)
            series.append(x)
        mean, half = mean_interval(series)
        covered += abs(mean) <= half
    assert covered / 300 > 0.85


def test_step_noise_is_that_of_one_value_whatever_the_drift() -> None:
    """White noise of 0.3 on a slope: the median of |x_k - x_(k-1)| is 0.3 sqrt(2) 0.6745 for a drift well below it."""
    draw = random.Random(2)
    for drift in (0.0, 0.03, -0.03):
        values = [drift * k + draw.gauss(0.0, 0.3) for k in range(4000)]
        assert step_noise(values) == pytest.approx(0.3, rel=0.06)
    assert step_noise([*values, 1e9]) == pytest.approx(step_noise(values), rel=0.01)


def test_trend_z_judges_against_the_recent_median() -> None:
    """A series that has fallen from 100 to 60: the median of its last 16 values is 60.75 for a fall of 0.1."""
    falling = [100.0 - 0.1 * k for k in range(400)]
    assert trend_z(62.85, falling, least=0.5) == pytest.approx((62.85 - 60.85) / 0.5, rel=1e-9)


def rejected(p_values: list[float], level: float) -> set[int]:
    """Holm's procedure as it is told: the smallest first, at level / (those that are left), until one does not pass."""
    found: set[int] = set()
    left = list(range(len(p_values)))
    while left:
        least = min(left, key=lambda i: p_values[i])
        if p_values[least] > level / len(left):
            break
        found.add(least)
        left.remove(least)
    return found


def test_adjusted_p_values_reject_what_the_procedure_of_holm_does() -> None:
    draw = random.Random(0)
    for count in (1, 2, 4, 9):
        p_values = [draw.random() ** 3 for _ in range(count)]
        p_values[-1] = p_values[0]  # ties
        adjusted = holm(p_values)
        for level in (0.001, 0.01, 0.05, 0.2, 0.5, 0.9):
            assert {i for i, p in enumerate(adjusted) if p <= level} == rejected(p_values, level)
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        holm([0.1, float("nan")])
