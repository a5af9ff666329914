"""What a pilot holds between updates: distinct storages that are reachable from it, and from nothing of the user's."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterable
from typing import Any

import pytest
from pilot.contract.loops import OPTIMIZERS, Run
from pilot.contract.test_budget import policies
from tiers import slow
from torch import Tensor, nn

from optland.pilot.policies import POLICIES

WIDTH = 96
SLACK = 4096
"""Bytes for scalars that wait, and a few numbers for each tensor."""


class Wide(nn.Sequential):
    """Large beside the pilot's small change; of float32 and with running statistics."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(6, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, 3),
        )  # fmt: skip


class Adapted(nn.Module):
    """A frozen layer with a trained correction of low rank, and a trained head."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, WIDTH)
        self.frozen = nn.Linear(WIDTH, WIDTH)
        self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, 3)
        for p in [*self.inner.parameters(), *self.frozen.parameters()]:
            p.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x).relu()
        return self.head((self.frozen(h) + self.up(self.down(h))).relu())


def storages(root: Any, apart: Iterable[Any] = ()) -> dict[int, int]:
    """Bytes of the distinct storages of all tensors that can be reached, by address; not through a user's objects.

    Args:
        root: Where to begin.
        apart: Objects that are not entered.
    """
    found: dict[int, int] = {}
    closed = {id(x) for x in apart}
    seen, waiting = set[int](), [root]
    while waiting:
        x = waiting.pop()
        if id(x) in seen or id(x) in closed:
            continue
        seen.add(id(x))
        if isinstance(x, Tensor):
            for t in [x] + ([] if x.grad is None else [x.grad]):
                held = t.untyped_storage()
                found[held.data_ptr()] = held.nbytes()
        elif isinstance(x, dict):
            waiting += [*x.keys(), *x.values()]
        elif isinstance(x, list | tuple | set | frozenset | deque):
            waiting += x
        elif isinstance(x, types.FunctionType):
            waiting += [c.cell_contents for c in x.__closure__ or ()] + list(x.__defaults__ or ())
        elif isinstance(x, types.MethodType):
            waiting += [x.__self__, x.__func__]
        elif isinstance(x, functools.partial):
            waiting += [x.func, *x.args, *x.keywords.values()]
        elif not isinstance(x, type | types.ModuleType | str | int | float | bytes):
            waiting += list(getattr(x, "__dict__", {}).values())
            slots = [name for kind in type(x).__mro__ for name in getattr(kind, "__slots__", ())]
            waiting += [getattr(x, name) for name in slots if isinstance(name, str) and hasattr(x, name)]
    return found


def size(tensors: Iterable[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def held(run: Run) -> tuple[int, int, int, int]:
    """Bytes that the pilot holds; and those of the trained parameters, the float buffers and the optimizer's state."""
    pilot = run.pilot
    assert pilot is not None
    users = {**storages(list(run.model.parameters())), **storages(list(run.model.buffers()))}
    for optimizer in run.optimizers:
        users |= storages(list(optimizer.state.values()))
    kept = [pilot._recent, pilot.host.batch, *(getattr(p, "batch", None) for p in pilot.looks.probes)]
    users |= storages(kept)  # batches are counted apart
    mine = storages(pilot, apart=[run.model, *run.optimizers, *pilot.host.inner, run.meter, run.loader])
    trained = [p for p in run.model.parameters() if p.requires_grad]
    state = [v for p in trained for o in run.optimizers for v in dict(o.state.get(p, {})).values()]
    ours = sum(count for address, count in mine.items() if address not in users)
    floats = [b for b in run.model.buffers() if b.is_floating_point()]
    return ours, size(trained), size(floats), size(state)


COPIES = {"auto_lr": 3, "auto_lr, capped": 3, "safe_lr": 1, "edge_monitor": 1, "plateau": 1}
"""Of the trained parameters, on their device; the other policies need none."""

EIGENVECTORS = {"plateau": 2, "curvature_monitor": 2}
"""Copies of the trained parameters in the host's memory: what the curvature probe starts from."""


def cells() -> list[tuple[str, str]]:
    named = [*POLICIES, "noise_batch, curvature", "auto_lr, capped"]
    return [(p, o) for p in named for o in OPTIMIZERS]


FEW = [("auto_lr", "adamw"), ("auto_lr", "sam"), ("safe_lr", "sgd"), ("plateau", "adamw")]


@pytest.mark.parametrize(("policy", "optimizer"), [*FEW, *slow(*(c for c in cells() if c not in FEW))])
@pytest.mark.parametrize("net", [Wide, Adapted])
def test_what_a_pilot_holds_is_what_is_declared(policy: str, optimizer: str, net: Any) -> None:
    """All together, since host and device are one here: a run on a processor cannot tell them apart."""
    if net is Adapted and optimizer == "muon":
        pytest.skip("the optimizers take all parameters of that net by their place")
    run = Run(optimizer, policies=policies(policy), budget=1.0, updates=42, net=net)
    copies = COPIES.get(policy, 0) + EIGENVECTORS.get(policy, 0)
    most = 0.0
    for _ in range(run.updates):
        run.update()
        ours, trained, floats, state = held(run)
        snapshots = 2 * (trained + floats + state)
        more = (
            ours - snapshots - floats
        ) / trained  # float buffers are kept as they were before a forward pass
        assert more * trained <= copies * trained + SLACK, f"{more:.2f} copies at update {len(run.losses)}"
        most = max(most, more)
    assert most * trained > (copies - 1) * trained - SLACK, f"{most:.2f} copies are less than is declared"


def test_a_closed_pilot_has_given_back_its_copies_of_the_weights() -> None:
    """Those of ``auto_lr``: of the weights before an update, and of the last gradient; states to go back to stay."""
    run = Run("sgd", policies=policies("auto_lr"), budget=1.0, updates=6, net=Wide)
    for _ in range(run.updates):
        run.update()
    open_, trained, _, _ = held(run)
    run.pilot.close()
    assert open_ - held(run)[0] == pytest.approx(2 * trained, abs=SLACK)
