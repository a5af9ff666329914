"""Checks of a host: the order of the parameters, and that it can turn what it says and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from optland.pilot.contract.tiny import KINDS, TinyRun, differences, through_a_file
from optland.pilot.decision import Proposal
from optland.pilot.history import Reader
from optland.pilot.host import Host
from optland.pilot.policies.base import Policy

__all__ = ["HOST_CHECKS", "MakeHost"]

MakeHost = Callable[..., Host]

OTHER = {
    "lr_factor": 0.5, "batch_size": 64.0, "rho": 0.11, "weight_decay": 0.011, "momentum": 0.51, "beta1": 0.81,
    "beta2": 0.991, "gate": 0.0, "clip": 1.5,
}  # fmt: skip
"""What a host is asked to turn, and to which value; the rest is done by the pilot, or cannot be read back."""


def _order(make: MakeHost) -> Iterator[str]:
    run = TinyRun("adamw", host=make, policies=[])
    host, model = run.pilot.host, run.model
    for frozen in (None, "0.weight"):
        for name, p in model.named_parameters():
            p.requires_grad_(name != frozen)
        wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
        found = host.parameters()
        if list(found) != list(wanted):
            yield f"parameters() has the order {list(found)}, and the model {list(wanted)}"
        for name in wanted:
            if found[name] is not wanted[name]:
                yield f"parameters()[{name!r}] is not the model's own tensor"
    model.requires_grad_(True)
    host.before.take(host.parameters_of(host.inner[0]))
    params = list(model.parameters())
    start = [p.detach().clone() for p in params]
    with torch.no_grad():
        for i, p in enumerate(params):
            p.add_(0.5 * (i + 1))
    moved = host.update()
    if moved is None or differences(start, list(moved[0])):
        yield "update() does not begin at the weights before the update, in the model's order"
    elif differences([p.detach() - s for p, s in zip(params, start, strict=True)], list(moved[1])):
        yield "update() is not what the weights have moved by, in the model's order"


def _can_turn(make: MakeHost) -> Iterator[str]:
    for kind in KINDS:
        for name, new in OTHER.items():
            run = TinyRun(kind, host=make, policies=[]).train(1)
            host, bits = run.pilot.host, run.bits()
            can, old = host.can_turn(name), host.read(name)
            done, why = _turned(host, name, new)
            if can and old is None:
                yield f"it can turn {name}, and read({name!r}) is None"
            elif can and not done:
                yield f"it can turn {name}, and turn({name!r}, {new:g}) did not{why}"
            elif can and host.read(name) != new:
                yield f"after turn({name!r}, {new:g}) read({name!r}) is {host.read(name)}"
            elif not can and done:
                yield f"it cannot turn {name}, and turn({name!r}, {new:g}) says that it did"
            elif not can and (host.read(name) != old or differences(bits, run.bits())):
                yield f"it cannot turn {name}, and turn({name!r}, {new:g}) has changed something"


def _batch(make: MakeHost) -> Iterator[str]:
    run = TinyRun("sgd", host=make, policies=[]).train(1)
    host, size = run.pilot.host, OTHER["batch_size"]
    host.loader = run.loader  # as pilot.batches(loader) does it
    if "batch_size" in host.fixed:
        return
    if not host.can_turn("batch_size"):
        yield "it cannot turn the batch size of a loader that can"
    elif not host.turn("batch_size", size) or {host.read("batch_size"), host.batch_size} != {size}:
        read = host.read("batch_size")
        yield f"after turn('batch_size', {size:g}) it reads {read}, and batch_size is {host.batch_size}"


def _turned(host: Host, name: str, new: float) -> tuple[bool, str]:
    try:
        return host.turn(name, new), ""
    except Exception as error:
        return False, f" ({type(error).__name__}: {error})"


class _Turns(Policy):
    """Turns one thing, at the second update."""

    name = "turns"

    def __init__(self, what: str, new: float) -> None:
        self.turns, self.new = frozenset({what}), new

    def decide(self, history: Reader) -> list[Proposal]:
        (what,) = self.turns
        return [Proposal(what, self.new, "as asked for")] if history.step == 2 else []


def _refuses(make: MakeHost) -> Iterator[str]:
    for kind in KINDS:
        for name, new in OTHER.items():
            fixed = name in TinyRun(kind, host=make, policies=[]).pilot.host.fixed
            try:
                run = TinyRun(kind, host=make, policies=[_Turns(name, new)])
            except TypeError as error:
                if not fixed or name not in str(error):
                    yield f"a policy that turns {name} is refused as the pilot is made: {error}"
                continue
            if fixed:
                yield f"{name} is fixed, and a policy that turns it is not refused as the pilot is made"
            before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
            try:
                run.update()
                refused = ""
            except TypeError as error:
                refused = str(error)
                if differences(before, {n: p.detach() for n, p in run.model.named_parameters()}):
                    yield f"{name} is refused after weights have moved"
            can = run.pilot.host.can_turn(name)
            if can and refused:
                yield f"it can turn {name}, and a policy that does is refused: {refused}"
            elif not can and name not in refused:
                yield f"it cannot turn {name}, and a policy that does is not refused in words: {refused!r}"
            elif can:
                run.train(5)
                if not any(d.taken and d.actuator == name for d in run.decisions):
                    yield f"it can turn {name}, and a policy's decision on it was not carried out"


def _host_state(make: MakeHost) -> Iterator[str]:
    for kind in KINDS:
        first, second = (TinyRun(kind, host=make, policies=[]).train(1) for _ in range(2))
        host, other = first.pilot.host, second.pilot.host
        for name, new in OTHER.items():
            if host.can_turn(name):
                host.turn(name, new)
        for mine, theirs in zip(first.optimizers, second.optimizers, strict=True):
            theirs.load_state_dict(mine.state_dict())
        other.load_state_dict(through_a_file(host.state_dict()))
        for name in OTHER:
            if host.read(name) != other.read(name):
                yield f"after a resume {name} is {other.read(name)}, and was {host.read(name)}; add it to state_dict()"


def _host_looks_on(make: MakeHost) -> Iterator[str]:
    for kind in KINDS:
        alone = TinyRun(kind).train().bits()
        seen = TinyRun(kind, host=make, policies=["auto_lr"], mode="monitor", budget=1.0).train().bits()
        for found in differences(alone, seen):
            yield f"in monitor mode the run is not the one without a pilot: {found}"


HOST_CHECKS: dict[str, Callable[[MakeHost], Iterator[str]]] = {
    "order": _order,
    "can turn": _can_turn,
    "batch": _batch,
    "refuses": _refuses,
    "state": _host_state,
    "monitor": _host_looks_on,
}
"""What a host is held against, by name."""
