"""The pilot in two processes: one decision for all, that of one process that sees the whole batch."""

import io
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from faults.runs import assert_equal
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel
from two_processes import SHARDS, assert_close, assert_replicas_identical, mine, problem, sharded, whole

from optland.log import into
from optland.optim import SAM
from optland.pilot import ByRank, Pilot

STEPS = 40
DAMAGED = 17


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(
    net: nn.Module, model: nn.Module, batch: Any, *, sam: bool, damage: int | None = None, **pilot: Any
) -> Pilot:
    """Steps on one batch; at step ``damage`` the inputs of rank 1 are not a number."""
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    if sam:
        optimizer = SAM(optimizer, rho=0.1, model=model)
    steps = Pilot(optimizer, model, loss_fn, total_steps=STEPS, **pilot)
    for k in range(STEPS):
        bad = damage is not None and k == damage and dist.get_rank() == 1
        x = torch.full_like(batch[0], torch.nan) if bad else batch[0]

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(model, (x, batch[1]))
            loss.backward()
            return loss

        steps.after_step((x, batch[1]), optimizer.step(closure))
    return steps


AUTO, SAFE, GUARDED = ["auto_lr"], ["safe_lr"], ["auto_lr", "spike_guard"]
WATCHING = ["auto_lr", "edge_monitor", "noise_monitor", "curvature_monitor"]


def agreed(policies: list[str], budget: float, *, sam: bool) -> None:
    """The replicas stay equal bit for bit and are where one process is; decisions and costs are the same."""
    what = f"sam {sam} {policies}"
    net, x, y = problem()
    here = mine()
    model = DistributedDataParallel(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pilot = train(net, model, (x[here], y[here]), sam=sam, policies=policies, budget=budget)
    assert_replicas_identical(net, what)
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (pilot.budget.state_dict(), [repr(d) for d in pilot.decisions], pilot.step))
    assert told[0] == told[1], f"{what}: {told[0]}\n{told[1]}"
    assert pilot.step == STEPS, what
    if budget:
        assert pilot.budget.probe_ge > 0, what
    if policies == AUTO:
        alone, x, y = problem()
        train(alone, alone, (x, y), sam=sam, policies=policies, budget=budget)
        assert_close(net, alone, what, tolerance=1e-7)


def piloted(folder: Path) -> None:
    """Each list of policies once."""
    agreed(AUTO, 0.0, sam=True)
    agreed(SAFE, 0.5, sam=False)
    agreed(WATCHING, 1.0, sam=True)
    agreed(GUARDED, 0.0, sam=False)


def piloted_more(folder: Path) -> None:
    """The rest."""
    agreed(AUTO, 0.0, sam=False)
    agreed(SAFE, 0.5, sam=True)
    agreed(WATCHING, 1.0, sam=False)
    agreed(GUARDED, 0.0, sam=True)


def piloted_damage(folder: Path) -> None:
    """A number that is not one on rank 1 makes the update none on both, and the run goes on."""
    net, x, y = problem()
    here = mine()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = DistributedDataParallel(net)
        pilot = train(
            net, model, (x[here], y[here]), sam=False, damage=DAMAGED, policies=["auto_lr"], budget=0.0
        )
    assert_replicas_identical(net, "damage")
    assert (pilot.step, pilot.lost) == (STEPS - 1, 1)
    assert sum("not finite" in str(w.message) for w in said) == 1
    assert all(bool(p.isfinite().all()) for p in net.parameters())
    torch.save(pilot.state_dict(), held := io.BytesIO())
    held.seek(0)
    torch.load(held, weights_only=True)


def piloted_sharded(folder: Path) -> None:
    """FSDP2: where one process is; all ranks decide alike; monitor mode changes no bit; a NaN in one shard's batch."""
    if not SHARDS:
        return
    for sam in (False, True):
        weights = {}
        for mode in ("off", "monitor", "shadow", "control"):
            _, x, y = problem()
            batch = x[mine()], y[mine()]
            model = sharded(problem()[0])
            options = {"policies": WATCHING, "budget": 0.5, "mode": mode}
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                pilot = train(model, model, batch, sam=sam, **options)
            told: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(told, (pilot.budget.state_dict(), [repr(d) for d in pilot.decisions]))
            assert told[0] == told[1], f"{mode}: {told[0]}\n{told[1]}"
            assert (pilot.budget.probe_ge > 0) == (mode != "off"), mode
            weights[mode] = [whole(p) for p in model.parameters()]
        for mode in ("monitor", "shadow"):
            assert all(torch.equal(p, q) for p, q in zip(weights[mode], weights["off"], strict=True)), mode
        model, (alone, x, y) = sharded(problem()[0]), problem()
        options = {"policies": AUTO, "budget": 0.0}
        train(model, model, (x[mine()], y[mine()]), sam=sam, **options)
        train(alone, alone, (x, y), sam=sam, **options)
        assert_close(model, alone, f"sam {sam}", tolerance=1e-7)
    model, (_, x, y) = sharded(problem()[0]), problem()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pilot = train(
            model, model, (x[mine()], y[mine()]), sam=False, damage=DAMAGED, policies=AUTO, budget=0.0
        )
    assert (pilot.step, pilot.lost) == (STEPS - 1, 1)
    assert sum("not finite" in str(w.message) for w in said) == 1
    assert all(bool(whole(p).isfinite().all()) for p in model.parameters())


def reductions(folder: Path) -> None:
    """One all-reduce per update, and one more where a row is logged; nothing else without probes."""
    calls: list[int] = []
    reduce = dist.all_reduce

    def counted(values: Tensor, *rest: Any, **options: Any) -> Any:
        calls.append(values.numel() * values.element_size())
        return reduce(values, *rest, **options)

    net, x, y = problem()
    vars(dist)["all_reduce"] = counted
    try:
        model = DistributedDataParallel(net)
        train(net, model, (x[mine()], y[mine()]), sam=False, policies=AUTO, budget=0.0)
        unlogged = len(calls)
        assert max(calls) < 256, calls
        log = into(lambda row, step: None) if dist.get_rank() == 0 else None  # as users have it
        train(net, model, (x[mine()], y[mine()]), sam=False, policies=AUTO, budget=0.0, log=log, log_every=10)
    finally:
        vars(dist)["all_reduce"] = reduce
    first_look = 5  # at loss_fn, of the batches of both
    assert unlogged == STEPS + first_look, (unlogged, calls)
    assert len(calls) - unlogged <= STEPS + first_look + STEPS // 10 + 5, (len(calls), unlogged)


def rows_are_of_all(folder: Path) -> None:
    """The loss of a row is that of the batches of both ranks, whichever of them logs."""
    rows: list[dict[str, Any]] = []
    net, x, y = problem()
    model = DistributedDataParallel(net)
    log = into(lambda row, step: rows.append(dict(row))) if dist.get_rank() == 0 else None
    batch = x[mine()], y[mine()]
    train(net, model, batch, sam=False, policies=[], budget=0.0, log=log, log_every=1).close()
    alone, x, y = problem()
    expected = []
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_fn(alone, (x, y))
        loss.backward()
        optimizer.step()
        expected.append(float(loss.detach()))
    found = [row["optland/train/loss"] for row in rows if "optland/train/loss" in row]
    if dist.get_rank() == 0:
        assert len(found) == STEPS, rows[:2]
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-9, (found, expected)
    assert len(rows) == (len(found) if dist.get_rank() == 0 else 0)


SAVED = 23


def saved(folder: Path) -> None:
    """Through ``torch.distributed.checkpoint``: the pilot, weights and optimizer go on bit for bit, shards too."""
    for kind in ("ddp", *(["fsdp"] if SHARDS else [])):
        _, x, y = problem()
        batch = x[mine()], y[mine()]

        def begun(kind: str = kind) -> tuple[nn.Module, Any]:
            net = problem()[0]
            model = DistributedDataParallel(net) if kind == "ddp" else sharded(net)
            return model, SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.1, model=model)

        def piloted_by(model: nn.Module, optimizer: Any) -> Pilot:
            return Pilot(optimizer, model, loss_fn, policies=WATCHING, budget=0.5, total_steps=STEPS)

        def steps(model: nn.Module, optimizer: Any, pilot: Pilot, num: int) -> None:
            for _ in range(num):

                def closure() -> Tensor:
                    optimizer.zero_grad()
                    loss = loss_fn(model, batch)  # noqa: B023 - called within the iteration
                    loss.backward()
                    return loss

                pilot.after_step(batch, optimizer.step(closure))  # noqa: B023

        straight = begun()
        first = piloted_by(*straight)
        steps(*straight, first, SAVED)
        straight[1].zero_grad()
        weights, state = get_state_dict(*straight)
        place = folder / f"piloted_{kind}"
        held = {"model": weights, "optimizer": state, "pilot": ByRank(first)}
        state_dict_saver.save(held, checkpoint_id=place)
        steps(*straight, first, STEPS - SAVED)

        fresh = begun()
        with torch.no_grad():
            for p in fresh[0].parameters():
                p.zero_()
        weights, state = get_state_dict(
            *fresh
        )  # makes a step of a new optimizer, which is none of the pilot's
        second = piloted_by(*fresh)
        held = {"model": weights, "optimizer": state, "pilot": ByRank(second)}
        state_dict_loader.load(held, checkpoint_id=place)
        set_state_dict(*fresh, model_state_dict=weights, optim_state_dict=state)
        assert second.step == SAVED
        steps(*fresh, second, STEPS - SAVED)
        for p, q in zip(fresh[0].parameters(), straight[0].parameters(), strict=True):
            assert torch.equal(whole(p), whole(q)), kind
        a, b = first.state_dict(), second.state_dict()
        for found in (a, b):
            del found["seconds"], found["looks"]["seconds"]
        assert_equal(a, b, kind)
        assert first.budget.probe_ge > 0
        assert a["trouble"]["snapshots"]["recent"] is not None, "there are to be shards in it"


CHECKS = {
    f.__name__: f
    for f in (piloted, piloted_more, piloted_damage, piloted_sharded, reductions, rows_are_of_all, saved)
}
