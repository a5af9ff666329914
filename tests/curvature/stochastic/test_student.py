"""Quantiles against SciPy's."""

from __future__ import annotations

import pytest
from scipy import stats

from optland.curvature.stochastic.student import student_quantile


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 5, 7, 8, 15, 30, 99, 1000, 1001, 5000, 10**6])
def test_quantile_is_that_of_scipy(dof: int) -> None:
    for probability in (0.01, 0.2, 0.51, 0.75, 0.9, 0.975, 0.99, 0.9995):
        expected = float(stats.t.ppf(probability, dof))
        assert student_quantile(probability, dof) == pytest.approx(expected, rel=1e-7)
    assert student_quantile(0.5, dof) == pytest.approx(0.0, abs=1e-12)


def test_wrong_usage_names_the_fix() -> None:
    with pytest.raises(ValueError, match=r"probability=1\.0"):
        student_quantile(1.0, 3)
    with pytest.raises(ValueError, match="two measurements"):
        student_quantile(0.9, 0)
