"""Filters against their closed forms."""

from __future__ import annotations

import json
import math
import random
import statistics
from typing import Any

import numpy as np
import pytest

from optland.pilot.filters import LogEMA, Mean, RatioEMA


@pytest.mark.parametrize("spread", [0.2, 0.5, 1.0])
def test_log_ema_of_lognormal_noise_is_centred_on_the_truth(spread: float) -> None:
    draw = random.Random(0)
    ends = []
    for _ in range(400):
        ema = LogEMA(0.9)
        for _ in range(60):
            ema.update(3.0 * math.exp(draw.gauss(0.0, spread)))
        ends.append(math.log(ema.value or math.nan))
    # The average of n logs has mean ln 3; its own standard error over 400 repeats is below spread/sqrt(400 * 10).
    assert statistics.mean(ends) == pytest.approx(math.log(3.0), abs=4 * spread / math.sqrt(400 * 10))


def test_log_ema_counts_what_it_refuses() -> None:
    ema = LogEMA()
    for bad in (0.0, -1.0, math.nan, math.inf):
        ema.update(bad)
    assert ema.value is None
    assert ema.invalid == 4
    ema.update(5.0)
    assert ema.value == pytest.approx(5.0)


def test_ratio_of_means_is_not_the_mean_of_ratios() -> None:
    ratio = RatioEMA(0.5)
    ratio.update(1.0, 1.0)
    ratio.update(1.0, -0.5)  # an unbiased estimate of a small positive number may be negative
    ratio.update(1.0, 0.75)
    # weights 1/8, 1/4, 1/2 of the three samples, normalised: 1 / ((0.125 - 0.125 + 0.375) / 0.875)
    assert ratio.value == pytest.approx(1.0 / (0.375 / 0.875))


def test_ratio_is_unresolved_while_the_denominator_is_not_positive() -> None:
    ratio = RatioEMA()
    assert ratio.value is None
    ratio.update(1.0, -1.0)
    assert ratio.value is None


def test_a_shrinking_scale_does_not_freeze_the_ratio() -> None:
    """Gradients that fall a thousandfold: without the scale the first pair would always set the ratio."""
    scaled, plain = RatioEMA(0.8), RatioEMA(0.8)
    for k in range(30):
        size = 10.0**-k
        true_ratio = 10.0 if k < 10 else 1000.0
        scaled.update(size * true_ratio, size, scale=size * (1 + true_ratio / 64))
        plain.update(size * true_ratio, size)
    assert scaled.value == pytest.approx(1000.0, rel=0.2)
    assert plain.value is not None
    assert plain.value < 20


@pytest.mark.parametrize("make", [LogEMA, RatioEMA, Mean])
def test_filters_refuse_a_beta_outside_its_range(make: type) -> None:
    with pytest.raises(ValueError, match=r"beta 1\.0 is not in \[0, 1\)"):
        make(1.0)


@pytest.mark.parametrize("make", [LogEMA, RatioEMA, Mean, lambda: Mean(0.9)])
def test_filters_resume_exactly(make: Any) -> None:
    one, two = make(), make()
    more = (0.5,) if isinstance(one, RatioEMA) else ()
    for k in range(1, 6):
        one.update(1.0 + k, *more)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert two.value == one.value
    one.update(2.0, *more)
    two.update(2.0, *more)
    assert two.value == one.value


def test_the_error_of_the_ratio_is_that_of_independent_pairs() -> None:
    """sqrt(v_a + v_b) of the two averages, v the weights squared times the variances over the average squared."""
    beta, pairs = 0.8, [(10.0, 2.0, 1.0, 0.1), (12.0, 1.5, 0.5, 0.2), (9.0, 2.5, 2.0, 0.05)]
    ratio = RatioEMA(beta)
    for a, b, da, db in pairs:
        ratio.update(a, b, errors=(da, db))
    weights = [(1 - beta) * beta ** (len(pairs) - 1 - k) for k in range(len(pairs))]
    top = sum(w * p[0] for w, p in zip(weights, pairs, strict=True))
    bottom = sum(w * p[1] for w, p in zip(weights, pairs, strict=True))
    errors = [math.sqrt(sum((w * p[k]) ** 2 for w, p in zip(weights, pairs, strict=True))) for k in (2, 3)]
    assert ratio.value == pytest.approx(top / bottom)
    assert ratio.error == pytest.approx(top / bottom * math.hypot(errors[0] / top, errors[1] / bottom))
    ratio.update(10.0, 2.0)
    assert math.isnan(ratio.error), "an error that nobody gave is not known"


def test_the_least_ratio_is_the_smaller_root_of_fiellers_equation() -> None:
    ratio = RatioEMA(0.5)
    assert math.isnan(ratio.least), "there is no ratio yet"
    ratio.update(10.0, 2.0, errors=(1.0, 0.4))
    # The one pair counts half, and so do its errors: (5 - r)^2 = 0.5^2 + (0.2 r)^2.
    roots = np.roots([1 - 0.2**2, -2 * 5.0, 5.0**2 - 0.5**2])
    assert ratio.least == pytest.approx(min(roots))
    assert ratio.least < ratio.value == 5.0
    ratio = RatioEMA(0.5)
    ratio.update(1.0, 2.0, errors=(3.0, 0.1))
    assert ratio.least == 0.0, "a numerator within its error may be nothing"


def test_a_mean_of_all_has_equal_weights_and_a_sample_may_stand_for_several() -> None:
    mean = Mean()
    assert mean.value is None
    for x, weight in ((4.0, 1.0), (1.0, 3.0), (math.inf, 5.0), (7.0, 1.0)):
        mean.update(x, weight)
    assert mean.value == pytest.approx((4.0 + 3 * 1.0 + 7.0) / 5)


def test_a_moving_mean_forgets_once_for_each_that_a_sample_stands_for() -> None:
    """A sample for three is that sample three times: beta^3 of the past, and 1 - beta^3 of the new."""
    once, thrice = Mean(0.9), Mean(0.9)
    for x in (2.0, 5.0):
        once.update(x, 3.0)
        for _ in range(3):
            thrice.update(x)
    assert once.value == pytest.approx(thrice.value)
    assert once.value == pytest.approx((0.9**3 * (1 - 0.9**3) * 2 + (1 - 0.9**3) * 5) / (1 - 0.9**6))
