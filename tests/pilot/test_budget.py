"""The budget's promise under random spending, and its closed form."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optland.pilot.budget import Budget

COSTS = {"a": 7.0, "b": 19.0, "c": 3.0}
AHEAD = {"a": 4, "b": 1, "c": 2}


@given(
    st.floats(0.0, 1.0),
    st.floats(10.0, 5000.0) | st.just(math.inf),
    st.lists(st.tuples(st.floats(0.1, 50.0), st.sampled_from("abc"), st.floats(0.0, 1.0)), max_size=200),
)
def test_probes_never_cost_more_than_the_share_and_the_advance(
    fraction: float, whole: float, log: list[tuple[float, str, float]]
) -> None:
    """A probe of a stated cost spends that or less; what was spent is held against figures that are counted here."""
    budget, trained, spent = Budget(fraction, {"a": 1.0, "b": 2.0, "c": 1.0}), 0.0, 0.0
    budget.whole = whole
    asked: set[str] = set()
    for cost, probe, part in log:
        budget.train(cost)
        trained += cost
        asked.add(probe)
        if budget.affords(probe, COSTS[probe], ahead=AHEAD[probe]):
            budget.spend(probe, part * COSTS[probe])
            spent += part * COSTS[probe]
        advance = sum(AHEAD[name] * COSTS[name] for name in asked)
        assert spent <= fraction * trained + advance
        assert spent <= max(fraction, 0.25) * trained
        assert budget.probe_ge == pytest.approx(spent)
    assert fraction > 0 or spent == 0.0


def test_what_is_spent_ahead_is_paid_back_before_anything_else_is_spent() -> None:
    """One probe of cost 5 at a share of 5 %: four at once as the first quarter is trained, none until T reaches 500."""
    budget, runs = Budget(0.05, {"a": 1.0}), []
    for k in range(1, 101):
        budget.train(10.0)
        while budget.affords("a", 5.0, ahead=4):
            budget.spend("a", 5.0)
            runs.append(10 * k)
    # T/4 >= 5, 10, 15, 20: the advance of four; then f T >= 25, 30, ...
    assert runs == [20, 40, 60, 80, 500, 600, 700, 800, 900, 1000]


@pytest.mark.parametrize(
    ("cost", "updates", "first"),
    [
        (400.0, 1_000_000, 800),  # 40 updates: of a long run it waits for its turn, 400 / (0.05 * 10)
        (400.0, 16_000, 800),  # which comes within the first twentieth
        (
            400.0,
            15_000,
            160,
        ),  # or not: then it has an advance of a quarter of the training, 400 / (0.25 * 10)
        (100.0, 1_000_000, 40),  # a cheap one has it in any run
    ],
)
def test_a_long_run_does_not_begin_with_a_dear_probe(cost: float, updates: int, first: int) -> None:
    budget = Budget(0.05, {"one": 1.0})
    budget.whole = 10.0 * updates
    step = 0
    while not budget.affords("one", cost):  # also before anything is known of the cost of an update
        budget.train(10.0)
        step += 1
    assert step == first


def test_a_probe_has_its_part_and_takes_nothing_from_another() -> None:
    budget = Budget(0.1, {"a": 1.0, "b": 3.0})
    budget.train(1000.0)
    budget.affords("a", 1.0)
    budget.affords("b", 1.0)
    assert (budget.allowance("a"), budget.allowance("b")) == (25.0, 75.0)
    budget.spend("a", 25.0)
    assert not budget.affords("a", 0.1)
    assert budget.affords("b", 75.0)
    assert not budget.affords("b", 75.1)
    assert budget.interval("b", 15.0, 20.0) == pytest.approx(15.0 / (0.1 * 0.75 * 20.0))
    assert budget.interval("c", 15.0, 20.0) == math.inf


def test_what_is_spent_on_no_probe_comes_out_of_the_parts_of_all() -> None:
    budget = Budget(0.1, {"a": 1.0, "b": 1.0})
    budget.train(1000.0)
    budget.spend("loss_fn", 40.0)
    assert budget.allowance("a") == pytest.approx(0.5 * (100.0 - 40.0))
    assert budget.used == 0.04


def test_nothing_is_afforded_before_anything_is_trained_or_without_a_budget() -> None:
    assert not Budget(0.5, {"a": 1.0}).affords("a", 1e-9)
    free = Budget(0.0, {"a": 1.0})
    free.train(1e9)
    assert not free.affords("a", 1e-9)
    assert not Budget(1.0, {"a": 1.0}).affords("b", 1.0)


def test_budget_resumes_exactly() -> None:
    one, two = (Budget(0.05, {"a": 1.0, "b": 1.0}) for _ in range(2))
    one.whole = 4000.0
    one.train(1000.0)
    one.affords("a", 6.0)
    one.spend("a", 20.0)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert two.used == one.used == 0.02
    for cost in (1.0, 4.0, 5.0, 5.1, 6.0):
        assert two.affords("a", cost) is one.affords("a", cost)
    assert two.advance == one.advance == 6.0


@pytest.mark.parametrize("share", [-0.1, 5, math.nan])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"budget {share} is not a share .* 0.05 for 5 %"):
        Budget(share, {"a": 1.0})


def test_a_probe_without_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="probe weights"):
        Budget(0.1, {"a": -1.0})
