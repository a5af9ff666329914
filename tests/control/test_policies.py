"""Policies and the rewind guard on signals whose right answer is known."""

from __future__ import annotations

import math
import random

import pytest

from optland.control import AutoLR, NoiseBatch, RewindGuard, SafeLR
from optland.control.policies.auto_lr import linear_shape


def test_relative_step_sets_the_rate() -> None:
    policy = AutoLR(tau=0.05)
    rate, binding = policy.step_size(relative_speed=2.0, shape=0.5)
    assert rate == pytest.approx(0.5 * 0.05 / 2.0)
    assert binding == "ratio"


def test_the_critical_step_caps_nothing_unless_asked() -> None:
    policy = AutoLR(tau=0.05)
    policy.observe_critical_step(1e-6)
    assert policy.step_size(relative_speed=1.0, shape=1.0) == (pytest.approx(0.05), "ratio")


def test_the_critical_step_is_a_ceiling_where_it_is_asked_to_be() -> None:
    policy = AutoLR(tau=0.05, ceiling=0.5)
    policy.observe_critical_step(0.01)
    assert policy.step_size(relative_speed=1.0, shape=1.0) == (pytest.approx(0.005), "edge")
    assert policy.step_size(relative_speed=100.0, shape=1.0) == (pytest.approx(0.0005), "ratio")


@pytest.mark.parametrize("speed", [0.0, math.nan, math.inf])
def test_a_step_without_a_length_gets_rate_zero(speed: float) -> None:
    assert AutoLR().step_size(speed, 1.0) == (0.0, "guard")


def test_a_short_run_takes_longer_steps() -> None:
    """h(T) = (1000 / T)^(1/3) between 1 and 2.2."""
    paces = {}
    for steps in (60, 125, 1000, 8000):
        policy = AutoLR()
        policy.begin(steps)
        paces[steps] = policy.pace
    assert paces == pytest.approx({60: 0.11, 125: 0.1, 1000: 0.05, 8000: 0.05})


def test_noise_slows_the_pace_and_coherence_does_not_hasten_it() -> None:
    """n(gamma) = gamma / 0.15 between 0.25 and 1, gamma the mean over the run."""
    policy = AutoLR(steps=1000)
    for cosine in (0.05, math.nan, 0.1):
        policy.observe_coherence(cosine)
    assert policy.pace == pytest.approx(0.025)
    policy.observe_coherence(-5.0)
    assert policy.pace == pytest.approx(0.0125)
    for _ in range(2000):
        policy.observe_coherence(0.9)
    assert policy.pace == pytest.approx(0.05)


def test_sams_pace_follows_the_last_pass_over_the_data() -> None:
    """1000 steps in 40 passes: averaged over 25 steps, and noise counts from 0.15 (40 / 5)^(1/3) = 0.3 on."""
    sam, base = AutoLR(two_pass=True), AutoLR()
    for policy in (sam, base):
        policy.begin(1000, passes=40)
        for cosine in [0.9] * 300 + [0.15] * 250:
            policy.observe_coherence(cosine)
    assert sam.pace == pytest.approx(0.025, rel=1e-3)
    assert base.pace == pytest.approx(0.05)


def test_sams_steps_grow_less_in_a_short_run_and_few_passes_bear_noise_as_the_base_does() -> None:
    """100 steps: 1.6, where the base has 2.15; two passes over the data: coherence counts from 0.15 on."""
    sam = AutoLR(two_pass=True)
    sam.begin(100, passes=2)
    assert sam.pace == pytest.approx(0.08)
    for _ in range(500):
        sam.observe_coherence(0.075)
    assert sam.pace == pytest.approx(0.04)


def test_without_the_size_of_the_data_sam_averages_over_twenty_steps() -> None:
    sam = AutoLR(two_pass=True)
    sam.begin(1000)
    for cosine in [0.9] * 300 + [0.075] * 200:
        sam.observe_coherence(cosine)
    assert sam.pace == pytest.approx(0.025, rel=1e-3)


def test_a_pace_that_is_given_is_kept() -> None:
    policy = AutoLR(tau=0.03, steps=100)
    policy.observe_coherence(0.001)
    assert policy.pace == 0.03


def test_a_rewind_halves_the_pace_whatever_the_noise() -> None:
    policy = AutoLR(steps=125)
    policy.observe_coherence(0.075)
    old, new = policy.on_rewind()
    assert (old, new) == (pytest.approx(0.05), pytest.approx(0.025))


def test_the_pace_resumes() -> None:
    for two_pass in (False, True):
        policy, resumed = AutoLR(two_pass=two_pass), AutoLR(two_pass=two_pass)
        policy.begin(300, passes=30)
        for cosine in (0.3, 0.01, math.nan, 0.05):
            policy.observe_coherence(cosine)
        resumed.load_state_dict(policy.state_dict())
        for both in (policy, resumed):
            both.observe_coherence(0.02)
        assert resumed.pace == policy.pace


def test_the_users_shape_is_kept_behind_the_warm_up() -> None:
    policy = AutoLR(warmup=0.1)
    assert policy.shape(progress=0.05, user_shape=0.8, step=1) == pytest.approx(0.4)
    assert policy.shape(progress=0.5, user_shape=0.3, step=1) == pytest.approx(0.3)
    assert policy.shape(progress=None, user_shape=1.0, step=50) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="needs a horizon"):
        policy.shape(progress=None, user_shape=None, step=1)


def test_own_shape_rises_then_falls_to_zero() -> None:
    values = [linear_shape(k / 1000) for k in range(1001)]
    assert max(values) == pytest.approx(1.0)
    assert values.index(max(values)) == 50
    assert values[0] == values[-1] == 0.0
    assert sum(values) / 1000 == pytest.approx(0.5, abs=1e-3)


def test_safe_lr_never_raises_the_users_rate() -> None:
    policy = SafeLR(fraction=0.5, start=1.0)
    policy.observe_critical_step(10.0)
    assert policy.cap(0.1) == (0.1, "user")


def test_safe_lr_finds_the_cap_from_far_below_at_a_bounded_pace() -> None:
    """c * eta_c = 0.1 from a start of 1e-4: growth 4 a probe needs ceil(log4(1000)) = 5 probes."""
    policy = SafeLR(fraction=0.5, start=1e-4, growth=4.0)
    caps = []
    for _ in range(6):
        policy.observe_critical_step(0.2)
        caps.append(policy.cap(1e9)[0])
    assert caps[:4] == pytest.approx([4e-4, 1.6e-3, 6.4e-3, 2.56e-2])
    assert caps[4:] == pytest.approx([0.1, 0.1])


def test_safe_lr_takes_a_bound_from_below_for_what_it_is() -> None:
    policy = SafeLR(fraction=0.5, start=1.0, growth=1e9)
    policy.observe_critical_step(2.0, resolved=False)
    assert policy.limit == pytest.approx(1.0)
    policy.observe_critical_step(8.0, resolved=False)  # the edge lies beyond this one too
    assert policy.limit == pytest.approx(4.0)
    policy.observe_critical_step(1.0, resolved=False)  # says nothing new
    assert policy.limit == pytest.approx(4.0)
    policy.observe_critical_step(100.0)  # and this is where it is
    assert policy.limit == pytest.approx(50.0)


def test_safe_lr_scales_the_schedule_to_the_highest_cap_so_far() -> None:
    policy = SafeLR(fraction=0.5, start=1.0, growth=1e9)
    policy.observe_critical_step(8.0)
    assert policy.cap(100.0, shape=1.0)[0] == pytest.approx(4.0)
    assert policy.cap(25.0, shape=0.25)[0] == pytest.approx(
        1.0
    )  # a quarter of the peak, under a quarter of the cap
    assert policy.cap(0.5, shape=0.25) == (0.5, "user")
    for _ in range(200):
        policy.observe_critical_step(2.0)
    assert policy.cap(90.0, shape=0.9)[0] == pytest.approx(1.0, rel=1e-3)  # the edge of now binds
    assert policy.cap(10.0, shape=0.1)[0] == pytest.approx(0.4)  # the highest cap, 4, was not forgotten


def test_safe_lr_follows_a_tenfold_fall_of_the_edge() -> None:
    policy = SafeLR(fraction=0.5, start=1.0)
    for _ in range(30):
        policy.observe_critical_step(0.2)
    for _ in range(40):
        policy.observe_critical_step(0.02)
    assert policy.cap(1.0)[0] == pytest.approx(0.01, rel=0.1)


def test_noise_batch_wants_successive_votes_and_respects_the_limit() -> None:
    policy = NoiseBatch(margin=2.0, patience=3, interval=10, max_batch=128)
    assert policy.propose(1000.0, 10, 64, None) is None
    assert policy.propose(1000.0, 20, 64, None) is None
    assert policy.propose(100.0, 30, 64, None) is None  # below 2 x 64: the votes start again
    assert policy.propose(1000.0, 40, 64, None) is None
    assert policy.propose(1000.0, 50, 64, None) is None
    proposal = policy.propose(1000.0, 60, 64, None)
    assert proposal is not None
    assert proposal[0] == 128
    assert "noise scale 1000" in proposal[1]
    for step in (70, 80, 90, 100):
        assert policy.propose(1000.0, step, 128, None) is None  # 256 is over the limit


def test_noise_batch_does_not_vote_on_an_unresolved_scale() -> None:
    policy = NoiseBatch(patience=1, interval=1)
    assert policy.propose(None, 10, 8, 1000) is None


def test_noise_batch_limit_defaults_to_an_eighth_of_the_data() -> None:
    policy = NoiseBatch(patience=1, interval=1)
    assert policy.propose(1e6, 10, 64, 1200) is not None
    assert policy.propose(1e6, 20, 128, 1200) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoLR(tau=0.0), "tau: 0.0 is not a relative step"),
        (lambda: AutoLR(warmup=1.0), "warmup: 1.0"),
        (lambda: AutoLR(ceiling=0.0), "ceiling: 0.0"),
        (lambda: SafeLR(fraction=2.0), "fraction: 2.0"),
        (lambda: SafeLR(start=0.0), "start: 0.0"),
        (lambda: SafeLR(growth=1.0), "growth: 1.0"),
        (lambda: NoiseBatch(margin=0.5), "margin: 0.5"),
        (lambda: NoiseBatch(patience=0), "patience 0"),
        (lambda: NoiseBatch(max_batch=0), "max_batch: 0"),
    ],
)
def test_constants_out_of_range_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


# ---------------------------------------------------------------- the rewind guard


def _fed(losses: list[float]) -> list[str | None]:
    guard = RewindGuard()
    return [guard.observe(loss) for loss in losses]


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
