"""Checks of a policy: made-up signals, its state and its code, and tiny runs that it steers."""

from __future__ import annotations

import dis
import math
import random
import types
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any
from unittest.mock import patch

from optland.pilot.contract.tiny import KINDS, TinyRun, differences, through_a_file
from optland.pilot.controls import check_setters
from optland.pilot.decision import TURNED, Decision, Proposal
from optland.pilot.history import History, Reader
from optland.pilot.policies import POLICIES
from optland.pilot.policies.base import Policy
from optland.pilot.policies.facts import HostFacts
from optland.pilot.signal import Signal

__all__ = ["POLICY_CHECKS", "MakePolicy"]

MakePolicy = Callable[[], Policy]

UPDATES = 120
"""Of a made series of signals."""

CUTS = (0, 1, 37, 61, 90)
"""Where it is interrupted; a rewind is told of at 60."""


# ---------------------------------------------------------------------- on made signals


class _Recorder(Reader):
    """A reader that writes down what it is asked for."""

    def __init__(self, history: History) -> None:
        super().__init__(history)
        self.signals: set[str] = set()
        self.settings: set[str] = set()

    def last(self, name: str) -> Signal | None:
        self.signals.add(name)
        return super().last(name)

    def new(self, name: str) -> Signal | None:
        self.signals.add(name)
        return super().new(name)

    def age(self, name: str) -> int | None:
        self.signals.add(name)
        return super().age(name)

    def setting(self, name: str) -> float | None:
        self.settings.add(name)
        return super().setting(name)


class _Fed:
    """A policy on a made series: falling losses, noise, spikes, values that are not valid, and a rewind."""

    def __init__(self, make: MakePolicy) -> None:
        self.policy = make()
        self.settings: dict[str, float | None] = {
            "lr": 0.1, "lr_factor": 1.0, "lr_applied": 0.1, "shape": None, "batch_size": 32.0, "rho": 0.05,
            "weight_decay": 0.01, "momentum": 0.9, "beta1": 0.9, "beta2": 0.999, "gate": 1.0, "clip": 0.0,
        }  # fmt: skip
        self.history = History(self.settings.get)
        self.reader = _Recorder(self.history)
        self.asked: list[list[Proposal]] = []
        facts = HostFacts(
            steps=UPDATES, has_length=True, passes=6.0, can=frozenset(TURNED), samples=4096, adam=True
        )
        self.asked.append(list(self.policy.begin(facts)))

    @property
    def proposals(self) -> list[Proposal]:
        return [p for update in self.asked for p in update]

    def go_on(self, start: int, stop: int) -> _Fed:
        """The updates after ``start`` up to ``stop``."""
        for step in range(start + 1, stop + 1):
            self.history.step, self.history.progress = step, (step - 0.5) / UPDATES
            names = sorted(self.policy.reads | self.policy.may_read)
            self.history.put(s for name in names if (s := _made_signal(name, step)) is not None)
            asked = list(self.policy.decide(self.reader))
            self.asked.append(asked)
            for proposal in asked:
                self._carry_out(step, proposal)
            if step == 60:
                self.policy.told(Decision(step, "guard", "rewind", 1.0, 1.0, "as scripted", True))
        return self

    def _carry_out(self, step: int, proposal: Proposal) -> None:
        name, old = proposal.actuator, self.settings.get(proposal.actuator)
        if proposal.cap or name not in TURNED:
            return
        new = TURNED[name].within(1.0 if old is None else old, proposal.new)
        if name in self.settings:
            self.settings[name] = new
        self.policy.told(
            Decision(step, self.policy.name, name, old or 0.0, new, proposal.reason, True, proposal.signals)
        )


def _made_signal(name: str, step: int) -> Signal | None:
    draw = random.Random(f"{name} {step}")
    if not name.startswith(("train/", "update/")) and step % 3:
        return None
    value = math.exp(0.3 * draw.gauss(0.0, 1.0) - min(step, 70) / 40)
    value *= 100.0 if step in (50, 51, 52, 53, 80) else 1.0
    value *= 1e3 if name.startswith("noise/b_") else 1.0
    if step % 33 == 0:
        return Signal(name, math.nan, step, valid=False, why="unresolved")
    return Signal(name, value, step, error=0.1 * value)


def _declared(make: MakePolicy) -> Iterator[str]:
    policy = make()
    if not (isinstance(getattr(policy, "name", None), str) and policy.name):
        yield "it has no name, a string"
    for kind in ("reads", "may_read", "turns", "caps"):
        names = getattr(policy, kind)
        if not isinstance(names, frozenset) or not all(isinstance(name, str) for name in names):
            yield f"{kind} is {names!r}; use a frozenset of strings"
    check_setters([policy])


def _decisions(make: MakePolicy) -> Iterator[str]:
    for p in _Fed(make).go_on(0, UPDATES).proposals:
        if not (math.isfinite(p.new) or (p.cap and p.new == math.inf)):
            yield f"it asks for {p.actuator} = {p.new}; only a cap may be infinite, where it ends"
        if not (isinstance(p.reason, str) and p.reason.strip()):
            yield f"it gives no reason for {p.actuator} = {p.new:g}"
        for name, value in p.signals.items():
            if not (isinstance(value, int | float) and math.isfinite(value)):
                yield f"the signal {name} of a proposal for {p.actuator} is {value!r}, and no finite number"


def _turns(make: MakePolicy) -> Iterator[str]:
    fed = _Fed(make).go_on(0, UPDATES)
    for p in fed.proposals:
        if p.actuator not in (fed.policy.caps if p.cap else fed.policy.turns | {"alarm"}):
            kind = "caps" if p.cap else "turns"
            yield f"it asks for {p.actuator}, which is not in its {kind}: {sorted(getattr(fed.policy, kind))}"


def _reads(make: MakePolicy) -> Iterator[str]:
    fed = _Fed(make).go_on(0, UPDATES)
    for name in sorted(fed.reader.signals - fed.policy.reads - fed.policy.may_read):
        yield f"it reads {name}, which is not in its reads, so nothing measures it for this policy"
    for name in sorted(fed.reader.settings - set(fed.settings)):
        yield f"it asks for the setting {name!r}, which no host has; there are {sorted(fed.settings)}"


def _state(make: MakePolicy) -> Iterator[str]:
    whole = _Fed(make).go_on(0, UPDATES)
    expected = [whole.asked, whole.policy.metrics()]
    for at in CUTS:
        first = _Fed(make).go_on(0, at)
        state = first.policy.state_dict()
        before = deepcopy(state)
        again = through_a_file(state)
        if found := differences(state, again):
            yield f"its state is changed by torch.save and load: {found[0]}"
        second = _Fed(make)
        second.policy.load_state_dict(again)
        second.reader.load_state_dict(first.reader.state_dict())
        second.history.load_state_dict(through_a_file(first.history.state_dict()))
        second.settings |= first.settings
        second.asked = list(first.asked)
        first.go_on(at, UPDATES)
        if found := differences(before, state):
            yield f"its state changes after it was given away, for example at {found[0]}; give copies of lists"
        second.go_on(at, UPDATES)
        if found := differences(expected, [second.asked, second.policy.metrics()]):
            yield f"loaded at update {at} it decides otherwise than the unbroken one: {found[0]}; is all in kept?"


def _no_torch(make: MakePolicy) -> Iterator[str]:
    for kind in type(make()).__mro__:
        if kind.__module__.startswith("optland.pilot.policies.base") or kind is object:
            continue
        for name, member in vars(kind).items():
            member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if isinstance(member, types.FunctionType) and (
                used := _torch_in(member.__code__, member.__globals__)
            ):
                yield f"{name}() uses {used}; policies are plain numbers, so that they cost nothing and resume exactly"


def _torch_in(code: types.CodeType, known: dict[str, Any]) -> str | None:
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME" and str(step.argval).partition(".")[0] == "torch":
            return str(step.argval)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and _is_torch(known.get(str(step.argval))):
            return str(step.argval)
    inner = (_torch_in(c, known) for c in code.co_consts if isinstance(c, types.CodeType))
    return next((found for found in inner if found), None)


def _is_torch(thing: Any) -> bool:
    home = thing.__name__ if isinstance(thing, types.ModuleType) else getattr(thing, "__module__", None)
    return isinstance(home, str) and home.partition(".")[0] == "torch"


# ---------------------------------------------------------------------- in tiny runs


def _kind(make: MakePolicy) -> str:
    """The first optimizer that offers what the policy turns."""
    refused = ""
    for kind in KINDS:
        run = TinyRun(kind, policies=[make()])
        try:
            run.update()
        except TypeError as error:
            refused = str(error)
            continue
        return kind
    raise TypeError(refused)


def _looks_on(mode: str) -> Callable[[MakePolicy], Iterator[str]]:
    def check(make: MakePolicy) -> Iterator[str]:
        kind = _kind(make)
        alone = TinyRun(kind).train().bits()
        seen = TinyRun(kind, policies=[make()], mode=mode, budget=1.0).train().bits()
        for found in differences(alone, seen):
            yield f"in {mode} mode the run is not the one without a pilot: {found}"

    return check


def _registered(make: MakePolicy) -> Iterator[str]:
    kind, name = _kind(make), make().name
    with patch.dict(POLICIES, {name: make}):
        runs = [TinyRun(kind, policies=[p], budget=1.0).train() for p in (name, make())]
        said = [[d.to_dict() for d in run.decisions] for run in runs]
    bits = [run.bits() for run in runs]
    for found in differences([bits[0]["model"], said[0]], [bits[1]["model"], said[1]]):
        yield f"its name and its object make different runs, so instances share something: {found}"


def _budget(make: MakePolicy) -> Iterator[str]:
    run = TinyRun(_kind(make), policies=[make()], budget=0.1)
    for number in range(1, run.updates + 1):
        run.update()
        budget = run.pilot.budget
        limit = 0.1 * run.trained + budget.advance
        for spent in (budget.probe_ge, run.looked):
            if spent > 1.001 * limit:
                yield f"at update {number} {spent:.4g} gradient evaluations are spent on looking, for {limit:.4g}"


def _resume(make: MakePolicy) -> Iterator[str]:
    kind = _kind(make)
    whole = TinyRun(kind, policies=[make()], budget=1.0).train()
    expected, said = whole.bits(), [d.to_dict() for d in whole.decisions]
    for at in (1, 7, 23):
        saved = TinyRun(kind, policies=[make()], budget=1.0).train(at).saved()
        again = TinyRun(kind, policies=[make()], budget=1.0).load(saved).train()
        found = differences([expected, said], [again.bits(), [d.to_dict() for d in again.decisions]])
        if found:
            yield f"a run resumed at update {at} is not the unbroken one: {found[0]}"


POLICY_CHECKS: dict[str, Callable[[MakePolicy], Iterator[str]]] = {
    "declared": _declared,
    "decisions": _decisions,
    "turns": _turns,
    "reads": _reads,
    "state": _state,
    "no torch": _no_torch,
    "monitor": _looks_on("monitor"),
    "shadow": _looks_on("shadow"),
    "registered": _registered,
    "budget": _budget,
    "resume": _resume,
}
"""What a policy is held against, by name."""
