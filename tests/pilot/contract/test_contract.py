"""The contract for policies and hosts of anybody's own: what keeps it, and what each check catches."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from pilot.contract.loops import Net, batch_number, cross_entropy
from tiers import slow
from torch import Tensor

from optland.pilot import AutoLR, Host, Pilot, Plateau, Policy, Proposal, SafeLR, SpikeGuard
from optland.pilot.budget import Budget
from optland.pilot.contract import check_host, check_policy
from optland.pilot.contract.hosts import HOST_CHECKS
from optland.pilot.contract.policies import POLICY_CHECKS
from optland.pilot.policies import POLICIES

# ------------------------------------------------------------------ a user's own policy


class WarmDecay(Policy):
    """More decay once the loss has fallen to a half."""

    name = "warm_decay"
    reads = frozenset({"train/loss"})
    turns = frozenset({"weight_decay"})
    kept = ("first",)
    first: float | None = None

    def decide(self, history: Any) -> list[Proposal]:
        loss = history.new("train/loss")
        if loss is None or not loss.valid:
            return []
        self.first = loss.value if self.first is None else self.first
        new = 1e-2 if loss.value < 0.5 * self.first else 1e-4
        if new == history.setting("weight_decay"):
            return []
        return [Proposal("weight_decay", new, f"the loss is {loss.value:.3g}", {"train/loss": loss.value})]


def test_a_policy_of_a_users_own_keeps_the_contract() -> None:
    check_policy(WarmDecay)


BUSY: dict[str, Callable[[], Policy]] = {
    "auto_lr, capped": lambda: AutoLR(ceiling=1.0),
    "plateau, busy": lambda: Plateau(window=16),
    "spike_guard, busy": lambda: SpikeGuard(z=0.5, num_spikes=1, within=5, persist=4),
}


KEPT = ["auto_lr", "spike_guard, busy"]


@pytest.mark.parametrize("name", [*KEPT, *slow(*(n for n in [*POLICIES, *BUSY] if n not in KEPT))])
def test_the_policies_of_the_package_keep_it(name: str) -> None:
    check_policy(BUSY[name] if name in BUSY else POLICIES[name])


# ------------------------------------------------------------------ policies that do not


class Nameless(Policy):
    reads = frozenset({"train/loss"})

    def decide(self, history: Any) -> list[Proposal]:
        return []


class Listed(WarmDecay):
    def __init__(self) -> None:
        self.reads = ["train/loss"]  # type: ignore[assignment]


class TurnsTheRate(WarmDecay):
    turns = frozenset({"lr"})


class Infinite(WarmDecay):
    def decide(self, history: Any) -> list[Proposal]:
        return [Proposal("weight_decay", float("nan"), "no number")]


class Silent(WarmDecay):
    def decide(self, history: Any) -> list[Proposal]:
        return [Proposal("weight_decay", 0.1, " ")]


class Undeclared(WarmDecay):
    def decide(self, history: Any) -> list[Proposal]:
        return [Proposal("momentum", 0.5, "not in turns")]


class Curious(WarmDecay):
    def decide(self, history: Any) -> list[Proposal]:
        history.last("edge/eta_c")
        return super().decide(history)


class Misspelt(WarmDecay):
    def decide(self, history: Any) -> list[Proposal]:
        history.setting("learning_rate")
        return super().decide(history)


class Forgetful(WarmDecay):
    kept: Any = ()


class Unsavable(WarmDecay):
    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "made": type(self)}


class Shallow(WarmDecay):
    """Gives its own list away, which goes on growing."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def decide(self, history: Any) -> list[Proposal]:
        self.seen.append(float(history.step))
        return super().decide(history)

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first, self.seen = state["first"], list(state["seen"])


class WithTensors(WarmDecay):
    def decide(self, history: Any) -> list[Proposal]:
        return super().decide(history) if float(torch.ones(())) else []


class WithTorchInside(WarmDecay):
    def decide(self, history: Any) -> list[Proposal]:
        import torch.nn.functional as F

        return super().decide(history) if F else []


class DrawsWhenMade(WarmDecay):
    def __init__(self) -> None:
        self.luck = random.random()


class DrawsWhenAsked(WarmDecay):
    def decide(self, history: Any) -> list[Proposal]:
        random.random()
        return super().decide(history)


class Shared(WarmDecay):
    """Its instances write into one list."""

    seen: ClassVar[list[float]] = []

    def decide(self, history: Any) -> list[Proposal]:
        self.seen.append(float(history.step))
        return [Proposal("weight_decay", len(self.seen) / 1e6, "as often as anybody was asked")]


class Counts(WarmDecay):
    """What it does depends on a number that it does not keep."""

    asked = 0

    def decide(self, history: Any) -> list[Proposal]:
        self.asked += 1
        return [Proposal("weight_decay", 1e-3 * self.asked, "asked again")]


BROKEN: list[tuple[type[Policy], str, str]] = [
    (Nameless, "declared", "it has no name"),
    (Listed, "declared", "use a frozenset"),
    (TurnsTheRate, "declared", "can only be capped"),
    (Infinite, "decisions", "weight_decay = nan"),
    (Silent, "decisions", "it gives no reason for weight_decay = 0.1"),
    (Undeclared, "turns", "momentum, which is not in its turns"),
    (Curious, "reads", "it reads edge/eta_c, which is not in its reads"),
    (Misspelt, "reads", "the setting 'learning_rate', which no host has"),
    (Forgetful, "state", "it decides otherwise than the unbroken one"),
    (Unsavable, "state", "raised"),
    (Shallow, "state", "its state changes after it was given away"),
    (WithTensors, "no torch", "decide() uses torch"),
    (WithTorchInside, "no torch", "decide() uses torch.nn.functional"),
    (DrawsWhenMade, "monitor", "not the one without a pilot"),
    (DrawsWhenAsked, "shadow", "not the one without a pilot"),
    (Shared, "registered", "instances share something"),
    (Counts, "resume", "is not the unbroken one"),
]


@pytest.mark.parametrize(("broken", "check", "words"), BROKEN)
def test_a_policy_that_breaks_the_contract_is_told(broken: type[Policy], check: str, words: str) -> None:
    check_policy(WarmDecay, only=[check])
    with pytest.raises(AssertionError) as told:
        check_policy(broken, only=[check])
    assert str(told.value).startswith(f"{check}: ")
    assert words in str(told.value)


def test_a_budget_that_lets_everything_through_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "affords", lambda self, probe, declared, ahead=1: declared < float("inf"))
    with pytest.raises(AssertionError, match=r"budget: at update .* are spent on looking"):
        check_policy(SafeLR, only=["budget"])


def test_every_check_of_policies_catches_one() -> None:
    assert {check for _, check, _ in BROKEN} | {"budget"} == set(POLICY_CHECKS)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(AssertionError) as told:
        check_policy(Infinite, only=["decisions", "turns", "no torch"])
    assert [line.partition(":")[0] for line in str(told.value).splitlines()] == ["decisions"]
    with pytest.raises(AssertionError) as told:
        check_policy(Undeclared, only=["turns", "registered"])
    assert [line.partition(":")[0] for line in str(told.value).splitlines()] == ["turns", "registered"]


# ------------------------------------------------------------------ a host of a user's own


class Loop:
    """Owns how many micro-batches make an update; nothing can tell its loader another size."""

    micro = 8

    def __init__(self) -> None:
        self.accumulate = 4


class AccumulatingHost(Host):
    """The batch of an update is what the loop accumulates."""

    def __init__(self, *args: Any, loop: Loop, **options: Any) -> None:
        super().__init__(*args, **options)
        self.loop = loop

    @property
    def own_batch_size(self) -> int:
        return self.loop.accumulate * self.loop.micro

    @property
    def knows_batch_size(self) -> bool:
        return True

    def can_turn(self, name: str) -> bool:
        return name == "batch_size" or super().can_turn(name)

    def turn(self, name: str, new: float) -> bool:
        if name != "batch_size":
            return super().turn(name, new)
        self.loop.accumulate = max(round(new / self.loop.micro), 1)
        return True

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"accumulate": self.loop.accumulate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.loop.accumulate = state["accumulate"]


def made(kind: type[AccumulatingHost]) -> Callable[..., Host]:
    return lambda *args, **options: kind(*args, loop=Loop(), **options)


def test_a_host_of_a_users_own_keeps_the_contract() -> None:
    check_host(made(AccumulatingHost))


def test_the_host_of_the_package_keeps_it() -> None:
    check_host(Host)


class GrowsAt(Policy):
    name = "grows_at"
    turns = frozenset({"batch_size"})

    def decide(self, history: Any) -> list[Proposal]:
        size = history.setting("batch_size")
        return [Proposal("batch_size", 2 * size, "scripted")] if history.step == 5 else []


def test_a_loop_that_owns_the_batch_accumulates_as_a_policy_has_it() -> None:
    torch.manual_seed(0)
    model, loop = Net(), Loop()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pilot = Pilot(
        optimizer, model, cross_entropy, policies=[GrowsAt()], total_samples=4096,
        host=lambda *args, **options: AccumulatingHost(*args, loop=loop, **options),
    )  # fmt: skip
    sizes, number = [], 0
    for _ in range(8):
        optimizer.zero_grad()
        pieces, total = (
            [batch_number(7 * (number + i), loop.micro) for i in range(loop.accumulate)],
            torch.zeros(()),
        )
        number += loop.accumulate
        for piece in pieces:
            loss = cross_entropy(model, piece) / len(pieces)
            loss.backward()
            total += loss.detach()
        optimizer.step()
        pilot.after_step(pieces, total)
        sizes.append(sum(len(x) for x, _ in pieces))
    assert sizes == [32] * 5 + [64] * 3
    assert pilot.samples == sum(sizes)
    assert [(d.actuator, d.old, d.new, d.taken) for d in pilot.decisions] == [
        ("batch_size", 32.0, 64.0, True)
    ]


# ------------------------------------------------------------------ hosts that do not


class OptimizersOrder(Host):
    def parameters(self) -> dict[str, Tensor]:
        names = {p: name for name, p in super().parameters().items()}
        return {names[p]: p for o in self.inner for p in self.parameters_of(o) if p in names}


class Copies(Host):
    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in super().parameters().items()}


class FrozenToo(Host):
    def parameters(self) -> dict[str, Tensor]:
        return self._named_in_groups()


class Promises(AccumulatingHost):
    def turn(self, name: str, new: float) -> bool:
        return True if name == "batch_size" else super().turn(name, new)


class Declines(AccumulatingHost):
    def turn(self, name: str, new: float) -> bool:
        return False if name == "batch_size" else super().turn(name, new)


class Modest(Host):
    """Turns what it says that it cannot."""

    def can_turn(self, name: str) -> bool:
        return name != "weight_decay" and super().can_turn(name)

    def turn(self, name: str, new: float) -> bool:
        if name == "weight_decay":
            self._turn_in_groups(name, new)
            return False
        return super().turn(name, new)


class Boasts(Host):
    def turn(self, name: str, new: float) -> bool:
        return super().turn(name, new) or name == "rho"


class DeafToTheLoader(Host):
    def can_turn(self, name: str) -> bool:
        return name != "batch_size" and super().can_turn(name)


class RefusesLate(Host):
    """Says nothing before the first update, and then that it cannot."""

    def can_turn(self, name: str) -> bool:
        return name == "rho" or super().can_turn(name)

    def turn(self, name: str, new: float) -> bool:
        if name == "rho" and not super().can_turn(name):
            raise TypeError("there is no rho here")
        return super().turn(name, new)


class Resumes(AccumulatingHost):
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"accumulate": 4}


class Touches(Host):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        with torch.no_grad():
            next(self.model.parameters()).mul_(1.0001)


BROKEN_HOSTS: list[tuple[Callable[..., Host], str, str]] = [
    (OptimizersOrder, "order", "parameters() has the order"),
    (Copies, "order", "is not the model's own tensor"),
    (FrozenToo, "order", "parameters() has the order"),
    (made(Promises), "can turn", "read('batch_size') is 32.0"),
    (made(Declines), "can turn", "turn('batch_size', 64) did not"),
    (Modest, "can turn", "has changed something"),
    (Boasts, "can turn", "it cannot turn rho, and turn('rho', 0.11) says that it did"),
    (DeafToTheLoader, "batch", "it cannot turn the batch size of a loader that can"),
    (RefusesLate, "refuses", "there is no rho here"),
    (made(Declines), "refuses", "a policy's decision on it was not carried out"),
    (made(Resumes), "state", "after a resume batch_size is 32.0, and was 64.0"),
    (Touches, "monitor", "not the one without a pilot"),
]


@pytest.mark.parametrize(("broken", "check", "words"), BROKEN_HOSTS)
def test_a_host_that_breaks_the_contract_is_told(broken: Any, check: str, words: str) -> None:
    with pytest.raises(AssertionError) as told:
        check_host(broken, only=[check])
    assert str(told.value).startswith(f"{check}: ")
    assert words in str(told.value)


def test_every_check_of_hosts_catches_one() -> None:
    assert {check for _, check, _ in BROKEN_HOSTS} == set(HOST_CHECKS)


def test_random_state_is_as_before() -> None:
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(()), random.random()
    torch.manual_seed(5)
    random.seed(5)
    check_policy(WarmDecay, only=["state", "shadow"])
    check_host(Host, only=["monitor"])
    assert (torch.rand(()), random.random()) == expected
