"""The lower end of a noise scale: where the signal drowns in the noise, a larger batch is called for all the same."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from optland.pilot.filters import RatioEMA


@pytest.mark.parametrize(
    ("a", "b", "da", "db"),
    [
        (10.0, 2.0, 1.0, 0.1),
        (10.0, 2.0, 1.0, 3.0),
        (10.0, 0.01, 2.0, 1.0),
        (5.0, 4.0, 0.0, 1.0),
        (3.0, 1.0, 2.9, 0.5),
    ],
)
def test_the_lower_end_is_that_of_fieller(a: float, b: float, da: float, db: float) -> None:
    """The least r > 0 with (a - r b)^2 = da^2 + r^2 db^2, found by bisection: left of it the difference is positive."""
    ratio = RatioEMA(0.0)
    ratio.update(a, b, errors=(da, db))

    def outside(r: float) -> bool:
        return (a - r * b) ** 2 > da**2 + r**2 * db**2

    low, high = 0.0, a / b
    assert outside(low)
    assert not outside(high)
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if outside(middle) else (low, middle)
    assert ratio.least == pytest.approx(low, rel=1e-9)
    assert 0.0 < ratio.least < ratio.value


def test_for_small_errors_it_is_the_ratio_less_its_first_order_error() -> None:
    ratio = RatioEMA(0.8)
    for _ in range(5):
        ratio.update(10.0, 2.0, errors=(0.01, 0.002))
    assert ratio.value is not None
    assert ratio.value - ratio.least == pytest.approx(ratio.error, rel=0.01)


def test_without_a_ratio_or_an_error_there_is_no_end_and_none_below_zero() -> None:
    ratio = RatioEMA(0.0)
    assert math.isnan(ratio.least)
    ratio.update(1.0, -2.0, errors=(0.1, 0.1))
    assert math.isnan(ratio.least)
    ratio.update(1.0, 2.0)
    assert math.isnan(ratio.least)
    ratio = RatioEMA(0.0)
    ratio.update(1.0, 2.0, errors=(1.5, 0.1))
    assert ratio.least == 0.0


@pytest.mark.parametrize("truth", [30.0, 300.0, 3000.0])
def test_far_above_the_batch_it_stays_below_the_truth_and_above_the_batch(truth: float) -> None:
    """Gradients of four parts of a batch of 8 from their law, |G|^2 = 1 and tr Sigma = truth, in 200 dimensions, with
    the standard deviations of that law as their errors.

    The first order error is larger than the ratio there, so the ratio less it is no bound at all.
    """
    draw = random.Random(0)
    batch, parts, dim = 8, 4, 200
    lows = []
    for _ in range(60):
        ratio = RatioEMA(0.8)
        for _ in range(20):
            spread = truth / dim * parts / batch  # variance of one number of a part's gradient
            within = spread * draw.gammavariate(0.5 * dim * (parts - 1), 2.0)
            along = draw.gauss(1.0, math.sqrt(spread / parts))
            square = along**2 + spread / parts * draw.gammavariate(0.5 * (dim - 1), 2.0)
            trace = within / (parts - 1) * batch / parts
            square -= trace / batch
            noise = truth / batch
            of_square = 2 * noise**2 / dim * (1 + 1 / (parts - 1)) + 4 * noise / dim
            errors = (truth * math.sqrt(2 / (dim * (parts - 1))), math.sqrt(of_square))
            ratio.update(trace, square, trace / batch + square, errors)
        if not math.isnan(ratio.least):
            lows.append(ratio.least)
    assert len(lows) >= 20
    assert 2 * batch < statistics.median(lows) < truth
