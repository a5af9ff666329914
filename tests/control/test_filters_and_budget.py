"""Filters against their closed forms, and the budget's promise under random spending."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optland.control import LogEMA, ProbeBudget, RatioEMA


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
    """Gradients that fall a thousandfold: without the scale the first pair would set the ratio for ever."""
    scaled, plain = RatioEMA(0.8), RatioEMA(0.8)
    for k in range(30):
        size = 10.0**-k
        true_ratio = 10.0 if k < 10 else 1000.0
        scaled.update(size * true_ratio, size, scale=size * (1 + true_ratio / 64))
        plain.update(size * true_ratio, size)
    assert scaled.value == pytest.approx(1000.0, rel=0.2)
    assert plain.value is not None
    assert plain.value < 20


@pytest.mark.parametrize("make", [LogEMA, RatioEMA])
def test_filters_refuse_a_beta_outside_its_range(make: type) -> None:
    with pytest.raises(ValueError, match=r"beta 1\.0 is not in \[0, 1\)"):
        make(1.0)


def test_filters_resume_exactly() -> None:
    one, two = RatioEMA(), RatioEMA()
    for k in range(5):
        one.update(k, 1.0 + k)
    two.load_state_dict(one.state_dict())
    one.update(2.0, 3.0)
    two.update(2.0, 3.0)
    assert one.value == two.value


@given(
    st.floats(0.0, 0.5),
    st.lists(st.tuples(st.floats(0.1, 50.0), st.sampled_from("abc"), st.floats(0.1, 30.0)), max_size=200),
)
def test_probes_never_cost_more_than_the_budget(fraction: float, log: list[tuple[float, str, float]]) -> None:
    horizon = sum(train for train, _, _ in log)
    budget = ProbeBudget(fraction, {"a": 1.0, "b": 2.0, "c": 0.0}, horizon_ge=horizon)
    for train, probe, declared in log:
        budget.train(train)
        if budget.affords(probe, declared):
            budget.spend(probe, declared)
    assert budget.probe_ge <= fraction * horizon * (1 + 1e-12)
    assert budget.spent["c"] == 0.0


def test_without_a_horizon_there_is_no_advance() -> None:
    budget = ProbeBudget(0.05, {"a": 1.0})
    assert not budget.affords("a", 0.1)
    budget.train(100.0)
    assert budget.affords("a", 5.0)
    assert not budget.affords("a", 5.001)


def test_budget_resumes_exactly() -> None:
    one = ProbeBudget(0.05, {"a": 1.0, "b": 1.0})
    one.train(1000.0)
    one.spend("a", 20.0)
    two = ProbeBudget(0.05, {"a": 1.0, "b": 1.0})
    two.load_state_dict(one.state_dict())
    assert two.used == one.used == 0.02
    assert two.affords("a", 5.0) is one.affords("a", 5.0) is True
    assert two.affords("a", 5.1) is one.affords("a", 5.1) is False


def test_budget_refuses_negative_numbers() -> None:
    with pytest.raises(ValueError, match=r"budget -0\.1 is negative"):
        ProbeBudget(-0.1, {"a": 1.0})
    with pytest.raises(ValueError, match="probe shares"):
        ProbeBudget(0.1, {"a": -1.0})
