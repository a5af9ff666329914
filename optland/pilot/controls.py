"""Ask the policies of a run and carry out their proposals: who sets what, caps in force, decisions."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from dataclasses import replace
from typing import Any

from optland.config.errors import did_you_mean
from optland.pilot.decision import BEFORE, TURNED, Decision, Proposal
from optland.pilot.guards import CoolDown
from optland.pilot.history import History
from optland.pilot.host import Host
from optland.pilot.policies import POLICIES
from optland.pilot.policies.base import Policy
from optland.pilot.policies.facts import HostFacts

__all__ = ["Controls", "Outcome", "by_name", "check_setters"]

CAPPED = frozenset({"lr", "lr_factor"})
"""What can be bounded from above."""

GROWING = frozenset({"lr_factor", "batch_size", "rho"})
"""What may not grow for a while after a rewind."""

Outcome = tuple[bool, str, dict[str, float]]
"""Whether an action was done, what there is to say of it, and numbers."""


def by_name(policies: Sequence[str | Policy]) -> list[Policy]:
    """Policy objects out of names and objects.

    Args:
        policies: Keys of :data:`~optland.pilot.policies.POLICIES`, or objects, in any mixture.

    Returns:
        In the same order; objects as they were given, names with their defaults.

    Raises:
        ValueError: A string in place of a list, or an unknown name.

    Example:
        >>> [policy.name for policy in by_name(["safe_lr", "plateau"])]
        ['safe_lr', 'plateau']
    """
    if isinstance(policies, str):
        raise ValueError(f"policies is the string {policies!r}; use a list: [{policies!r}]")
    if not isinstance(policies, Iterable):
        raise ValueError(f"policies={policies!r} is no list; use [...] around a single one, and [] for none")
    made: list[Policy] = []
    for item in policies:
        if not isinstance(item, str):
            made.append(_as_policy(item))
        elif item in POLICIES:
            made.append(POLICIES[item]())
        else:
            hint = did_you_mean(item, POLICIES)
            raise ValueError(f"policy {item!r} is not known; choose from {sorted(POLICIES)}.{hint}")
    return made


def _as_policy(item: Any) -> Policy:
    """An object that was given as a policy.

    Raises:
        ValueError: It is a class, or lacks what a policy has.
    """
    if isinstance(item, type):
        raise ValueError(f"{item.__name__} is a class; give an object: {item.__name__}()")
    if not callable(getattr(item, "decide", None)):
        raise ValueError(
            f"{item!r} is no policy; give a name or an object of a subclass of optland.pilot.Policy"
        )
    for name in ("reads", "turns", "caps"):
        if not isinstance(given := getattr(item, name), Set):
            raise ValueError(f"{item.name}: {name} is {given!r}; make it a frozenset of names")
    return item  # type: ignore[no-any-return]


def check_setters(policies: Sequence[Policy]) -> None:
    """Refuse two policies that set the same thing, and something that nobody can set or cap.

    Raises:
        ValueError: With both names, or the one that cannot be.
    """
    setters: dict[str, str] = {}
    for policy in policies:
        for name in sorted(policy.turns | policy.caps):
            if name not in TURNED:
                raise ValueError(
                    f"{policy.name} turns {name!r}, which is not known; choose from {sorted(TURNED)}"
                )
        if "lr" in policy.turns:
            raise ValueError(
                f"{policy.name} turns 'lr', which can only be capped; turn lr_factor or step_length"
            )
        if policy.caps - CAPPED:
            wrong = sorted(policy.caps - CAPPED)[0]
            raise ValueError(
                f"{policy.name} caps {wrong!r}; only {' and '.join(sorted(CAPPED))} can be capped"
            )
        for name in sorted(policy.turns - {"alarm"}):
            if name in setters:
                raise ValueError(f"{setters[name]} and {policy.name} both set {name}; choose one of them")
            setters[name] = policy.name


class Controls:
    """Asks policies and carries out what they say.

    Args:
        policies: Asked in this order.
        host: What is turned.
        history: What they read.
        act: Whether decisions are carried out; else they are only made.

    Attributes:
        readers: A view of the history for each policy.
        reads: Signals that any of them reads.
        turns: What any of them sets.
        cool: Says whether something may grow again after a rewind.

    Raises:
        ValueError: Two policies set the same thing.
    """

    def __init__(self, policies: Sequence[Policy], host: Host, history: History, *, act: bool) -> None:
        self.policies, self.host, self.act = list(policies), host, act
        self.readers = [history.reader() for _ in policies]
        self.cool = CoolDown()
        self.caps: dict[str, dict[str, float]] = {}
        """Caps in force, by what is capped and by whom."""
        self._said: dict[str, float] = {}  # caps as they were last put on record
        self.actions: dict[str, Callable[[], Outcome]] = {}
        """What the pilot does for a policy: escapes, and updates left out."""
        check_setters(self.policies)
        self._take_in()
        if act:
            self._check_host(host.fixed)

    def _take_in(self) -> None:
        """What is asked several times in every update, and changes where policies are told of the run alone."""
        self.reads: frozenset[str] = frozenset().union(*(p.reads for p in self.policies))
        self.turns: frozenset[str] = frozenset().union(*(p.turns for p in self.policies))
        self._asked = {
            before: [
                x
                for x in zip(self.policies, self.readers, strict=True)
                if bool(x[0].turns & BEFORE) == before
            ]
            for before in (True, False)
        }

    @property
    def paces(self) -> bool:
        """Whether a policy answers for the learning rate; else a rewind halves it."""
        return any("step_length" in p.turns or "lr" in p.caps for p in self.policies)

    def begin(self, facts: HostFacts, step: int) -> list[Decision]:
        """Tell the policies of the run, hold what they turn against the host, and carry out what they ask for at once.

        Args:
            facts: What is known of the run.
            step: The update at which that is, for the record.

        Returns:
            The decisions on what was asked for at once; caps that hold nothing back are in force and not among them.

        Raises:
            ValueError: Two policies set the same thing, or there is something that cannot be turned by anybody.
            TypeError: This host cannot turn something.
        """
        said = [(policy, policy.begin(facts)) for policy in self.policies]
        check_setters(self.policies)
        self._take_in()
        asked = [(policy, proposal) for policy, found in said for proposal in _proposals(policy, found)]
        if self.act:
            self._check_host()
        return [d for policy, proposal in asked if (d := self.settle(policy, proposal, step)) is not None]

    def tell(self, facts: HostFacts | None) -> None:
        """Tell the policies of a run that goes on, and has got another length; what they know stays."""
        if facts is None:
            return
        for policy in self.policies:
            state = policy.state_dict()
            policy.begin(facts)
            policy.load_state_dict(state)
        self._take_in()

    def _check_host(self, names: Collection[str] = tuple(TURNED)) -> None:
        for policy in self.policies:
            for name in sorted((policy.turns | policy.caps) & set(names)):
                if self.host.can_turn(name):
                    continue
                why = self.host.why_not_rescaled() if name == "step_length" else None
                instead = self.host.lacking(name)
                raise TypeError(
                    f"{policy.name} turns {name}, which this optimizer or loop does not offer"
                    f"{f' ({why})' if why else ''}: {instead}. Or use mode='shadow' to log its advice only"
                )

    def ask(self, *, before: bool) -> list[tuple[Policy, Proposal]]:
        """The proposals of the policies now, before an update or after it.

        Args:
            before: Ask those that turn ``skip`` or ``rewind``, with the gradient there and not used; else all others.

        Returns:
            Pairs of a policy and one of its proposals, in the order of the policies; nothing has been carried out.

        Raises:
            ValueError: A policy asks for what it has not declared.
            TypeError: What it returned is no list of proposals, or a value no number.
        """
        said = [(policy, policy.decide(reader)) for policy, reader in self._asked[before]]
        return [(policy, proposal) for policy, found in said for proposal in _proposals(policy, found)]

    def cap(self, name: str) -> float:
        """The least cap in force.

        Args:
            name: ``lr`` or ``lr_factor``.

        Returns:
            Infinite where nobody caps it.
        """
        return min(self.caps.get(name, {}).values(), default=math.inf)

    def settle(self, policy: Policy, proposal: Proposal, step: int) -> Decision | None:
        """Carry out a proposal within its bounds, and say what was done; None for a cap that holds nothing back yet.

        Args:
            policy: Whose proposal it is; it is told of the decision, unless that is about a cap.
            proposal: What it asks for.
            step: The update, for the record.

        Returns:
            The decision, with ``taken`` false where nothing was turned: in shadow mode, by a host that cannot, after a
            rewind.
        """
        name, old = proposal.actuator, self._present(proposal)
        if proposal.cap:
            return self._settle_cap(policy, proposal, step)
        new = TURNED[name].within(old, proposal.new) if math.isfinite(old) else proposal.new
        old = old if math.isfinite(old) else 0.0  # an action has no value before
        reason, signals, taken = proposal.reason, proposal.signals, False
        if name in GROWING and not self.cool.allows(step, old, new):
            reason = f"{reason}; held back: a rewind was less than {self.cool.steps} updates ago"
        elif self.act and name in self.actions:
            taken, why, numbers = self.actions[name]()
            reason, signals = f"{reason}; {why}" if why else reason, signals | numbers
        elif self.act or name == "lr_factor":  # in shadow mode the factor is counted, and never applied
            taken = self.host.turn(name, new) and self.act
        decision = Decision(step, policy.name, name, old, new, reason, taken, signals)
        policy.told(decision)
        return decision

    def _settle_cap(self, policy: Policy, proposal: Proposal, step: int) -> Decision | None:
        """Put a cap in force; on record where it holds something back and has moved by a quarter since it was."""
        name, new = proposal.actuator, max(proposal.new, 0.0)
        held, present = self.caps.setdefault(name, {}), self._present(proposal)
        old = held.get(policy.name, math.inf)
        new = old if math.isnan(proposal.new) else new
        held[policy.name] = new
        said = self._said.get(name, math.inf)
        if not (math.isfinite(present) and new < present):
            if new == math.inf and old < math.inf:
                self._said.pop(name, None)
                return Decision(
                    step, policy.name, name, old, new, proposal.reason, self.act, proposal.signals
                )
            return None
        if new == said or (math.isfinite(said) and 0.8 * said < new < 1.25 * said):
            return None
        self._said[name] = new
        return Decision(
            step, policy.name, name, min(old, present), new, proposal.reason, self.act, proposal.signals
        )

    def _present(self, proposal: Proposal) -> float:
        found = self.host.read(proposal.actuator)
        return math.nan if found is None else found

    def rewound(self, decision: Decision, step: int) -> None:
        """A rewind was made: every policy is told, and nothing grows for a while.

        Args:
            decision: On the rewind; nothing is held back where it was not carried out.
            step: The update at which it was made.
        """
        if decision.taken:
            self.cool.start(step)
        for policy in self.policies:
            policy.told(decision)

    def metrics(self) -> dict[str, float]:
        """Numbers of the policies for the log."""
        row: dict[str, float] = {}
        for policy in self.policies:
            row |= policy.metrics()
        return row

    def state_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return {
            "policies": [p.state_dict() for p in self.policies],
            "readers": [r.state_dict() for r in self.readers],
            "cool": self.cool.until,
            "caps": {name: dict(held) for name, held in self.caps.items()},
            "said": dict(self._said),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, with the same policies."""
        for policy, kept in zip(self.policies, state["policies"], strict=True):
            policy.load_state_dict(kept)
        for reader, seen in zip(self.readers, state["readers"], strict=True):
            reader.load_state_dict(seen)
        self.cool.until = state["cool"]
        self.caps = {name: dict(held) for name, held in state["caps"].items()}
        self._said = dict(state["said"])


def _proposals(policy: Policy, found: Any) -> list[Proposal]:
    """What a policy has asked for, with numbers for its values.

    Raises:
        TypeError: It is no list of proposals, or a value is no number.
        ValueError: Something was not declared.
    """
    if not isinstance(found, Iterable) or isinstance(found, str):
        raise TypeError(
            f"{policy.name} returned {found!r} for a list of proposals; return [] where there is none"
        )
    checked = []
    for asked in found:
        if not isinstance(asked, Proposal):
            raise TypeError(
                f"{policy.name} returned {asked!r} among its proposals; give optland.pilot.Proposal(...)"
            )
        _check_declared(policy, asked)
        if type(asked.new) is not float:
            asked = replace(asked, new=_number(policy, asked))
        checked.append(asked)
    return checked


def _number(policy: Policy, asked: Proposal) -> float:
    try:
        return float(asked.new)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{policy.name} asks for {asked.actuator} {asked.new!r}, which is no number"
        ) from error


def _check_declared(policy: Policy, proposal: Proposal) -> None:
    """Refuse what was not declared: it would escape the rule of one setter per setting."""
    name = proposal.actuator
    if name in (policy.caps if proposal.cap else policy.turns):
        return
    declared = policy.caps if proposal.cap else policy.turns | {"alarm"}
    if name not in declared:
        what, where = ("a cap on ", "caps") if proposal.cap else ("", "turns")
        raise ValueError(
            f"{policy.name} asks for {what}{name!r}, which is not in its {where}: {sorted(declared)}"
        )
