"""Minima side by side against closed forms; rank correlations against counted pairs and permutations."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiers import slow

from optland.landscape import MinimaComparison, compare_minima, correlation, rank_correlations
from optland.landscape.correlation import RankCorrelation
from optland.problems import quadratic
from optland.problems.critical import two_factor

D = torch.float64
FEW = 200
"""Resamples where the interval is not what is asked about; the example of the function takes all of them."""


@pytest.fixture
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlation, "RESAMPLES", FEW)


def test_two_quadratics_at_their_minimum_have_the_closed_forms() -> None:
    A, B = torch.diag(torch.tensor([8.0, 2.0], dtype=D)), torch.diag(torch.tensor([3.0, 3.0], dtype=D))
    origin = torch.zeros(2, dtype=D)
    found = compare_minima(
        {"narrow": quadratic(A, origin), "round": quadratic(B, origin)},
        radii=[0.1],
        metrics=["identity"],
        num_pairs=100,
    )
    for minimum, largest, tr in zip(found.minima, (8.0, 3.0), (10.0, 6.0), strict=True):
        assert minimum.largest.value == pytest.approx(largest)
        assert minimum.trace.value == pytest.approx(tr)
        average, sam, worst = (s.rise for s in minimum.sharpness)
        assert average.value == pytest.approx(0.5 * 0.01 * tr / 2, abs=5 * average.error)
        assert sam.value == 0.0  # no gradient at a minimum
        assert worst.value == pytest.approx(0.5 * 0.01 * largest, rel=1e-3)
        assert minimum.loss == 0.0
        assert math.isnan(minimum.gap)
    assert found.flattest("largest eigenvalue") == "round"


def test_a_rescaling_that_leaves_the_function_moves_all_but_the_adaptive_measures() -> None:
    # ab = 1 at (1, 1) and (4, 1/4): eigenvalue a^2 + b^2, adaptive curvature 2 at both.
    found = compare_minima(
        {"even": two_factor(1.0, 1.0), "uneven": two_factor(4.0, 0.25)}, radii=[0.05], num_pairs=50
    )
    assert found.flattest("largest eigenvalue") == "even"
    assert found.flattest("worst(m=all, radius=0.05, p=2, T=I, eval)") == "even"
    even, uneven = (m.measures()["worst(m=all, radius=0.05, p=2, T=|w|, eval)"].value for m in found.minima)
    assert even == pytest.approx(uneven, rel=1e-6)


def test_what_cannot_be_told_apart_has_no_flattest() -> None:
    same = quadratic(torch.eye(40, dtype=D), torch.zeros(40, dtype=D))
    found = compare_minima({"a": same, "b": same}, radii=[0.1], metrics=["identity"])
    columns, rows = found.table()
    assert [row[-1] for row in rows[1:]] == ["not resolved"] * (len(rows) - 1)
    assert columns == ["measure", "a", "error of a", "b", "error of b", "flattest"]


def test_the_gap_is_the_other_loss_less_this_one_and_all_of_it_can_be_kept(tmp_path: Path) -> None:
    L, other = two_factor(1.0, 1.0), two_factor(1.0, 3.0)
    found = compare_minima({"a": L}, others={"a": other}, radii=[0.1])
    assert found.minima[0].gap == pytest.approx(2.0)
    found.save(tmp_path / "minima")
    assert str(MinimaComparison.load(tmp_path / "minima")) == str(found)


@pytest.mark.parametrize(
    ("minima", "others", "says"),
    [
        ({}, {}, "empty"),
        ({"a": two_factor(1, 1)}, {"b": two_factor(1, 1)}, "'b'"),
        ({"a": two_factor(1, 1), "b": quadratic(torch.eye(2))}, {}, "dtype"),
    ],
)
def test_what_cannot_be_compared_is_refused(minima: dict, others: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        compare_minima(minima, others=others)


@pytest.mark.usefixtures("_few_resamples")
def test_tau_counts_pairs_and_leaves_ties_out_of_both() -> None:
    """Of 10 pairs 7 agree and 1 does not; 1 is tied in the measure, 1 in the gap: (7 - 1) / sqrt(9 * 9)."""
    found = rank_correlations({"m": [1, 2, 2, 3, 4]}, [2, 1, 3, 5, 5])
    assert found["m"].tau == pytest.approx(6 / 9)


@pytest.mark.usefixtures("_few_resamples")
def test_a_perfect_order_of_five_has_two_permutations_of_120() -> None:
    found = rank_correlations({"up": [1, 2, 3, 4, 5], "down": [5, 4, 3, 2, 1]}, [1, 4, 9, 16, 25])
    assert (found["up"].tau, found["down"].tau) == (pytest.approx(1), pytest.approx(-1))
    for one in found.values():
        assert one.p_value == pytest.approx(2 / 120)
        assert (one.low, one.high) == (pytest.approx(one.tau), pytest.approx(one.tau))


@pytest.mark.parametrize("resamples", [FEW, *slow(correlation.RESAMPLES)])
def test_p_values_and_intervals_hold_what_they_say(resamples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 2.5 % quantile of 200 resamples has a level known to 1.1 %, of 2000 to 0.35 %."""
    monkeypatch.setattr(correlation, "RESAMPLES", resamples)
    generator = torch.Generator().manual_seed(0)
    runs, by_chance, held = 16, 0, 0
    for seed in range(runs):
        x, y = torch.randn(2, 12, generator=generator, dtype=D)
        found = rank_correlations({"m": x.tolist()}, y.tolist(), seed=seed)["m"]
        by_chance += found.p_value < 0.1
        held += found.low <= 0.0 <= found.high
    assert by_chance <= 6  # expected 1.6, and 7 or more have a probability of 0.06 %
    assert held >= 11


def test_a_constant_has_no_order() -> None:
    found = rank_correlations({"flat": [1, 1, 1, 1]}, [1, 2, 3, 4])["flat"]
    assert math.isnan(found.tau)
    assert found.p_value == 1.0
    assert isinstance(found, RankCorrelation)


@pytest.mark.parametrize(
    ("measures", "gaps", "says"),
    [
        ({"m": [1, 2]}, [1, 2], "2 runs"),
        ({"m": [1, 2]}, [1, 2, 3], "2 values"),
        ({"m": [1, 2, math.nan]}, [1, 2, 3], "NaN"),
    ],
)
def test_runs_that_cannot_be_ordered_are_refused(measures: dict, gaps: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rank_correlations(measures, gaps)
