"""Gains against SciPy's paired t-test, and the choice by validation."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from optland.train.experiments.seed_differences import best_setting, paired_gain


@pytest.mark.parametrize("count", [2, 3, 5, 12])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_is_that_of_a_paired_t_test(count: int, confidence: float) -> None:
    draw = random.Random(count)
    ours, theirs = ([draw.gauss(mean, 1.0) for _ in range(count)] for mean in (98.0, 97.0))
    gain = paired_gain(ours, theirs, confidence)
    reference = stats.ttest_rel(ours, theirs).confidence_interval(confidence)
    assert (gain.low, gain.high) == pytest.approx((reference.low, reference.high), rel=1e-9)
    assert gain.count == count
    assert gain.p_value == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, rel=1e-9)


def test_what_both_share_leaves_the_interval_alone() -> None:
    gain = paired_gain([90.5, 50.5, 70.5], [90.0, 50.0, 70.0])
    assert gain.mean == pytest.approx(0.5)
    assert gain.error == pytest.approx(0.0)
    assert (gain.p_value, paired_gain([1.0, 2.0], [1.0, 2.0]).p_value) == (0.0, 1.0)


def test_one_seed_has_no_interval_and_says_so() -> None:
    gain = paired_gain([98.0], [97.0])
    assert math.isnan(gain.error)
    assert math.isnan(gain.p_value)
    assert str(gain) == "+1.00 (one seed: no interval)"


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0])])
def test_what_are_no_pairs_is_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="numbers are no pairs; give one of each for every seed"):
        paired_gain(ours, theirs)


def test_the_best_setting_is_that_of_the_highest_mean_and_never_one_that_dies() -> None:
    assert best_setting({"a": [1.0, 4.0], "b": [3.0, 3.0], "c": [9.0, -9.0]}) == "b"
    assert best_setting({"a": [1.0, 1.0], "b": [1.0, 1.0]}) == "a", "of equal ones the first"
    assert best_setting({"a": [99.0, math.nan], "b": [0.0, 0.0]}) == "b"
    with pytest.raises(ValueError, match="every setting needs a score"):
        best_setting({"a": []})
