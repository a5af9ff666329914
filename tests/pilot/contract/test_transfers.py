"""How often the pilot waits for the device: reads of numbers, counted where they are made.

Beside weights on a processor norms are reduced as plain numbers; the tests walk the way of the other devices.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pilot.contract.loops import BATCH, FORMS, OPTIMIZERS, Run, can_run
from pilot.contract.test_budget import policies
from tiers import slow
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import optland.pilot
from optland.pilot.measure import Layout
from optland.pilot.policies import POLICIES

PILOT = str(Path(optland.pilot.__file__).parent)
TORCH = str(Path(torch.__file__).parent)
NEUTRAL = (str(Path(optland.__file__).parent / "vectors.py"), __file__)
"""Arithmetic for whoever calls it, and what counts here."""

WAITING = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "unique2", "_unique2"}
"""Operations whose result, or its size, the host has to know."""

METHODS = ("tolist", "numpy", "cpu")
"""Reads that no operation shows on a processor."""


def pilots() -> bool:
    """Whether the innermost code that is neither PyTorch's nor neutral is the pilot's."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((TORCH, *NEUTRAL)):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(PILOT)


class Reads(TorchDispatchMode):
    """Counts the pilot's reads, by place."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter[str]()

    def note(self, what: str) -> None:
        if pilots():
            self.count[what] += 1

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in WAITING:
            self.note(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Reads]:
    reads = Reads()
    with pytest.MonkeyPatch.context() as patch, reads:
        for name in METHODS:
            own = getattr(Tensor, name)

            def read(self: Tensor, *args: Any, name: str = name, own: Any = own, **kwargs: Any) -> Any:
                reads.note(name)
                return own(self, *args, **kwargs)

            patch.setattr(Tensor, name, read)
        yield reads


@pytest.fixture(autouse=True)
def _as_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Layout, "on_host", property(lambda self: False, lambda self, there: None), raising=False
    )
    monkeypatch.setattr("optland.pilot.measure.lie_together", lambda tensors: False)


def cells() -> list[tuple[str, str, str]]:
    return [(p, o, f) for p in POLICIES for o in OPTIMIZERS for f in FORMS if can_run(o, f)]


FEW = [("auto_lr", "sgd", "plain"), ("auto_lr", "adamw", "accumulated"), ("auto_lr", "sam", "plain"),
       ("auto_lr", "muon", "plain"), ("auto_lr", "sam", "scaled"), ("spike_guard", "sgd", "plain"),
       ("plateau", "adamw", "plain")]  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "optimizer", "form"), [*FEW, *slow(*(c for c in cells() if c not in FEW))]
)
def test_the_numbers_of_an_update_are_read_at_once(policy: str, optimizer: str, form: str) -> None:
    run = Run(optimizer, form, policies=policies(policy), poisoned=(), updates=30)
    run.train(3)  # the first update looks at loss_fn, and whether the move is linear in the rate
    assert run.pilot is not None
    quiet = 0
    while len(run.losses) < run.updates:
        with counted() as reads:
            run.update()
        if run.pilot.step in run.pilot.looks.last.values() or run.sizes[-1] < BATCH:
            continue  # a probe that is due stays off a smaller batch
        quiet += 1
        assert sum(reads.count.values()) == 1, reads.count
    assert quiet > 15


def test_a_read_too_many_would_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from optland.pilot.steering import Steering

    source = "def more(self):\n    self.host.parameters()['0.weight'].sum().item()\n    return own(self)\n"
    namespace: dict[str, Any] = {"own": Steering.measure}
    exec(compile(source, f"{PILOT}/steering.py", "exec"), namespace)
    monkeypatch.setattr(Steering, "measure", namespace["more"])
    run = Run("sgd", policies=["auto_lr"]).train(3)
    with counted() as reads:
        run.update()
    assert reads.count["_local_scalar_dense"] == 1
    assert reads.count["tolist"] == 1
