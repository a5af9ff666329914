"""Who may set what, how far, and what becomes of it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from scripted import Asks
from torch import Tensor, nn

from optland.optim import SAM
from optland.pilot import AutoLR, Decision, History, Host, HostFacts, NoiseBatch, Policy, Proposal
from optland.pilot.controls import Controls, by_name
from optland.pilot.decision import TURNED, Turned


class Named(Asks):
    """A scripted policy by another name, which remembers what it was told."""

    def __init__(self, name: str, script: dict[int, list[Any]] | None = None, **sets: frozenset[str]) -> None:
        super().__init__(script or {}, **sets)
        self.name = name
        self.heard: list[Decision] = []

    def told(self, decision: Decision) -> None:
        self.heard.append(decision)


class Loader:
    """Something that can change its batch."""

    batch_size = 32

    def set_batch_size(self, new: int) -> None:
        self.batch_size = new

    def __iter__(self) -> Any:
        return iter([])


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def host(make: Any = None, *, loader: Any = None) -> Host:
    model = nn.Linear(3, 1)
    optimizer = (
        make(model.parameters()) if make else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    )
    found = Host([optimizer], model, loss_fn)
    found.loader = loader
    return found


def controls(*policies: Policy, of: Host | None = None, act: bool = True) -> Controls:
    of = of or host(loader=Loader())
    return Controls(policies, of, History(of.read), act=act)


def settled(control: Controls, what: str, new: float, step: int = 1, **more: Any) -> Decision | None:
    return control.settle(control.policies[0], Proposal(what, new, "as scripted", **more), step)


# ---------------------------------------------------------------- who


def test_two_setters_of_one_thing_are_refused_with_both_names() -> None:
    one, two = (Named(n, turns=frozenset({"lr_factor", "alarm"})) for n in ("one", "two"))
    with pytest.raises(ValueError, match="one and two both set lr_factor; choose one of them"):
        controls(one, two)


def test_setters_that_are_known_when_the_run_begins_are_held_against_each_other() -> None:
    """``noise_batch`` sets the factor where nobody sets lengths."""
    other = Named("other", turns=frozenset({"lr_factor"}))
    control = controls(NoiseBatch(), other)
    with pytest.raises(ValueError, match="noise_batch and other both set lr_factor"):
        control.begin(HostFacts(), 0)
    assert controls(NoiseBatch(), AutoLR()).begin(HostFacts(has_length=True, lengths_set=True), 0) == []


def test_any_number_may_cap_and_all_may_alarm() -> None:
    cap = {"caps": frozenset({"lr_factor", "lr"})}
    control = controls(
        Named("a", **cap),
        Named("b", **cap, turns=frozenset({"alarm"})),
        Named("c", turns=frozenset({"alarm", "lr_factor"})),
    )
    assert control.begin(HostFacts(), 0) == []


def test_what_nobody_can_turn_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"odd turns 'phase_of_moon', which is not known; choose from .*'lr'"
    ):
        controls(Named("odd", turns=frozenset({"phase_of_moon"})))
    with pytest.raises(ValueError, match="odd turns 'moon'"):
        controls(Named("odd", caps=frozenset({"moon"})))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (
            "batch_size",
            r"odd turns batch_size, which this optimizer or loop does not offer: .*pilot.batches\(loader\)",
        ),
        ("rho", "odd turns rho.*wrap the optimizer in one of optland's SAM methods"),
        ("gate", "odd turns gate.*optland.optim.SAM"),
        ("beta1", "odd turns beta1.*whose parameter groups have it"),
        ("stop", r"odd turns stop.*pilot.batches\(loader\)"),
    ],
)
def test_what_this_host_lacks_is_refused_with_a_way_out_and_only_where_it_would_act(
    what: str, says: str
) -> None:
    policy = Named("odd", turns=frozenset({what}))
    with pytest.raises(TypeError, match=f"{says}.* mode='shadow'"):
        controls(policy, of=host()).begin(HostFacts(), 0)
    controls(policy, of=host(), act=False).begin(HostFacts(), 0)


def test_what_a_host_has_it_can_turn() -> None:
    plain = host()
    assert {name for name in TURNED if plain.can_turn(name)} == {
        "step_length", "lr", "lr_factor", "weight_decay", "momentum", "clip", "skip", "rewind", "escape", "alarm",
    }  # fmt: skip
    sam = host(lambda p: SAM(torch.optim.AdamW(p, lr=0.1)), loader=Loader())
    assert {name for name in TURNED if sam.can_turn(name)} == set(TURNED) - {"momentum"}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("auto_lr", r"use a list: \['auto_lr'\]"),
        (["auto_rl"], r"'auto_rl' is not known.*[Dd]id you mean.*auto_lr"),
    ],
)
def test_names_that_cannot_be_are_refused(asked: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        by_name(asked)


def test_a_name_and_its_object_are_the_same() -> None:
    named, given = by_name(["auto_lr"])[0], AutoLR()
    assert type(named) is type(given)
    assert named.state_dict() == given.state_dict()
    assert by_name([given])[0] is given


# ---------------------------------------------------------------- how far


@pytest.mark.parametrize(
    ("what", "old", "asked", "new"),
    [
        ("lr_factor", 0.1, 5.0, 0.2), ("lr_factor", 1.0, 1e-9, 1e-4), ("lr_factor", 12.0, 20.0, 16.0),
        ("lr_factor", 0.5, math.nan, 0.5), ("lr_factor", 0.5, math.inf, 1.0), ("beta1", 0.9, 1.7, 0.999999),
        ("weight_decay", 0.1, math.inf, 0.1),
        ("beta1", 0.9, -0.1, 0.0), ("batch_size", 32.0, 4096.0, 4096.0), ("rho", 0.0, 0.3, 0.3),
    ],
)  # fmt: skip
def test_what_is_asked_for_is_kept_within_bounds(what: str, old: float, asked: float, new: float) -> None:
    assert TURNED[what].within(old, asked) == pytest.approx(new)


def test_growth_is_limited_from_what_is_there_and_not_from_zero() -> None:
    limited = Turned(0.0, growth=2.0)
    assert limited.within(0.3, 1.0) == pytest.approx(0.6)
    assert limited.within(0.0, 1.0) == 1.0


def test_a_setting_is_made_within_its_bounds_and_its_policy_told() -> None:
    policy = Named("one", turns=frozenset({"lr_factor", "momentum", "weight_decay"}))
    control = controls(policy)
    made = settled(control, "lr_factor", 5.0, signals={"train/loss": 2.0})
    assert made == Decision(1, "one", "lr_factor", 1.0, 2.0, "as scripted", True, {"train/loss": 2.0})
    assert policy.heard == [made]
    assert control.host.factor == 2.0
    settled(control, "momentum", 0.5)
    settled(control, "weight_decay", 0.01)
    (group,) = control.host.inner[0].param_groups
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.5, 0.01, 0.1)


def test_every_number_of_the_groups_can_be_set() -> None:
    adam = host(lambda p: SAM(torch.optim.AdamW(p, lr=0.1), rho=0.05), loader=Loader())
    control = controls(
        Named("one", turns=frozenset({"rho", "beta1", "beta2", "batch_size", "gate"})), of=adam
    )
    for what, new in (("rho", 0.2), ("beta1", 0.8), ("beta2", 0.99), ("batch_size", 64.0), ("gate", 0.0)):
        made = settled(control, what, new)
        assert made is not None
        assert made.taken
        assert adam.read(what) == new
    (group,) = adam.inner[0].param_groups
    assert (group["sam_rho"], group["betas"]) == (0.2, (0.8, 0.99))
    assert adam.loader.batch_size == 64


def test_shadow_mode_turns_nothing_and_counts_the_factor() -> None:
    shadow = host(loader=Loader())
    control = controls(Named("one", turns=frozenset({"lr_factor", "batch_size"})), of=shadow, act=False)
    for what, new in (("lr_factor", 0.5), ("batch_size", 64.0)):
        made = settled(control, what, new)
        assert made is not None
        assert not made.taken
    assert shadow.loader.batch_size == 32
    assert shadow.factor == 0.5


def test_after_a_rewind_nothing_grows_for_twenty_updates() -> None:
    policies = [Named(n) for n in ("one", "two")]
    policies[0].turns = frozenset({"lr_factor", "batch_size", "weight_decay"})
    control = controls(*policies)
    back = Decision(100, "guard", "rewind", 1.0, 0.5, "as scripted", True)
    control.rewound(back, 100)
    assert all(p.heard == [back] for p in policies), "every policy hears of a rewind"
    for step, what, new, taken in (
        (101, "lr_factor", 2.0, False), (101, "batch_size", 64.0, False), (120, "batch_size", 64.0, False),
        (101, "lr_factor", 0.5, True), (101, "weight_decay", 0.1, True), (121, "batch_size", 64.0, True),
    ):  # fmt: skip
        made = settled(control, what, new, step)
        assert made is not None
        assert made.taken is taken, (step, what)
        assert ("held back: a rewind was less than 20 updates ago" in made.reason) is not taken


def test_a_rewind_that_is_only_said_holds_nothing_back() -> None:
    control = controls(Named("one", turns=frozenset({"batch_size"})))
    control.rewound(Decision(100, "guard", "rewind", 1.0, 1.0, "as scripted", False), 100)
    made = settled(control, "batch_size", 64.0, 101)
    assert made is not None
    assert made.taken


def test_an_action_says_what_came_of_it() -> None:
    control = controls(Named("one", turns=frozenset({"escape"})))
    control.actions = {
        "escape": lambda: (False, "no earlier batch can certify it yet", {"curv/lambda_min": -1.0})
    }
    made = settled(control, "escape", 1.0, signals={"curv/ncr": 0.8})
    assert made is not None
    assert not made.taken
    assert made.reason == "as scripted; no earlier batch can certify it yet"
    assert made.signals == {"curv/ncr": 0.8, "curv/lambda_min": -1.0}


# ---------------------------------------------------------------- caps


def capped(control: Controls, who: int, new: float, step: int = 1, what: str = "lr") -> Decision | None:
    return control.settle(control.policies[who], Proposal(what, new, "as scripted", cap=True), step)


def test_the_least_cap_wins_until_its_policy_gives_another() -> None:
    control = controls(Named("one", caps=frozenset({"lr"})), Named("two", caps=frozenset({"lr"})))
    assert control.cap("lr") == math.inf
    capped(control, 0, 0.05)
    capped(control, 1, 0.03)
    assert control.cap("lr") == 0.03
    capped(control, 1, math.inf)
    assert control.cap("lr") == 0.05
    capped(control, 0, 0.2)
    assert control.cap("lr") == 0.2


def test_a_cap_is_on_record_where_it_holds_something_back_and_has_moved_by_a_quarter() -> None:
    """The rate is 0.1."""
    control = controls(Named("one", caps=frozenset({"lr"})))
    moves = [0.2, 0.05, 0.049, 0.055, 0.062, 0.07, 0.068, 0.02, 0.5]
    said = [step for step, new in enumerate(moves) if capped(control, 0, new, step) is not None]
    # 0.2 holds nothing back; 0.049 to 0.062 are near 0.05; 0.068 near 0.07; 0.5 is no bound again.
    assert said == [1, 5, 7]
    ended = capped(control, 0, math.inf, 9)
    assert ended is not None
    assert ended.new == math.inf
    assert capped(control, 0, math.inf, 10) is None


def test_a_cap_on_the_factor_is_one_beside_the_setting() -> None:
    control = controls(
        Named("one", turns=frozenset({"lr_factor"})), Named("two", caps=frozenset({"lr_factor"}))
    )
    settled(control, "lr_factor", 2.0)
    made = capped(control, 1, 0.5, what="lr_factor")
    assert made is not None
    assert (made.old, made.new, made.taken) == (2.0, 0.5, True)
    assert control.host.factor == 2.0, "what was set comes back when the cap ends"
    assert control.cap("lr_factor") == 0.5


# ---------------------------------------------------------------- when


def test_policies_that_may_leave_the_update_out_are_asked_before_it_and_others_after() -> None:
    skips = Named("skips", {1: [("skip", 1.0)]})
    sets = Named("sets", {1: [("lr_factor", 0.5)]})
    control = controls(sets, skips)
    assert [p.name for p, _ in control.ask(before=True)] == [
        "skips"
    ]  # history.step is 0: the update at hand is 1
    assert control.ask(before=False) == []
    control.readers[0]._history.step = 1
    assert [p.name for p, _ in control.ask(before=False)] == ["sets"]
    assert control.ask(before=True) == []


# ---------------------------------------------------------------- resume


def test_caps_and_the_cool_down_resume() -> None:
    def made() -> Controls:
        return controls(Named("one", caps=frozenset({"lr"}), turns=frozenset({"batch_size"})))

    one, two = made(), made()
    capped(one, 0, 0.05)
    one.rewound(Decision(100, "guard", "rewind", 1.0, 0.5, "as scripted", True), 100)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert two.cap("lr") == 0.05
    assert capped(two, 0, 0.051) is None, "it was on record"
    held = settled(two, "batch_size", 64.0, 110)
    assert held is not None
    assert not held.taken
