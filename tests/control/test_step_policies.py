"""The policies that look at every step, on series whose right answer is known."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from scipy import stats

from optland.control import (
    POLICIES,
    CollapseGuard,
    CoolDown,
    EdgeMonitor,
    GIAdam,
    LateSAM,
    NoiseMonitor,
    Plateau,
    RelativeStep,
    Rho,
    Seesaw,
    SpikeGuard,
    StepPolicy,
    StepView,
    adam_betas,
    batch_gain,
    clamp_factor,
)
from optland.control.statistics import mean_interval, robust_z, slope_t, t_quantile

STEP_POLICIES = [name for name, kind in POLICIES.items() if issubclass(kind, StepPolicy)]


def asked(policy: StepPolicy, views: list[StepView]) -> list[tuple[int, str, float]]:
    return [(v.step, p.actuator, p.new) for v in views for p in policy.propose(v)]


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize("p", [0.05, 0.95, 0.975])
@pytest.mark.parametrize("df", [7, 20, 85])
def test_t_quantile_against_scipy(p: float, df: int) -> None:
    assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=2e-3)


def test_slope_against_scipy() -> None:
    draw = random.Random(0)
    values = [1.0 - 0.01 * k + draw.gauss(0, 0.1) for k in range(60)]
    slope, t, bound = slope_t(values)
    peer = stats.linregress(range(60), values)
    assert slope == pytest.approx(peer.slope, rel=1e-10)
    assert t == pytest.approx(peer.slope / peer.stderr, rel=1e-10)
    assert bound == pytest.approx(stats.t.ppf(0.05, 58), rel=2e-3)


def test_mean_interval_covers_the_mean_of_a_correlated_series() -> None:
    """An AR(1) series: the interval that takes its samples as independent would cover in 60 % of cases."""
    draw, covered = random.Random(1), 0
    for _ in range(300):
        x, series = 0.0, []
        for _ in range(400):
            x = 0.7 * x + draw.gauss(0, 1)
            series.append(x)
        mean, half = mean_interval(series)
        covered += abs(mean) <= half
    assert covered / 300 > 0.85


def test_robust_z_ignores_an_outlier_in_the_past() -> None:
    calm = [0.1 * (k % 7) for k in range(70)]
    assert robust_z(3.0, [*calm, 1e9], least=1e-3) == pytest.approx(robust_z(3.0, calm, least=1e-3), rel=0.2)


# ---------------------------------------------------------------- the policies


def test_relative_step_is_the_formula_and_looks_at_nothing() -> None:
    policy = RelativeStep(tau=0.04)
    policy.observe_critical_step(1e-9, applied=1.0)
    assert policy.step_size(8.0, 0.5) == (pytest.approx(0.5 * 0.04 / 8.0), "ratio")
    assert policy.probes == frozenset()
    assert policy.on_rewind() == (0.04, 0.02)
    twin = RelativeStep()
    twin.load_state_dict(policy.state_dict())
    assert (twin.tau, twin.rewinds) == (0.02, 1)


def test_edge_monitor_alarms_once_a_crossing() -> None:
    ratios = [0.5] * 20 + [3.0] * 20 + [0.3] * 40 + [3.0] * 20
    views = [StepView(k, 1.0, edge_ratio=r) for k, r in enumerate(ratios)]
    found = asked(EdgeMonitor(), views)
    assert [a for _, a, _ in found] == ["alarm", "alarm"]
    # beta .9: ln(avg) = ln 3 - (ln 3 - ln .5) .9^n crosses 0 after n = ln(ln 3 / ln 6) / ln .9 = 4.6 probes
    assert found[0][0] in (24, 25)


def test_noise_monitor_says_each_side_once() -> None:
    scales = [1000.0] * 10 + [64.0] * 3 + [2.0] * 10
    found = asked(NoiseMonitor(), [StepView(k, 1.0, batch=64, noise_scale=s) for k, s in enumerate(scales)])
    assert [k for k, _, _ in found] == [2, 15]


def test_noise_monitor_efficiency_is_a_half_at_the_noise_scale() -> None:
    monitor = NoiseMonitor()
    monitor.propose(StepView(1, 1.0, batch=64, noise_scale=64.0))
    assert monitor.metrics()["noise/efficiency"] == pytest.approx(0.5)


@pytest.mark.parametrize(("exponent", "floor_rate"), [(0.0, 1.0), (0.5, 0.5)])
def test_seesaw_trades_a_quarter_of_the_rate_for_a_fourfold_batch(exponent: float, floor_rate: float) -> None:
    """At shape 1/4 the batch is 4 B and the applied rate eta for SGD, eta / sqrt(4) for Adam."""
    policy, batch, factor = Seesaw(exponent=exponent, max_batch=512), 32, 1.0
    for k, shape in enumerate([0.5, 1.0, 0.75, 0.5, 0.4, 0.26, 0.25, 0.25]):
        for p in policy.propose(StepView(k, 1.0, shape=shape, batch=batch, factor=factor)):
            if p.actuator == "batch_size":
                batch = int(p.new)
            else:
                factor = p.new
    assert batch == 128
    assert 0.25 * factor == pytest.approx(floor_rate)


def test_seesaw_stops_beyond_twice_the_noise_scale() -> None:
    views = [StepView(k, 1.0, shape=s, batch=256, noise_scale=100.0) for k, s in enumerate([1.0, 0.5, 0.2])]
    assert asked(Seesaw(max_batch=4096), views) == []


def flat(n: int, **more: Any) -> list[StepView]:
    draw = random.Random(0)
    return [StepView(k, 1.0 + draw.gauss(0, 0.1), **more) for k in range(1, n + 1)]


def test_plateau_is_silent_while_the_loss_falls() -> None:
    draw = random.Random(0)
    views = [StepView(k, 3.0 - 0.01 * k + draw.gauss(0, 0.1)) for k in range(1, 201)]
    assert asked(Plateau(), views) == []


def test_plateau_drops_the_rate_at_a_noise_floor() -> None:
    assert asked(Plateau(), flat(100, factor=0.5, ncr=0.01)) == [(100, "lr_factor", 0.25)]


def test_plateau_leaves_a_saddle_instead_of_cutting_the_rate() -> None:
    assert asked(Plateau(), flat(100, ncr=0.8)) == [(100, "escape", 1.0)]


def test_plateau_starts_sam_first_and_drops_later() -> None:
    found = asked(Plateau(start_sam=True), flat(200))
    assert found == [(1, "sam_duty", 0.0), (100, "sam_duty", 1.0), (200, "lr_factor", 0.5)]


def test_plateau_waits_while_the_weights_still_travel() -> None:
    """The loss looks flat, but |w|^2 changes: <w, d> - lr/2 |d|^2 is 1 +- 0.1 in every step."""
    draw = random.Random(2)
    views = [StepView(v.step, v.loss, lr=0.1, w_dot_d=1.05 + draw.gauss(0, 0.1), d_sq=1.0) for v in flat(100)]
    assert asked(Plateau(), views) == []


def test_late_sam_by_progress_and_by_schedule() -> None:
    by_time = [StepView(k, 1.0, progress=k / 20) for k in range(1, 21)]
    assert asked(LateSAM(), by_time) == [(1, "sam_duty", 0.0), (17, "sam_duty", 1.0)]
    by_rate = [StepView(k, 1.0, shape=1 - k / 10) for k in range(1, 10)]
    assert asked(LateSAM(), by_rate) == [(1, "sam_duty", 0.0), (9, "sam_duty", 1.0)]


def test_rho_under_a_budget_bounds_the_first_order_rise() -> None:
    policy = Rho(tie="budget", budget=0.1)
    view = StepView(1, 2.0, rho=0.5, grad_norm=4.0)
    (proposal,) = policy.propose(view)
    assert proposal.new * view.grad_norm == pytest.approx(0.1 * view.loss)
    assert policy.propose(StepView(2, 2.0, rho=0.5, grad_norm=0.01)) == []  # the own radius is the most


def test_gi_adam_asks_once() -> None:
    assert asked(GIAdam(), [StepView(k, 1.0) for k in range(1, 5)]) == [(1, "adam_v0", 1.0)]


# ---------------------------------------------------------------- spikes


def calm(n: int, start: int = 1) -> list[StepView]:
    draw = random.Random(0)
    return [
        StepView(start + k, math.exp(draw.gauss(0, 0.2)), grad_norm=math.exp(draw.gauss(0, 0.2)))
        for k in range(n)
    ]


def test_spike_guard_is_silent_on_lognormal_losses() -> None:
    assert asked(SpikeGuard(), calm(2000)) == []


@pytest.mark.parametrize(
    ("loss", "norm", "words"),
    [(math.nan, 1.0, "loss is nan"), (1.0, math.inf, "gradient is not finite"), (50.0, 1.0, "the loss 50"),
     (1.0, 1e3, "gradient norm 1e+03")],
)  # fmt: skip
def test_spike_guard_skips_a_corrupt_batch(loss: float, norm: float, words: str) -> None:
    guard = SpikeGuard()
    asked(guard, calm(60))
    (proposal,) = guard.propose(StepView(61, loss, grad_norm=norm))
    assert proposal.actuator == "skip"
    assert words in proposal.reason


def test_spike_guard_cuts_after_three_in_a_row_and_gives_back() -> None:
    """Scattered ones are dealt with by their skips; a row of them says that the weights were damaged before."""
    guard, found = SpikeGuard(), []
    asked(guard, calm(60))
    factor = 1.0
    for k in range(61, 240):
        loss = math.nan if k in (66, 67, 69, 71, 90, 91, 92) else 1.0
        for p in guard.propose(StepView(k, loss, grad_norm=1.0, factor=factor)):
            if p.actuator == "lr_factor":
                found.append((k, p.new))
                factor = p.new
    assert found == [(92, 0.5), (193, 1.0)]


def test_near_a_loss_of_zero_a_factor_is_no_spike_and_lost_progress_is() -> None:
    guard = SpikeGuard()
    falling = [StepView(k, 2.3 * 0.95**k, grad_norm=1.0) for k in range(1, 101)]  # ends at 0.014
    assert asked(guard, falling) == []
    assert (
        guard.propose(StepView(101, 0.2, grad_norm=1.0)) == []
    )  # fourteen times the recent loss, 8 % of the way
    (proposal,) = guard.propose(StepView(102, 0.9, grad_norm=1.0))
    assert proposal.actuator == "skip"


def test_spike_guard_rolls_back_what_persists_unless_it_is_a_catapult() -> None:
    for falling in (False, True):
        guard, kinds = SpikeGuard(persist=20), []
        asked(guard, calm(60))
        for k in range(30):
            sharpness = 100.0 - k if falling else 100.0
            kinds += [
                p.actuator for p in guard.propose(StepView(61 + k, 50.0, grad_norm=1.0, lambda_c=sharpness))
            ]
        assert ("rollback" in kinds) is not falling


# ---------------------------------------------------------------- guards and scaling


def test_collapse_guard_tells_a_dead_net_from_an_initial_plateau() -> None:
    plateau, dead = CollapseGuard(), CollapseGuard()
    assert not any(plateau.observe(2.3, 0.01) for _ in range(100))
    for k in range(30):
        assert dead.observe(2.3 - 0.05 * k, 1.0) is None
    verdicts = [dead.observe(2.303, 1e-6) for _ in range(12)]
    assert verdicts.index(next(v for v in verdicts if v)) == 9
    assert "dead" in str(verdicts[9])


def test_collapse_guard_does_not_take_convergence_for_death() -> None:
    guard = CollapseGuard()
    assert not any(guard.observe(2.3 * 0.9**k, 0.9**k) for k in range(200))


def test_cool_down_stops_growth_alone() -> None:
    cool = CoolDown(10)
    cool.start(100)
    assert not cool.allows(105, 1.0, 2.0)
    assert cool.allows(105, 1.0, 0.5)
    assert cool.allows(111, 1.0, 2.0)


def test_a_cap_mis_set_hundredfold_is_halved_below_the_edge() -> None:
    """L = lam w^2 / 2: a step of rate 100 * 2/lam is rejected; ceil(log2(100)) halvings end below 2/lam."""
    lam, w, factor, trials = 10.0, 1.0, 1.0, 0
    rate = 100 * 2 / lam
    while 0.5 * lam * (w - factor * rate * lam * w) ** 2 >= 0.5 * lam * w * w:
        factor = clamp_factor(factor, factor / 2)
        trials += 1
    assert trials == math.ceil(math.log2(100))


def test_clamp_keeps_what_is_in_force_when_asked_for_nan() -> None:
    assert clamp_factor(0.5, math.nan) == 0.5


def test_batch_gain_has_the_limits_of_theory() -> None:
    assert batch_gain(1, 32, 500, adam=False) == 1
    assert batch_gain(8, 32, 1e12, adam=False) == pytest.approx(8)
    assert batch_gain(1e12, 32, 96, adam=False) == pytest.approx(1 + 96 / 32)
    assert batch_gain(8, 32, None, adam=False) == 1
    # eta_opt(B) = eta_max / (1 + B_n / B)
    assert batch_gain(4, 32, 96, adam=False) == pytest.approx((1 / (1 + 96 / 128)) / (1 / (1 + 96 / 32)))


def test_adam_remembers_the_same_samples() -> None:
    first, second = adam_betas((0.9, 0.999), 2)
    assert 1 / (1 - first) * 2 == pytest.approx(1 / (1 - 0.9))
    assert 1 / (1 - second) * 2 == pytest.approx(1 / (1 - 0.999))
    assert adam_betas((0.9, 0.999), 64) == (0.0, pytest.approx(0.936))


# ---------------------------------------------------------------- every policy


@pytest.mark.parametrize("name", STEP_POLICIES)
def test_a_policy_resumes_exactly(name: str) -> None:
    draw = random.Random(3)
    views = [
        StepView(
            k, draw.lognormvariate(0, 0.5), progress=k / 300, lr=0.1, shape=1 - k / 301, grad_norm=draw.random(),
            batch=16, rho=0.1, edge_ratio=draw.lognormvariate(0, 1), lambda_c=draw.random(), ncr=draw.random(),
            noise_scale=draw.lognormvariate(4, 1), w_dot_d=draw.gauss(0, 1), d_sq=1.0,
        )
        for k in range(1, 301)
    ]  # fmt: skip
    whole, first, second = (POLICIES[name]() for _ in range(3))
    expected = [whole.propose(v) for v in views]
    found = [first.propose(v) for v in views[:137]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert found + [second.propose(v) for v in views[137:]] == expected


@pytest.mark.parametrize("name", [n for n in STEP_POLICIES if POLICIES[n].needs])
def test_a_host_that_lacks_an_actuator_is_refused_in_words(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} needs .*mode='shadow'"):
        POLICIES[name]().check_host(frozenset())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EdgeMonitor(high=0.5), "calm 0.8"),
        (lambda: NoiseMonitor(factor=1.0), "factor: 1.0"),
        (lambda: Seesaw(exponent=1.0), "exponent: 1.0"),
        (lambda: Plateau(window=4), "window: 4"),
        (lambda: Plateau(drop=2.0), "drop: 2.0"),
        (lambda: LateSAM(start=2.0), "start: 2.0"),
        (lambda: Rho(tie="loss"), "tie: 'loss'"),  # type: ignore[arg-type]
        (lambda: SpikeGuard(z=-1.0), "z -1.0"),
        (lambda: SpikeGuard(window=2), "window 2"),
    ],
)
def test_constants_out_of_range_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
