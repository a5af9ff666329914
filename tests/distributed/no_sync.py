"""Steps under DistributedDataParallel's ``no_sync()``: replicas stay equal bit for bit, or all ranks refuse the step.

Expected numbers are those of one process that goes through all ranks' micro-batches, each with its own eps.
"""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import (
    SAMPLES,
    SHARDS,
    assert_close,
    assert_replicas_identical,
    mine,
    problem,
    sharded,
    wrap,
)

from optland import Objective
from optland.optim.registry import METHODS

PARTS = 3
STEPS = 3


def parts_of(rank: int) -> list[slice]:
    """The micro-batches of a rank."""
    size = SAMPLES // dist.get_world_size() // PARTS
    start = rank * size * PARTS
    return [slice(start + k * size, start + (k + 1) * size) for k in range(PARTS)]


def closure_of(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, share: float):
    """Zeroes, forward and backward of one micro-batch."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = share * nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def accumulate(form: str, model: nn.Module, optimizer, x: Tensor, y: Tensor, share: float) -> None:
    """One micro-batch with an eps of its own."""
    if form == "closures":
        optimizer.accumulate(closure_of(model, optimizer, x, y, share), share=share)
        return
    optimizer.zero_grad()
    for _ in optimizer.passes(share=share):
        (share * nn.functional.cross_entropy(model(x), y)).backward()
    optimizer.accumulate()


def alone(name: str, *, last_is_shared: bool, steps: int = STEPS, **options) -> nn.Module:
    """One process; the last micro-batches of all ranks have one eps where their gradients are reduced."""
    net, x, y = problem()
    optimizer = wrap(name, net, **options)
    ranks = dist.get_world_size()
    for _ in range(steps):
        for k in range(PARTS):
            pieces = [parts_of(rank)[k] for rank in range(ranks)]
            if last_is_shared and k == PARTS - 1:
                joint = torch.cat([torch.arange(SAMPLES)[piece] for piece in pieces])
                accumulate("closures", net, optimizer, x[joint], y[joint], 1 / PARTS)
                continue
            for piece in pieces:
                accumulate("closures", net, optimizer, x[piece], y[piece], 1 / PARTS / ranks)
        optimizer.step()
    return net


def without_model(name: str, params, **options):
    """The method over SGD, which is not told the model."""
    return METHODS[name](torch.optim.SGD(params, lr=0.1, momentum=0.9), **{"rho": 0.2, **options})


def accumulated(names: tuple[str, ...], views: tuple[bool, ...]) -> None:
    """No synchronisation but in the last micro-batch, as one accumulates with DDP; or none at all."""
    for name in names:
        for last_is_shared in (True, False):
            expected = alone(name, last_is_shared=last_is_shared)
            for form in ("closures", "phases"):
                for view in views:
                    net, x, y = problem()
                    model = DistributedDataParallel(net, gradient_as_bucket_view=view)
                    optimizer = wrap(name, model)
                    for _ in range(STEPS):
                        for k, piece in enumerate(parts_of(dist.get_rank())):
                            synced = last_is_shared and k == PARTS - 1
                            with contextlib.nullcontext() if synced else model.no_sync():
                                accumulate(form, model, optimizer, x[piece], y[piece], 1 / PARTS)
                        optimizer.step()
                    what = f"{name} {form} view {view} last shared {last_is_shared}"
                    assert_close(net, expected, what)
                    assert_replicas_identical(net, what)


def found() -> None:
    """The wrapper is found without ``model=``, and where that is the net inside, made before or after the optimizer."""
    expected = alone("sam", last_is_shared=True)
    for how in ("after", "before", "inside"):
        net, x, y = problem()
        model = DistributedDataParallel(net) if how == "after" else None
        optimizer = without_model("sam", net.parameters(), **({"model": net} if how == "inside" else {}))
        model = model or DistributedDataParallel(net)
        for _ in range(STEPS):
            for k, piece in enumerate(parts_of(dist.get_rank())):
                with contextlib.nullcontext() if k == PARTS - 1 else model.no_sync():
                    accumulate("closures", model, optimizer, x[piece], y[piece], 1 / PARTS)
            optimizer.step()
        assert_close(net, expected, how)
        assert_replicas_identical(net, how)


def whole_steps(names: tuple[str, ...]) -> None:
    """All of a step under ``no_sync()``: an eps for each rank, and one reduction of ours; gates that count close it."""
    ranks = dist.get_world_size()
    for name in names:
        for gate in (None, "every(2)"):
            for form in ("closures", "phases"):
                expected, x, y = problem()
                optimizer = wrap(name, expected, gate=gate)
                for _ in range(STEPS):
                    for xs, ys in zip(x.chunk(ranks), y.chunk(ranks), strict=True):
                        accumulate("closures", expected, optimizer, xs, ys, 1 / ranks)
                    optimizer.step()
                net, x, y = problem()
                model = DistributedDataParallel(net)
                optimizer = wrap(name, model, gate=gate)
                x, y = x[mine()], y[mine()]
                for _ in range(STEPS):
                    with model.no_sync():
                        if form == "closures":
                            optimizer.step(closure_of(model, optimizer, x, y, 1.0))
                        else:
                            optimizer.zero_grad()
                            for _ in optimizer.passes():
                                nn.functional.cross_entropy(model(x), y).backward()
                            optimizer.step()
                what = f"{name} {form} gate {gate}"
                assert_close(net, expected, what)
                assert_replicas_identical(net, what)


def step_with_pass_one_apart(model: nn.Module, optimizer, x: Tensor, y: Tensor) -> None:
    """A pass one of this rank alone, all others synchronised."""
    optimizer.zero_grad()
    for number in optimizer.passes():
        with model.no_sync() if number == 0 else contextlib.nullcontext():
            nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def refused() -> None:
    """What would make replicas differ for good, on every rank and with the weights where they were."""
    for name, options, says in (
        ("fsam", {}, "remembers"),
        ("looksam", {}, "remembers"),
        ("sam", {"gate": "large_gradient(100)"}, "asks for its length"),
        ("wsam", {}, "one pass ran under no_sync"),
        ("gsam", {}, "one pass ran under no_sync"),
        ("crsam", {}, "one pass ran under no_sync"),
    ):
        for told in (True, False):
            net, x, y = problem()
            model = DistributedDataParallel(net)
            make = wrap if told else lambda n, m, **o: without_model(n, m.parameters(), **o)
            optimizer = make(name, model, **options)
            before = [p.detach().clone() for p in net.parameters()]
            with pytest.raises(RuntimeError, match=says):
                step_with_pass_one_apart(model, optimizer, x[mine()], y[mine()])
            assert not optimizer.is_perturbed
            assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True)), name
            optimizer.zero_grad()
            optimizer.step(closure_of(model, optimizer, x[mine()], y[mine()], 1.0))
            assert_replicas_identical(net, name)


def one_rank_is_not_finite() -> None:
    """A NaN on one rank alone: all take the step, or none does."""
    for poisoned, all_apart, skipped in (
        ("one", False, 0.0),  # of its own ascent: that rank does not climb, and h is finite
        ("two", False, 1.0),
        ("both", False, 1.0),
        ("both", True, 1.0),
    ):
        net, x, y = problem()
        model = DistributedDataParallel(net)
        optimizer = wrap("sam", model)
        clean = x[mine()]
        bad = torch.full_like(clean, torch.nan) if dist.get_rank() else clean
        before = [p.detach().clone() for p in net.parameters()]
        for number in optimizer.passes():
            with model.no_sync() if number == 0 or all_apart else contextlib.nullcontext():
                batch = bad if poisoned == "both" or poisoned == ("one", "two")[number] else clean
                nn.functional.cross_entropy(model(batch), y[mine()]).backward()
        optimizer.step()
        what = f"NaN in pass {poisoned}, all apart {all_apart}"
        assert_replicas_identical(net, what)
        assert optimizer.telemetry.read()["sam/skipped"] == skipped, what
        moved = not all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))
        assert moved == (skipped == 0.0), what


def scaled() -> None:
    """A GradScaler sees one overflow on all ranks, or on none."""
    net, x, y = problem()
    model = DistributedDataParallel(net)
    optimizer = wrap("sam", model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(3):
        batch = x[mine()]
        if step == 1 and dist.get_rank() == 1:
            batch = torch.full_like(batch, torch.inf)
        optimizer.zero_grad()
        with model.no_sync():
            for _ in optimizer.passes(loss_scale=scaler.get_scale()):
                scaler.scale(nn.functional.cross_entropy(model(batch), y[mine()])).backward()
        optimizer.restore()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == (4.0 if step == 0 else 2.0)
        assert_replicas_identical(net, f"scaled step {step}")


class Branches(nn.Module):
    """Two layers, of which a rank uses one or both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second, self.third = (nn.Linear(4, 3).double() for _ in range(3))

    def forward(self, x: Tensor, both: bool) -> Tensor:
        """The third is used by nobody."""
        return self.first(x) + self.second(x) if both else self.first(x)


def unused() -> None:
    """A layer that one rank has not used counts as zero there, one that none has used gets no gradient."""
    net = Branches()
    model = DistributedDataParallel(net, find_unused_parameters=True)
    optimizer = without_model("sam", net.parameters(), model=model, rho=0.0)
    _, x, y = problem()
    both = dist.get_rank() == 0

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[mine()], both), y[mine()])
        loss.backward()
        return loss

    with model.no_sync():
        optimizer.step(closure)
    assert_replicas_identical(net, "unused")
    expected = Branches()
    for rank in range(2):
        here = slice(rank * SAMPLES // 2, (rank + 1) * SAMPLES // 2)
        (nn.functional.cross_entropy(expected(x[here], rank == 0), y[here]) / 2).backward()
    for p, q in zip(net.parameters(), expected.parameters(), strict=True):
        if q.grad is None:
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-14)


def kept_back() -> None:
    """FSDP2 keeps gradients back until it synchronises; a closure has nothing to work with then."""
    if not SHARDS:
        return
    net, x, y = problem()
    model = sharded(net)
    optimizer = wrap("sam", model)
    model.set_requires_gradient_sync(False)
    closure = closure_of(model, optimizer, x[mine()], y[mine()], 1.0)
    for call in (optimizer.step, optimizer.accumulate):
        with pytest.raises(RuntimeError, match="set_requires_gradient_sync"):
            call(closure)
    assert not optimizer.is_perturbed


def no_sync(folder: Path) -> None:
    """What costs little."""
    accumulated(("sam",), (False,))
    found()
    refused()
    one_rank_is_not_finite()


def no_sync_more(folder: Path) -> None:
    """The rest."""
    accumulated(("asam", "usam", "wsam", "gsam", "crsam", "msam"), (False, True))
    whole_steps(("sam", "wsam", "gsam", "crsam", "msam"))
    scaled()
    unused()
    kept_back()


LONG = 200
EACH = 2
"""Samples of a micro-batch in a long run."""


def long_step(way: str, model: nn.Module, optimizer: Any, pieces: list[tuple[Tensor, Tensor]]) -> None:
    """One update: in one piece or in four, without synchronisation wherever that is possible, or nowhere."""
    apart, last = way.endswith("no_sync"), len(pieces) - 1
    whole = apart and len(pieces) == 1  # then nothing is left to synchronise: the engine does it
    optimizer.zero_grad()
    for _ in optimizer.passes():
        for k, (x, y) in enumerate(pieces):
            with model.no_sync() if whole or (apart and k < last) else contextlib.nullcontext():
                (nn.functional.cross_entropy(model(x), y) / len(pieces)).backward()
    optimizer.step()


def batch_loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


WAYS = {"1": 1, "1 no_sync": 1, "4": 4, "4 no_sync": 4}
"""Accumulation of each way."""


def replicas(way: str, half: int, folder: Path) -> None:
    """200 steps of half of the methods in one way, in float32: equal bit for bit, or refused on both ranks."""
    refused: dict[str, str] = {}
    for name in list(METHODS)[half::2]:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        model = DistributedDataParallel(net)
        draw = torch.Generator().manual_seed(7 + dist.get_rank())
        options: dict[str, Any] = {}
        if name == "eigensam":  # its direction is that of the curvature on the samples of both
            fixed = torch.randn(8, 4, generator=draw), torch.randint(3, (8,), generator=draw)
            options["objective"] = Objective(model, batch_loss, [fixed])
        optimizer = wrap(name, model, **options)
        before = [p.detach().clone() for p in net.parameters()]
        try:
            for _ in range(LONG):
                x = torch.randn(WAYS[way], EACH, 4, generator=draw)
                y = torch.randint(3, (WAYS[way], EACH), generator=draw)
                long_step(way, model, optimizer, list(zip(x, y, strict=True)))
        except RuntimeError as error:
            refused[name] = str(error)
        moved = [not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
        if name in refused:
            assert not any(moved), name
            continue
        assert all(bool(p.isfinite().all()) for p in net.parameters()), name
        assert all(moved), name
        assert_replicas_identical(net, f"{name} {way}")
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, set(refused))
    expected = REMEMBERING & set(list(METHODS)[half::2]) if way == "1 no_sync" else set()
    assert told[0] == told[1] == expected, (told, refused)
    assert all("no_sync" in words or "remembers" in words for words in refused.values()), refused


REMEMBERING = {"eigensam", "fsam", "looksam", "sparse_sam", "vasso"}
"""What remembers something of pass one, and is refused in updates that synchronise nothing."""

CHECKS: dict[str, Callable[[Path], None]] = {f.__name__: f for f in (no_sync, no_sync_more)}
CHECKS |= {
    f"replicas {way}, half {half}": functools.partial(replicas, way, half) for way in WAYS for half in (0, 1)
}
