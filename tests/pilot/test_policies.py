"""``auto_lr``, ``safe_lr`` and ``noise_batch`` on signals whose right answer is known."""

from __future__ import annotations

import json
import math

import pytest
from fed import Fed, asked, invalid

from optland.pilot import AutoLR, Decision, HostFacts, NoiseBatch, Policy, Proposal, SafeLR, Signal
from optland.pilot.policies.auto_lr import linear_shape


def rewind(step: int = 1, *, taken: bool = True) -> Decision:
    return Decision(step, "guard", "rewind", 1.0, 1.0, "as scripted", taken)


def coherent(policy: AutoLR, *cosines: float, start: int = 1) -> int:
    """Give it these cosines, one per update; returns the update after them."""
    fed = Fed(policy)
    for k, cosine in enumerate(cosines, start):
        fed(k, 0.5, noise__coherence=cosine)
    return start + len(cosines)


# ---------------------------------------------------------------- auto_lr


def test_the_length_of_an_update_is_the_shape_times_the_pace() -> None:
    fed = Fed(AutoLR(tau=0.04))
    for progress, shape in ((0.025, 0.5), (0.05, 1.0), (0.525, 0.5), (1.0, 0.0)):
        (proposal,) = fed(1, progress)
        assert (proposal.actuator, proposal.cap) == ("step_length", False)
        assert proposal.new == pytest.approx(0.04 * shape)


def test_own_shape_rises_then_falls_to_zero() -> None:
    values = [linear_shape(k / 1000) for k in range(1001)]
    assert max(values) == pytest.approx(1.0)
    assert values.index(max(values)) == 50
    assert values[0] == values[-1] == 0.0
    assert sum(values) / 1000 == pytest.approx(0.5, abs=1e-3)


def test_the_users_shape_is_kept_behind_the_warm_up() -> None:
    fed = Fed(AutoLR(tau=0.1, warmup=0.1), shape=0.8)
    assert fed(1, 0.05)[0].new == pytest.approx(0.1 * 0.4)
    fed.settings["shape"] = 0.3
    assert fed(2, 0.5)[0].new == pytest.approx(0.1 * 0.3)
    assert fed(50)[0].new == pytest.approx(0.1 * 0.5 * 0.3), (
        "a warm-up of 100 updates where the length is unknown"
    )


def test_the_length_has_to_be_known_or_to_be_unknown_on_purpose() -> None:
    with pytest.raises(ValueError, match=r"auto_lr needs to know the length of the run: .*total_steps"):
        AutoLR().begin(HostFacts())
    for facts in ({"has_length": True}, {"has_schedule": True}, {"open_ended": True}):
        assert AutoLR().begin(HostFacts(**facts)) == []


def test_the_critical_step_caps_nothing_unless_asked() -> None:
    fed = Fed(AutoLR(tau=0.05))
    (proposal,) = fed(1, 0.05, edge__eta_c=1e-6)
    assert proposal.new == pytest.approx(0.05)
    assert not fed.policy.caps


def test_the_critical_step_is_a_cap_where_it_is_asked_to_be() -> None:
    policy = AutoLR(tau=0.05, ceiling=0.5)
    assert policy.caps == {"lr"}
    assert "edge/eta_c" in policy.reads
    fed = Fed(policy)
    assert [p.actuator for p in fed(1, 0.05)] == ["step_length"], "nothing is known yet"
    length, cap = fed(2, 0.05, edge__eta_c=0.01)
    assert (cap.actuator, cap.cap, cap.new) == ("lr", True, pytest.approx(0.005))
    assert length.new == pytest.approx(0.05), "the cap bounds the rate, and not the length that is asked for"
    assert [p.actuator for p in fed(3, 0.05, edge__eta_c=invalid("edge/eta_c", 3))] == ["step_length"]
    assert fed(4, 0.05, edge__eta_c=0.04)[1].new == pytest.approx(
        0.5 * 0.01 ** (0.9 / 1.9) * 0.04 ** (1 / 1.9)
    )


def test_a_short_run_takes_longer_steps() -> None:
    """h(T) = (1000 / T)^(1/3) between 1 and 2.2."""
    paces = {}
    for steps in (60, 125, 1000, 8000):
        policy = AutoLR()
        policy.begin(HostFacts(steps=steps, has_length=True))
        paces[steps] = policy.pace
    assert paces == pytest.approx({60: 0.11, 125: 0.1, 1000: 0.05, 8000: 0.05})


def test_noise_slows_the_pace_and_coherence_does_not_hasten_it() -> None:
    """n(gamma) = gamma / 0.15 between 0.25 and 1, gamma the mean over the run; what is not finite is left out."""
    policy = AutoLR()
    policy.begin(HostFacts(steps=1000, has_length=True))
    after = coherent(policy, 0.05, math.nan, 0.1)
    assert policy.pace == pytest.approx(0.05 * 0.075 / 0.15)
    coherent(policy, -5.0, start=after)
    assert policy.pace == pytest.approx(0.0125)
    coherent(policy, *[0.9] * 2000, start=after + 1)
    assert policy.pace == pytest.approx(0.05)


def test_a_cosine_stands_for_the_updates_since_the_last_one() -> None:
    """Measured at 1, 2 and 10: weights 1, 1 and 8."""
    policy = AutoLR()
    policy.begin(HostFacts(steps=1000, has_length=True))
    fed = Fed(policy)
    for step, cosine in ((1, 0.15), (2, 0.15), (10, 0.05)):
        fed(step, 0.5, noise__coherence=cosine)
    assert policy.pace == pytest.approx(0.05 * (0.15 + 0.15 + 8 * 0.05) / 10 / 0.15)


def test_sams_pace_follows_the_last_pass_over_the_data() -> None:
    """1000 steps in 40 passes: averaged over 25 steps, and noise counts from 0.15 (40 / 5)^(1/3) = 0.3 on."""
    for two_pass, pace in ((True, 0.025), (False, 0.05)):
        policy = AutoLR()
        policy.begin(HostFacts(steps=1000, has_length=True, passes=40, two_pass=two_pass))
        coherent(policy, *[0.9] * 300, *[0.15] * 250)
        assert policy.pace == pytest.approx(pace, rel=1e-3)


def test_sams_steps_grow_less_in_a_short_run_and_few_passes_bear_noise_as_the_base_does() -> None:
    """100 steps: 1.6, where the base has 2.15; two passes over the data: coherence counts from 0.15 on."""
    sam = AutoLR()
    sam.begin(HostFacts(steps=100, has_length=True, passes=2, two_pass=True))
    assert sam.pace == pytest.approx(0.08)
    coherent(sam, *[0.075] * 500)
    assert sam.pace == pytest.approx(0.04)


def test_without_the_size_of_the_data_sam_averages_over_twenty_steps() -> None:
    sam = AutoLR()
    sam.begin(HostFacts(steps=1000, has_length=True, two_pass=True))
    coherent(sam, *[0.9] * 300, *[0.075] * 200)
    assert sam.pace == pytest.approx(0.025, rel=1e-3)


def test_a_pace_that_is_given_is_kept_and_reads_nothing() -> None:
    """The plain rule."""
    policy = AutoLR(tau=0.03)
    assert policy.reads == frozenset()
    policy.begin(HostFacts(steps=100, has_length=True))
    coherent(policy, 0.001)
    assert policy.pace == 0.03


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_rewind_halves_the_pace_whatever_the_noise(adaptive: bool) -> None:
    policy = AutoLR() if adaptive else AutoLR(tau=0.05)
    policy.begin(HostFacts(steps=125, has_length=True))
    coherent(policy, 0.075)
    before = policy.pace
    policy.told(rewind(taken=False))
    assert policy.pace == before
    policy.told(rewind())
    assert policy.pace == pytest.approx(before / 2)
    assert policy.rewinds == 1


def test_the_pace_resumes() -> None:
    for two_pass in (False, True):
        policy, resumed = AutoLR(), AutoLR()
        for p in (policy, resumed):
            p.begin(HostFacts(steps=300, has_length=True, passes=30, two_pass=two_pass))
        after = coherent(policy, 0.3, 0.01, math.nan, 0.05)
        resumed.load_state_dict(json.loads(json.dumps(policy.state_dict())))
        for both in (policy, resumed):
            coherent(both, 0.02, start=after)
        assert resumed.pace == policy.pace


# ---------------------------------------------------------------- safe_lr


def cap_of(proposals: list[Proposal]) -> float:
    (proposal,) = proposals
    assert (proposal.actuator, proposal.cap) == ("lr", True)
    assert proposal.reason
    return proposal.new


def test_the_first_cap_holds_before_anything_is_known() -> None:
    policy = SafeLR(initial_lr=1e-4)
    assert cap_of(policy.begin(HostFacts())) == 1e-4
    assert cap_of(Fed(policy, lr=1.0)(1)) == 1e-4


def test_safe_lr_finds_the_cap_from_far_below_at_a_bounded_pace() -> None:
    """c * eta_c = 0.1 from a start of 1e-4: growth 4 a probe needs ceil(log4(1000)) = 5 probes."""
    fed = Fed(SafeLR(fraction=0.5, initial_lr=1e-4, growth=4.0), lr=1e9)
    caps = [cap_of(fed(k, edge__eta_c=0.2)) for k in range(1, 7)]
    assert caps[:4] == pytest.approx([4e-4, 1.6e-3, 6.4e-3, 2.56e-2])
    assert caps[4:] == pytest.approx([0.1, 0.1])


def test_a_measurement_moves_the_cap_once() -> None:
    fed = Fed(SafeLR(fraction=0.5, initial_lr=1e-4), lr=1e9)
    fed(1, edge__eta_c=0.2)
    caps = [cap_of(fed(k)) for k in range(2, 20)]
    assert caps == pytest.approx([1.6e-3] * 18)


def test_safe_lr_takes_a_bound_from_below_for_what_it_is() -> None:
    policy = SafeLR(fraction=0.5, initial_lr=1.0, growth=1e9)
    fed = Fed(policy, lr=1e9)

    def bound(value: float, step: int) -> Signal:
        return Signal("edge/eta_c", value, step, why="unbounded")

    assert cap_of(fed(1, edge__eta_c=bound(2.0, 1))) == pytest.approx(1.0)
    assert cap_of(fed(2, edge__eta_c=bound(8.0, 2))) == pytest.approx(
        4.0
    )  # the edge lies beyond this one too
    assert cap_of(fed(3, edge__eta_c=bound(1.0, 3))) == pytest.approx(4.0)  # says nothing new
    assert cap_of(fed(4, edge__eta_c=100.0)) == pytest.approx(50.0)  # and this is where it is


def test_safe_lr_scales_the_schedule_to_the_highest_cap_so_far() -> None:
    fed = Fed(SafeLR(fraction=0.5, initial_lr=1.0, growth=1e9), lr=100.0, shape=1.0)
    assert cap_of(fed(1, edge__eta_c=8.0)) == pytest.approx(4.0)
    fed.settings |= {"lr": 25.0, "shape": 0.25}  # a quarter of the peak, under a quarter of the cap
    assert cap_of(fed(2)) == pytest.approx(1.0)
    fed.settings |= {"lr": 90.0, "shape": 0.9}
    for k in range(3, 203):
        cap = cap_of(fed(k, edge__eta_c=2.0))
    assert cap == pytest.approx(1.0, rel=1e-3)  # the edge of now binds
    fed.settings |= {"lr": 10.0, "shape": 0.1}
    assert cap_of(fed(203)) == pytest.approx(0.4)  # the highest cap, 4, was not forgotten


def test_safe_lr_follows_a_tenfold_fall_of_the_edge() -> None:
    fed = Fed(SafeLR(fraction=0.5, initial_lr=1.0), lr=1.0)
    for k in range(30):
        fed(k, edge__eta_c=0.2)
    for k in range(30, 70):
        cap = cap_of(fed(k, edge__eta_c=0.02))
    assert cap == pytest.approx(0.01, rel=0.1)


def test_a_step_seen_beyond_its_own_edge_starts_the_average_again() -> None:
    """Thirty probes at 0.2 and one of 0.02 along a step that was made at 0.1: the cap is half of 0.02 at once."""
    fed = Fed(SafeLR(fraction=0.5, initial_lr=1.0), lr=1.0)
    for k in range(30):
        fed(k, edge__eta_c=0.2, edge__ratio=0.5)
    assert cap_of(fed(30, edge__eta_c=0.02, edge__ratio=5.0)) == pytest.approx(0.01)


def test_a_rewind_halves_the_cap_for_good() -> None:
    """The rate was 0.1 at the cap; it never passes half of that again, though the edge would let it."""
    policy = SafeLR(fraction=0.5, initial_lr=1.0)
    fed = Fed(policy, lr=1.0)
    for k in range(30):
        fed(k, edge__eta_c=0.2)
    policy.told(rewind(taken=False))
    assert cap_of(fed(30)) == pytest.approx(0.1)
    policy.told(rewind())
    caps = [cap_of(fed(k, edge__eta_c=0.2)) for k in range(31, 60)]
    assert caps == pytest.approx([0.05] * 29)


def test_a_rewind_takes_back_the_height_that_a_schedule_is_scaled_to() -> None:
    """The cap was 4; after a rewind it is 2, and a schedule at a quarter of its peak is held to a quarter of that."""
    policy = SafeLR(fraction=0.5, initial_lr=1.0, growth=1e9)
    fed = Fed(policy, lr=100.0, shape=1.0)
    assert cap_of(fed(1, edge__eta_c=8.0)) == pytest.approx(4.0)
    policy.told(rewind())
    assert cap_of(fed(2)) == pytest.approx(2.0)
    fed.settings |= {"lr": 25.0, "shape": 0.25}
    assert cap_of(fed(3)) == pytest.approx(0.5)


# ---------------------------------------------------------------- noise_batch


def noise(fed: Fed, *scales: float, start: int = 10, every: int = 10) -> list[tuple[int, str, float]]:
    """Probes every ten updates; what was asked for, and told to have been done."""
    found = {}
    for k, scale in enumerate(scales):
        step = start + every * k
        found[step] = fed(step, noise__b_simple=scale)
        for p in found[step]:
            if p.actuator == "batch_size":
                fed.policy.told(Decision(step, fed.policy.name, p.actuator, 0.0, p.new, p.reason, True))
                fed.settings["batch_size"] = p.new
    return asked(found)


def test_noise_batch_wants_successive_votes_and_respects_the_limit() -> None:
    policy = NoiseBatch(margin=2.0, patience=3, interval=10, max_batch=128, scale_lr=False)
    policy.begin(HostFacts())
    fed = Fed(policy, batch_size=64.0)
    # 100 is below 2 x 64, and the votes start again; after 128 a doubling would pass the limit.
    found = noise(fed, 1000.0, 1000.0, 100.0, 1000.0, 1000.0, 1000.0, 1000.0, 1000.0, 1000.0, 1000.0)
    assert found == [(60, "batch_size", 128.0)]


def test_noise_batch_names_its_figures_and_its_signal() -> None:
    policy = NoiseBatch(patience=1, interval=1, max_batch=128, scale_lr=False)
    policy.begin(HostFacts())
    (proposal,) = Fed(policy, batch_size=64.0)(60, noise__b_simple=1000.0)
    assert "noise scale 1000" in proposal.reason
    assert "2 x batch 64" in proposal.reason
    assert proposal.signals == {"noise/b_simple": 1000.0}


def test_noise_batch_does_not_vote_on_what_is_not_resolved_and_counts_a_probe_once() -> None:
    policy = NoiseBatch(patience=2, interval=1, scale_lr=False)
    policy.begin(HostFacts(samples=1000))
    fed = Fed(policy, batch_size=8.0)
    assert fed(10, noise__b_simple=invalid("noise/b_simple", 10)) == []
    assert fed(20, noise__b_simple=1000.0) == []
    assert [fed(step) for step in range(21, 30)] == [[]] * 9, "the same measurement again is no second vote"
    assert len(fed(30, noise__b_simple=1000.0)) == 1


def test_the_error_of_the_noise_scale_counts_against_it() -> None:
    policy = NoiseBatch(patience=1, interval=1, scale_lr=False)
    policy.begin(HostFacts(samples=1000))
    fed = Fed(policy, batch_size=8.0)
    assert fed(10, noise__b_simple=Signal("noise/b_simple", 20.0, 10, error=5.0)) == []
    assert len(fed(20, noise__b_simple=Signal("noise/b_simple", 20.0, 20, error=3.0))) == 1


def test_noise_batch_limit_defaults_to_an_eighth_of_the_data() -> None:
    policy = NoiseBatch(patience=1, interval=1, scale_lr=False)
    policy.begin(HostFacts(samples=1200))
    assert noise(Fed(policy, batch_size=64.0), 1e6, 1e6) == [(10, "batch_size", 128.0)]


def test_two_doublings_lie_apart() -> None:
    policy = NoiseBatch(patience=1, interval=50, max_batch=10**6, scale_lr=False)
    policy.begin(HostFacts())
    grown = noise(Fed(policy, batch_size=8.0), *[1e6] * 20)
    assert [step for step, _, _ in grown] == [50, 100, 150, 200]


@pytest.mark.parametrize("adam", [False, True])
def test_the_rate_follows_the_batch_unless_a_policy_sets_lengths(adam: bool) -> None:
    """SGD: the gain (1 + B_n / B) / (1 + B_n / 2 B); Adam: the square root, and averages over the same samples."""
    policy = NoiseBatch(patience=1, interval=1, max_batch=256)
    policy.begin(HostFacts(lengths_set=True, adam=adam))
    assert policy.turns == {"batch_size"}
    policy.begin(HostFacts(adam=adam))
    assert policy.turns == {"batch_size", "lr_factor"} | ({"beta1", "beta2"} if adam else set())
    fed = Fed(policy, batch_size=64.0, lr_factor=0.5, beta1=0.9, beta2=0.999)
    new = {p.actuator: p.new for p in fed(10, noise__b_simple=192.0)}
    gain = math.sqrt(2) if adam else (1 + 192 / 64) / (1 + 192 / 128)
    expected = {"batch_size": 128.0, "lr_factor": 0.5 * gain} | (
        {"beta1": 0.8, "beta2": 0.998} if adam else {}
    )
    assert new == pytest.approx(expected)


def test_the_noise_scale_may_be_the_one_weighted_by_curvature() -> None:
    policy = NoiseBatch(patience=1, interval=1, max_batch=64, scale_lr=False, scale="curvature")
    assert policy.reads == {"noise/b_curvature"}
    fed = Fed(policy, batch_size=8.0)
    assert fed(10, noise__b_simple=1e6) == []
    assert len(fed(20, noise__b_curvature=1e6)) == 1


# ---------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoLR(tau=0.0), "tau: 0.0 is not a relative step"),
        (lambda: AutoLR(tau=math.inf), "tau: inf is not a relative step"),
        (lambda: AutoLR(warmup=1.0), "warmup: 1.0"),
        (lambda: AutoLR(ceiling=0.0), "ceiling: 0.0"),
        (lambda: SafeLR(fraction=2.0), "fraction: 2.0"),
        (lambda: SafeLR(initial_lr=0.0), "initial_lr: 0.0"),
        (lambda: SafeLR(growth=1.0), "growth: 1.0"),
        (lambda: NoiseBatch(margin=0.5), "margin: 0.5"),
        (lambda: NoiseBatch(patience=0), "patience 0"),
        (lambda: NoiseBatch(max_batch=0), "max_batch: 0"),
        (lambda: NoiseBatch(scale="sharp"), "scale: 'sharp' is not known"),
    ],
)
def test_constants_out_of_range_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_policy_that_says_nothing_is_told_what_to_implement() -> None:
    class Mute(Policy):
        name = "mute"

    with pytest.raises(NotImplementedError, match=r"Mute does not say .* implement decide\(history\)"):
        Fed(Mute())(1)
