"""The monitors, ``plateau`` and ``spike_guard`` on series whose right answer is known."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from fed import Fed, asked, invalid

from optland.pilot import Decision, EdgeMonitor, HostFacts, NoiseMonitor, Plateau, Proposal, SpikeGuard
from optland.pilot.policies import POLICIES

# ---------------------------------------------------------------- monitors


def test_edge_monitor_alarms_once_a_crossing() -> None:
    ratios = [0.5] * 20 + [3.0] * 20 + [0.3] * 40 + [3.0] * 20
    fed = Fed(EdgeMonitor())
    found = asked({k: fed(k, edge__ratio=r) for k, r in enumerate(ratios)})
    assert [what for _, what, _ in found] == ["alarm", "alarm"]
    # beta .9: ln(avg) = ln 3 - (ln 3 - ln .5) .9^n crosses 0 after n = ln(ln 3 / ln 6) / ln .9 = 4.6 probes
    assert found[0][0] in (24, 25)


def test_the_edge_ratio_is_averaged_in_logarithms_over_what_is_valid() -> None:
    fed = Fed(EdgeMonitor())
    fed(1, edge__ratio=0.2)
    fed(2, edge__ratio=invalid("edge/ratio", 2))
    fed(3)
    fed(4, edge__ratio=0.8)
    expected = 0.2 ** (0.9 / 1.9) * 0.8 ** (1 / 1.9)
    assert fed.policy.metrics()["edge/ratio_ema"] == pytest.approx(expected)


def test_noise_monitor_says_each_side_once() -> None:
    scales = [1000.0] * 10 + [64.0] * 3 + [2.0] * 10
    fed = Fed(NoiseMonitor(), batch_size=64.0)
    found = {k: fed(k, noise__b_simple=s) for k, s in enumerate(scales)}
    assert [k for k, _, _ in asked(found)] == [2, 15]
    assert "a larger batch" in found[2][0].reason
    assert "a smaller one" in found[15][0].reason


def test_noise_monitor_counts_a_measurement_once() -> None:
    fed = Fed(NoiseMonitor(), batch_size=64.0)
    fed(1, noise__b_simple=1000.0)
    assert [fed(k) for k in range(2, 20)] == [[]] * 18
    assert fed(20, noise__b_simple=invalid("noise/b_simple", 20)) == []
    assert fed(30, noise__b_simple=1000.0) == []
    assert len(fed(40, noise__b_simple=1000.0)) == 1


def test_noise_monitor_efficiency_is_a_half_at_the_noise_scale() -> None:
    fed = Fed(NoiseMonitor(), batch_size=64.0)
    fed(1, noise__b_simple=64.0)
    assert fed.policy.metrics()["noise/efficiency"] == pytest.approx(0.5)


# ---------------------------------------------------------------- plateau


def flat(seed: int = 0) -> Any:
    draw = random.Random(seed)
    return lambda k: {"train__loss": 1.0 + draw.gauss(0, 0.1)}


def over(fed: Fed, n: int, signals: Any) -> list[tuple[int, str, float]]:
    """Updates 1 to ``n``; what was asked for is what then holds."""
    found = {}
    for k in range(1, n + 1):
        found[k] = fed(k, **signals(k))
        fed.settings |= {p.actuator: p.new for p in found[k]}
    return asked(found)


def test_plateau_is_silent_while_the_loss_falls() -> None:
    draw = random.Random(0)
    assert over(Fed(Plateau()), 200, lambda k: {"train__loss": 3.0 - 0.01 * k + draw.gauss(0, 0.1)}) == []


def test_plateau_drops_the_rate_at_a_noise_floor_window_after_window_and_not_below_the_least() -> None:
    fed = Fed(Plateau(least=0.3), lr_factor=0.8)
    ratio = {"curv__ncr": 0.01}
    noisy = flat()
    found = over(fed, 400, lambda k: noisy(k) | ratio)
    assert found == [(100, "lr_factor", 0.4), (200, "lr_factor", 0.3)]


def test_plateau_leaves_a_saddle_instead_of_cutting_the_rate() -> None:
    """The ratio has to be of this window, and one measurement calls for one escape."""
    noisy = flat()

    def signals(k: int) -> dict[str, Any]:
        return noisy(k) | ({"curv__ncr": 0.8} if k == 90 else {})

    assert over(Fed(Plateau()), 200, signals) == [(100, "escape", 1.0), (200, "lr_factor", 0.5)]
    noisy = flat()
    found = over(Fed(Plateau()), 300, lambda k: noisy(k) | ({"curv__ncr": 0.8} if k == 110 else {}))
    assert found == [(100, "lr_factor", 0.5), (200, "escape", 1.0), (300, "lr_factor", 0.25)]


def test_a_ratio_of_an_earlier_window_says_nothing_of_this_one() -> None:
    """Measured at update 50 while the loss fell; the plateau is found at 200."""
    noisy = flat()

    def signals(k: int) -> dict[str, Any]:
        falling = noisy(k)["train__loss"] + (max(100 - k, 0) * 0.05)
        return {"train__loss": falling} | ({"curv__ncr": 0.8} if k == 50 else {})

    assert over(Fed(Plateau()), 200, signals) == [(200, "lr_factor", 0.5)]


def test_plateau_waits_while_the_weights_still_travel() -> None:
    """The loss looks flat, but |w|^2 changes: <w, d> - lr/2 |d|^2 is 1 +- 0.1 in every step."""
    draw, noisy = random.Random(2), flat()

    def signals(k: int) -> dict[str, Any]:
        return noisy(k) | {"update__w_dot_d": 1.05 + draw.gauss(0, 0.1), "update__d_sq": 1.0}

    assert over(Fed(Plateau(), lr_applied=0.1), 100, signals) == []
    noisy = flat()

    def stationary(k: int) -> dict[str, Any]:
        return noisy(k) | {"update__w_dot_d": 0.05 + draw.gauss(0, 0.1), "update__d_sq": 1.0}

    fed = Fed(Plateau(), lr_applied=0.1)
    assert over(fed, 100, stationary) == [(100, "lr_factor", 0.5)]
    assert abs(fed.policy.metrics()["test/sasa_stat"]) < 0.05


# ---------------------------------------------------------------- spikes


class Steps:
    """A spike guard, asked before update k + 1 with its gradient's norm and the loss of update k."""

    def __init__(self, guard: SpikeGuard | None = None, **settings: float) -> None:
        self.fed, self.k = Fed(guard or SpikeGuard(), **settings), 0

    def __call__(self, loss: float = 1.0, norm: float = 1.0, **more: float) -> list[Proposal]:
        self.k += 1
        return self.fed(self.k - 1, train__loss=loss, update__grad_norm=norm, **more)

    def calm(self, n: int, seed: int = 0) -> Steps:
        draw = random.Random(seed)
        for _ in range(n):
            assert self(math.exp(draw.gauss(0, 0.2)), math.exp(draw.gauss(0, 0.2))) == []
        return self


def test_spike_guard_is_silent_on_lognormal_losses() -> None:
    Steps().calm(2000)


def test_spike_guard_leaves_out_an_update_whose_gradient_stands_out() -> None:
    steps = Steps().calm(60)
    (proposal,) = steps(1.0, 1e3)
    assert proposal.actuator == "skip"
    assert "the gradient norm 1e+03" in proposal.reason
    assert proposal.signals["update/grad_norm"] == 1e3


@pytest.mark.parametrize("loss", [math.nan, 50.0])
def test_a_loss_that_stands_out_skips_nothing_since_its_update_is_made(loss: float) -> None:
    steps = Steps().calm(60)
    assert steps(loss) == []


def test_nothing_is_judged_from_fewer_than_sixteen_values() -> None:
    steps = Steps().calm(15)
    assert steps(1.0, 1e3) == []


def test_a_norm_is_asked_about_once() -> None:
    """After a skip the same update is not seen again: without a new norm there is nothing to judge."""
    steps = Steps().calm(60)
    assert len(steps(1.0, 1e3)) == 1
    assert steps.fed(steps.k) == []


def test_spike_guard_cuts_after_three_in_a_row_and_gives_back() -> None:
    """Scattered ones are dealt with by themselves; a row of them says that the weights were damaged before."""
    steps, found = Steps(lr_factor=1.0).calm(60), []
    bad = {66, 67, 69, 71, 90, 91, 92}
    while steps.k < 240:
        proposals = steps(math.nan if steps.k + 1 in bad else 1.0)
        found += [(steps.k, p.actuator, p.new, p.cap) for p in proposals]
    # Asked before update k; the cut counts from the 91 updates that are made then.
    assert found == [(92, "lr_factor", 0.5, True), (193, "lr_factor", math.inf, True)]


def test_near_a_loss_of_zero_a_factor_is_no_spike_and_lost_progress_is() -> None:
    steps = Steps(SpikeGuard(num_spikes=1), lr_factor=1.0)
    for k in range(1, 101):
        assert steps(2.3 * 0.95**k) == []  # ends at 0.014
    assert steps(0.2) == []  # fourteen times the recent loss, 8 % of the way
    (proposal,) = steps(0.9)
    assert proposal.actuator == "lr_factor"


def test_spike_guard_goes_back_from_what_persists_unless_it_is_a_catapult() -> None:
    for falling in (False, True):
        steps, kinds = Steps(SpikeGuard(persist=20)).calm(60), []
        for k in range(30):
            sharpness = 100.0 - k if falling else 100.0
            kinds += [p.actuator for p in steps(50.0, edge__lambda_c=sharpness)]
        assert ("rewind" in kinds) is not falling


def test_after_a_rewind_the_series_begin_again() -> None:
    steps = Steps().calm(60)
    steps.fed.policy.told(Decision(60, "guard", "rewind", 1.0, 1.0, "as scripted", False))
    assert len(steps(1.0, 1e3)) == 1
    steps.fed.policy.told(Decision(61, "guard", "rewind", 1.0, 1.0, "as scripted", True))
    assert steps(1.0, 1e3) == []
    assert len(steps.fed.policy.norms) == 1


# ---------------------------------------------------------------- every policy


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_resumes_exactly(name: str) -> None:
    """Through JSON, in the middle of a series with everything in it that a policy may read."""
    draw = random.Random(3)
    facts = HostFacts(steps=300, has_length=True, passes=10, samples=4096)
    rows = [
        {
            "train__loss": draw.lognormvariate(0, 0.5),
            "update__grad_norm": draw.lognormvariate(0, 0.3) * (1e3 if k % 50 in (31, 38) else 1.0),
            "edge__ratio": draw.lognormvariate(0, 1), "edge__eta_c": draw.lognormvariate(-2, 1),
            "edge__lambda_c": draw.random(), "curv__ncr": draw.random(), "curv__lambda_max": draw.random(),
            "noise__b_simple": draw.lognormvariate(4, 1), "noise__coherence": draw.gauss(0.1, 0.1),
            "update__w_dot_d": draw.gauss(0, 1), "update__d_sq": 1.0,
        }
        for k in range(300)
    ]  # fmt: skip

    def fed() -> Fed:
        policy = POLICIES[name]()
        policy.begin(facts)
        return Fed(policy, lr=0.1, shape=1.0, lr_factor=0.5, batch_size=16.0, lr_applied=0.1)

    def over(one: Fed, start: int, stop: int) -> list[list[Proposal]]:
        found = []
        for k in range(start, stop):
            one.settings["shape"] = 1 - k / 301
            found.append(one(k, k / 300, **(rows[k] if k % 3 else {"train__loss": rows[k]["train__loss"]})))
            if k % 50 == 49:
                one.policy.told(Decision(k, "guard", "rewind", 1.0, 1.0, "as scripted", True))
        return found

    whole, first, second = fed(), fed(), fed()
    expected = over(whole, 0, 300)
    found = over(first, 0, 137)
    second.policy.load_state_dict(json.loads(json.dumps(first.policy.state_dict())))
    second.history.load_state_dict(json.loads(json.dumps(first.history.state_dict())))
    second.reader.load_state_dict(json.loads(json.dumps(first.reader.state_dict())))
    assert found + over(second, 137, 300) == expected
    assert any(expected) or name == "curvature_monitor"


def test_every_name_is_registered_under_its_own() -> None:
    assert all(POLICIES[name].name == name for name in POLICIES)
    assert all(POLICIES[name].__doc__ for name in POLICIES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EdgeMonitor(high=0.5), "calm 0.8"),
        (lambda: NoiseMonitor(factor=1.0), "factor: 1.0"),
        (lambda: NoiseMonitor(patience=0), "patience: 0"),
        (lambda: Plateau(window=4), "window: 4"),
        (lambda: Plateau(drop=2.0), "drop: 2.0"),
        (lambda: Plateau(saddle=0.0), "saddle 0.0"),
        (lambda: SpikeGuard(z=-1.0), "z -1.0"),
        (lambda: SpikeGuard(window=2), "window 2"),
        (lambda: SpikeGuard(persist=1), "persist 1"),
    ],
)
def test_constants_out_of_range_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
