"""The guards on series of losses and gradients whose right answer is known."""

from __future__ import annotations

import json
import math
import random

import pytest

from optland.pilot.guards import FEWEST, CollapseGuard, CoolDown, RewindGuard


def _fed(losses: list[float], *, few: bool = False) -> list[str | None]:
    guard = RewindGuard()
    return [guard.observe(loss, few=few) for loss in losses]


def test_batches_that_differ_more_than_was_learnt_are_not_trouble_and_a_collapse_among_them_is() -> None:
    """A start from a checkpoint: 100 losses of 10 +- 1, the first one low, then a fall of 8, then all but one lost."""
    alarms = {"noise": 0, "progress": 0, "collapse": 0}
    for seed in range(40):
        draw, guard = random.Random(seed), RewindGuard()
        parts = {
            "noise": [8.0] + [draw.gauss(10.0, 1.0) for _ in range(100)],
            "progress": [draw.gauss(10.0 - 0.05 * k, 1.0) for k in range(160)],
            "collapse": [draw.gauss(9.0, 1.0) for _ in range(30)],
        }
        for name, losses in parts.items():
            said = [guard.observe(loss) for loss in losses]
            alarms[name] += any(said)
    assert alarms["noise"] <= 4
    assert alarms["progress"] <= 1
    assert alarms["collapse"] == 40


def test_a_rise_of_four_standard_errors_is_noise_and_one_of_seven_is_not() -> None:
    """Differences of 2 are the noise 1.4826 sqrt(2), and two averages with beta = 0.9 differ by sqrt(0.2 / 1.9)."""
    error = 1.4826 * math.sqrt(2) * math.sqrt(0.2 / 1.9)
    for multiple, alarmed in ((4.0, False), (7.0, True)):
        losses = [10.5] + [10.0 + (-1) ** k for k in range(100)]
        losses += [10.0 + multiple * error + (-1) ** k for k in range(60)]
        assert any(_fed(losses)) == alarmed, multiple


def test_guard_is_silent_on_a_healthy_run() -> None:
    assert not any(_fed([2.3 * 0.98**k for k in range(300)]))


def test_guard_allows_a_transient_catapult() -> None:
    losses = [2.3 * 0.97**k for k in range(100)]
    losses[50] *= 2  # one bad batch moves the average by a tenth of it
    assert not any(_fed(losses))


def test_guard_sees_a_collapse_to_the_trivial_predictor() -> None:
    """Loss from 2.3 to 0.2, then back at ln 10: never above three times the first, and never NaN."""
    losses = [2.3 - 2.1 * k / 100 for k in range(101)] + [math.log(10)] * 20
    verdicts = _fed(losses)
    first = next(k for k, v in enumerate(verdicts) if v)
    # The average passes b + (2.3 - b)/4 after ln(0.75)/ln(0.9) = 2.7 steps at the plateau.
    assert 101 <= first <= 104
    assert "of all progress" in (verdicts[first] or "")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_guard_sees_a_loss_that_is_not_finite(bad: float) -> None:
    assert "the loss is" in (_fed([2.3, 2.2, bad])[-1] or "")


def test_guard_sees_an_explosion_at_once() -> None:
    assert "above 3 times" in (_fed([2.3, 7.0])[-1] or "")
    assert "above 3 times" in (_fed([2.3, 7e3], few=True)[-1] or "")
    assert "above 3 times" in (_fed([2.3 - 0.01 * k for k in range(FEWEST)] + [7.0], few=True)[-1] or "")


def test_of_few_losses_of_small_batches_one_is_not_enough_and_two_are() -> None:
    """Nobody can tell yet how much they differ; of larger ones the first is told."""
    losses = [2.3, 7.0, 2.2, 7.0, 7.0]
    assert _fed(losses, few=True)[:-1] == [None] * 4
    assert "above 3 times" in (_fed(losses, few=True)[-1] or "")
    assert [said is None for said in _fed(losses)] == [True, False, True, False, False]


@pytest.mark.parametrize("first", [0.0, 0.01])
def test_batches_that_differ_by_more_than_the_ceiling_are_no_trouble(first: float) -> None:
    """Losses of one sample, chi-square with one degree of freedom: a fifth of pairs differ by more than a hundred."""
    draw, guard, said = random.Random(3), RewindGuard(), 0
    start = guard.mark()
    for loss in [first, *(draw.gauss(0.0, 1.0) ** 2 for _ in range(2000))]:
        if guard.observe(loss, few=True) is not None:
            said += 1
            guard.rewind(start)
    assert said <= 6


def test_back_at_the_start_the_larger_of_its_losses_counts() -> None:
    guard = RewindGuard()
    start = guard.mark()
    assert guard.observe(0.001, few=True) is None
    assert guard.observe(1.0, few=True) is None
    assert guard.observe(1.0, few=True) is not None
    guard.rewind(start)
    assert [guard.observe(1.0 + 0.1 * (-1) ** k, few=True) for k in range(20)] == [None] * 20
    assert guard.first == 1.1


def test_guard_goes_back_to_a_mark() -> None:
    guard = RewindGuard()
    for k in range(20):
        guard.observe(2.3 - 0.1 * k)
    mark = guard.mark()
    for _ in range(20):
        guard.observe(2.3)
    guard.rewind(mark)
    assert guard.mark() == mark
    assert guard.first == 2.3
    assert guard.observe(0.4) is None


def test_nothing_is_judged_by_an_average_of_few_losses() -> None:
    """Losses that rise from the start, by 1.5 after the first: said at the eighth, not before."""
    verdicts = _fed([1.0] + [2.5] * 20)
    assert next(k for k, said in enumerate(verdicts) if said) == FEWEST - 1


def test_the_guard_resumes_exactly() -> None:
    draw = random.Random(5)
    losses = [2.3 * 0.98**k + draw.gauss(0.0, 0.05) for k in range(60)] + [2.2] * 10
    whole, first, second = RewindGuard(), RewindGuard(), RewindGuard()
    expected = [whole.observe(loss) for loss in losses]
    said = [first.observe(loss) for loss in losses[:37]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    said += [second.observe(loss) for loss in losses[37:]]
    assert said == expected
    assert any(said)


# ---------------------------------------------------------------- a dead net

ALIVE = {"first": 1.0, "second": 1.0}


def test_a_dead_net_is_told_from_an_initial_plateau() -> None:
    plateau, dead = CollapseGuard(), CollapseGuard()
    assert not any(plateau.observe(2.3, {"w": 0.01}) for _ in range(100))
    for k in range(30):
        assert dead.observe(2.3 - 0.05 * k, {"w": 1.0}) is None
    verdicts = [dead.observe(2.303, {"w": 1e-6}) for _ in range(12)]
    assert next(k for k, said in enumerate(verdicts) if said) == 9
    assert "the network is dead" in str(verdicts[9])
    assert dead.since == 12
    dead.forget()
    assert dead.observe(2.303, {"w": 1e-6}) is None


def test_convergence_is_not_taken_for_death() -> None:
    guard = CollapseGuard()
    assert not any(guard.observe(2.3 * 0.9**k, {"w": 0.9**k}) for k in range(200))
    silent = CollapseGuard()
    assert silent.observe(2.3, ALIVE) is None
    rested = [silent.observe(0.02, {"first": 0.0, "second": 0.5}) for _ in range(50)]
    assert not any(rested), "a matrix may rest once nothing is left to learn"


def test_a_matrix_without_gradient_counts_where_it_had_one() -> None:
    """Ten updates in a row; one that never had a gradient is not trained, and its silence says nothing."""
    guard = CollapseGuard()
    guard.observe(2.3, ALIVE | {"unused": 0.0})
    dead = {"first": 0.0, "second": 1.0, "unused": 0.0}
    verdicts = [guard.observe(2.3, dead) for _ in range(10)]
    assert verdicts[:9] == [None] * 9
    assert "1 of 3 weight matrices has been exactly zero for 10 updates" in str(verdicts[9])


def test_a_matrix_that_comes_back_is_no_collapse() -> None:
    guard, twin = CollapseGuard(), CollapseGuard()
    for k in range(35):
        alive = k % 10 == 0
        assert guard.observe(2.3, ALIVE if alive else {"first": 0.0, "second": 0.0}) is None
        if k == 20:
            twin.load_state_dict(json.loads(json.dumps(guard.state_dict())))
        elif k > 20:
            assert twin.observe(2.3, ALIVE if alive else {"first": 0.0, "second": 0.0}) is None
    assert guard.since == twin.since == 4
    assert twin.state_dict() == guard.state_dict()


def test_what_is_not_finite_is_left_to_others() -> None:
    guard = CollapseGuard()
    guard.observe(2.3, ALIVE)
    for loss, norms in ((math.nan, ALIVE), (2.3, {"first": math.inf, "second": 0.0}), (2.3, {})):
        assert guard.observe(loss, norms) is None
    assert guard.since == 0


# ---------------------------------------------------------------- after a rewind


def test_cool_down_stops_growth_alone() -> None:
    cool = CoolDown(10)
    assert cool.allows(1, 1.0, 2.0)
    cool.start(100)
    assert not cool.allows(105, 1.0, 2.0)
    assert not cool.allows(110, 1.0, 2.0)
    assert cool.allows(105, 1.0, 0.5)
    assert cool.allows(111, 1.0, 2.0)
