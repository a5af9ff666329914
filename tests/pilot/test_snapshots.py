"""The two states that a rewind may go back to: when they are taken, which one is chosen, and what is put back."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optland.optim import SAM
from optland.pilot.snapshots import DOUBT, Snapshots


class Run:
    """A net with running statistics, steps with gradients of ones, and snapshots of it."""

    def __init__(self, make: Any = None, model: nn.Module | None = None) -> None:
        torch.manual_seed(0)
        self.model = model or nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        made = make or (lambda p: torch.optim.AdamW(p, lr=0.01))
        self.optimizers = [made(self.model.parameters())]
        self.snapshots = Snapshots()
        self.step = 0

    @property
    def params(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def buffers(self) -> dict[str, Tensor]:
        return {name: b for name, b in self.model.named_buffers() if b.is_floating_point()}

    def train(self, steps: int = 1) -> Run:
        for _ in range(steps):
            self.step += 1
            for optimizer in self.optimizers:
                optimizer.step(self.closure)
        return self

    def closure(self) -> Tensor:
        self.model(torch.randn(8, 3))
        for p in self.params.values():
            p.grad = torch.full_like(p, 1.0 + 0.1 * self.step)
        return torch.ones(())

    def take(self) -> None:
        self.snapshots.take(self.step, {"best": float(self.step)}, self.params, self.buffers, self.optimizers)

    def restore(self, snapshot: Any) -> None:
        self.snapshots.restore(snapshot, self.params, self.buffers, self.optimizers)

    def state(self) -> dict[str, Any]:
        """Everything that a snapshot is to hold, by name."""
        state = {f"param {n}": p.detach().clone() for n, p in self.params.items()}
        state |= {f"buffer {n}": b.clone() for n, b in self.buffers.items()}
        for n, p in self.params.items():
            for o in self.optimizers:
                state |= {f"state {n} {k}": copy.deepcopy(v) for k, v in o.state.get(p, {}).items()}
        return state


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        same = torch.equal(value, b[key]) if isinstance(value, Tensor) else value == b[key]
        assert same, key


def steps_of(snapshots: Snapshots) -> tuple[int | None, int | None]:
    old, recent = snapshots.old, snapshots.recent
    return (None if old is None else old["step"]), (None if recent is None else recent["step"])


# ---------------------------------------------------------------- when


def test_the_old_one_is_the_start_and_then_lies_further_back_than_half_of_the_run() -> None:
    """Taken every 5 updates: the recent one becomes the old one once that lies before half of what is then done."""
    run, seen = Run(), {}
    run.take()
    assert steps_of(run.snapshots) == (0, None)
    for _ in range(10):
        run.train(5)
        run.take()
        seen[run.step] = steps_of(run.snapshots)
    # At 10 the old one, 0, lies before 10/2: 5 takes its place. At 15: 2 * 5 < 15, 10. At 20: 2 * 10 is not below 20.
    expected = {5: (0, 5), 10: (5, 10), 15: (10, 15), 20: (10, 20), 25: (20, 25), 30: (20, 30), 35: (20, 35),
                40: (20, 40), 45: (40, 45), 50: (40, 50)}  # fmt: skip
    assert seen == expected
    for step, (old, _) in seen.items():
        assert old is not None
        assert step == 5 or 2 * old >= step - 5, "not further back than half, but for one interval"


def test_each_holds_the_state_of_its_own_update() -> None:
    """Though the memory of the one that is let go is used again."""
    run, kept = Run(), {}
    for _ in range(8):
        run.take()
        kept[run.step] = run.state()
        for snapshot in (run.snapshots.old, run.snapshots.recent):
            if snapshot is not None:
                held = {f"param {n}": t for n, t in snapshot["params"].items()}
                held |= {f"buffer {n}": t for n, t in snapshot["buffers"].items()}
                held |= {f"state {n} {k}": v for n, s in snapshot["state"].items() for k, v in s.items()}
                assert_same(held, kept[snapshot["step"]])
        run.train(5)


def test_they_take_no_more_memory_than_two_copies() -> None:
    run, seen = Run(), set()
    for _ in range(12):
        run.train(5)
        run.take()
        for snapshot in (run.snapshots.old, run.snapshots.recent):
            if snapshot is not None:
                seen |= {t.data_ptr() for t in snapshot["params"].values()}
    # Old, recent, and the one that was let go while both were kept: its memory comes back with the next.
    assert len(seen) <= 3 * len(run.params)


# ---------------------------------------------------------------- which


def at(*steps: int) -> Snapshots:
    """Snapshots taken at these updates."""
    snapshots, p = Snapshots(), nn.Parameter(torch.zeros(1))
    for step in steps:
        snapshots.take(step, {}, {"p": p}, {}, [])
    return snapshots


def test_without_any_there_is_nothing_to_go_back_to() -> None:
    with pytest.raises(RuntimeError, match="no snapshot"):
        Snapshots().choose(10)


@pytest.mark.parametrize(
    ("step", "dead_for", "chosen"),
    [
        (100 + DOUBT, 0, 100),  # old enough: damage would show by now
        (100 + DOUBT - 1, 0, 50),  # may hold the damage already
        (100 + DOUBT, DOUBT + 5, 50),  # the net was dead before it was taken
        (100 + DOUBT + 5, DOUBT + 5, 100),
    ],
)
def test_one_that_may_hold_the_damage_is_left_out(step: int, dead_for: int, chosen: int) -> None:
    snapshots = at(0, 50, 100)
    assert steps_of(snapshots) == (50, 100)
    assert snapshots.choose(step, dead_for)["step"] == chosen


def test_one_that_did_not_help_is_not_gone_back_to_again() -> None:
    snapshots = at(0, 50, 100)
    assert snapshots.choose(130)["step"] == 100
    assert snapshots.choose(131)["step"] == 50
    assert snapshots.choose(132)["step"] == 50
    snapshots.take(140, {}, {"p": nn.Parameter(torch.zeros(1))}, {}, [])
    assert snapshots.choose(140 + DOUBT)["step"] == 140, "a new one may be tried"


def test_the_start_is_there_before_anything_else() -> None:
    assert at(0).choose(3)["step"] == 0


# ---------------------------------------------------------------- what


@pytest.mark.filterwarnings("ignore:the second pass has updated the running statistics")
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
        lambda p: SAM(torch.optim.Adam(p, lr=0.01), rho=0.05),
        lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    ],
)
def test_weights_buffers_and_optimizer_state_are_put_back_and_groups_are_not(make: Any) -> None:
    run = Run(make).train(3)
    run.take()
    kept = run.state()
    run.train(7)
    run.optimizers[0].param_groups[0]["lr"] = 0.123
    assert run.snapshots.old is not None
    run.restore(run.snapshots.old)
    assert_same(run.state(), kept)
    assert run.optimizers[0].param_groups[0]["lr"] == 0.123
    twin = Run(make).train(3)
    twin.optimizers[0].param_groups[0]["lr"] = 0.123
    torch.manual_seed(5)
    run.step = 3
    run.train(4)
    torch.manual_seed(5)
    twin.train(4)
    assert_same(run.state(), twin.state())


def test_everything_is_written_in_place() -> None:
    """A captured graph, or a view, keeps its memory."""
    run = Run().train(3)
    run.take()
    run.train(2)

    def pointers() -> dict[str, int]:
        found = {n: p.data_ptr() for n, p in run.params.items()} | {
            n: b.data_ptr() for n, b in run.buffers.items()
        }
        for n, p in run.params.items():
            found |= {f"{n} {k}": v.data_ptr() for k, v in run.optimizers[0].state[p].items()}
        return found

    before, view = pointers(), run.model[0].weight.detach()[0]
    assert run.snapshots.old is not None
    run.restore(run.snapshots.old)
    assert pointers() == before
    assert torch.equal(view, run.snapshots.old["params"]["0.weight"][0])


def test_a_restored_state_is_a_copy() -> None:
    run = Run().train(3)
    run.take()
    kept = run.state()
    for _ in range(3):
        run.train(4)
        assert run.snapshots.old is not None
        run.restore(run.snapshots.old)
        assert_same(run.state(), kept)


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.Adam(p)]
)
def test_the_start_has_an_empty_optimizer_state(make: Any) -> None:
    run = Run(make)
    run.take()
    kept = run.state()
    run.train(4)
    assert run.snapshots.old is not None
    run.restore(run.snapshots.old)
    assert not run.optimizers[0].state
    assert_same(run.state(), kept)


def test_layers_that_were_frozen_or_added_since_are_left_alone() -> None:
    run = Run(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)).train(3)
    run.model[2].weight.requires_grad_(False)
    run.take()
    first = run.model[0].weight.detach().clone()
    run.model[2].weight.requires_grad_(True)
    run.train(2)
    last = run.model[2].weight.detach().clone()
    assert run.snapshots.old is not None
    run.restore(run.snapshots.old)
    assert torch.equal(run.model[0].weight, first)
    assert torch.equal(run.model[2].weight, last), "it was not in the snapshot"


def test_they_lie_in_the_hosts_memory() -> None:
    run = Run().train(1)
    run.take()
    assert run.snapshots.old is not None
    tensors = [*run.snapshots.old["params"].values(), *run.snapshots.old["buffers"].values()]
    assert all(t.device.type == "cpu" and not t.requires_grad for t in tensors)


def test_they_resume_with_the_run() -> None:
    run = Run()
    for _ in range(4):
        run.take()
        run.train(25)
    run.snapshots.choose(100)
    buffer = io.BytesIO()
    torch.save(run.snapshots.state_dict(), buffer)
    buffer.seek(0)
    resumed = Snapshots()
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert steps_of(resumed) == steps_of(run.snapshots) == (50, 75)
    assert resumed.choose(101)["step"] == run.snapshots.choose(101)["step"] == 50
    for kind in ("params", "buffers"):
        assert_same(resumed.old[kind], run.snapshots.old[kind])
