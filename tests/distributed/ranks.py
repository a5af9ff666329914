"""What each of two processes does, with the names of checks and a folder: a fork, or what a launcher has started.

Expected numbers come from one process that sees the whole batch, in float64.
"""

import copy
import faulthandler
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel
from two_processes import (
    METHOD_OPTIONS,
    SHARDS,
    assert_close,
    assert_replicas_identical,
    mine,
    problem,
    sharded,
    whole,
    wrap,
)

from optland.optim.registry import METHODS
from optland.train import PrecisionConfig

STEPS = 5


def by_closures(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, steps: int) -> None:
    """The closure form."""
    for _ in range(steps):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def by_phases(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, steps: int) -> None:
    """The phase form."""
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in optimizer.passes():
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def synced(form: Any, *, view: bool) -> None:
    """One eps for all ranks: the large batch in one process."""
    for name in METHOD_OPTIONS:
        what = f"{name} {form.__name__} bucket view {view}"
        expected, x, y = problem()
        form(expected, alone := wrap(name, expected), x, y, STEPS)
        net, x, y = problem()
        model = DistributedDataParallel(net, gradient_as_bucket_view=view)
        form(model, optimizer := wrap(name, model), x[mine()], y[mine()], STEPS)
        assert_close(net, expected, what)
        assert_replicas_identical(net, what)
        for key in ("sam/rho", "sam/curvature", "update/grad_norm"):
            a, b = (o.telemetry.read().get(key, 0.0) for o in (optimizer, alone))
            assert abs(a - b) < 1e-9 * max(1.0, abs(b)), f"{what}: {key} {a} {b}"


def ddp_synced(folder: Path) -> None:
    """Each form and each way to hold the gradients once."""
    synced(by_closures, view=False)
    synced(by_phases, view=True)


def ddp_synced_more(folder: Path) -> None:
    """The rest."""
    synced(by_closures, view=True)
    synced(by_phases, view=False)


def ddp_per_rank(folder: Path) -> None:
    """An eps for each rank: m-sharpness with the ranks' batches as micro-batches, in one process."""
    for name in ("sam", "asam", "usam", "lesam"):  # hand over h alone
        for view in (False, True):
            expected, x, y = problem()
            alone = wrap(name, expected)
            ranks = dist.get_world_size()
            for _ in range(STEPS):
                alone.zero_grad()
                for xs, ys in zip(x.chunk(ranks), y.chunk(ranks), strict=True):
                    for _ in alone.passes(share=1 / ranks):
                        (nn.functional.cross_entropy(expected(xs), ys) / ranks).backward()
                    alone.accumulate()
                alone.step()
            net, x, y = problem()
            model = DistributedDataParallel(net, gradient_as_bucket_view=view)
            optimizer = wrap(name, model)
            for _ in range(STEPS):
                optimizer.zero_grad()
                with model.no_sync():  # around the forward too, or the gradients are reduced all the same
                    nn.functional.cross_entropy(model(x[mine()]), y[mine()]).backward()
                optimizer.perturb()
                nn.functional.cross_entropy(model(x[mine()]), y[mine()]).backward()
                optimizer.step()
            assert_close(net, expected, f"{name} bucket view {view}")
            assert_replicas_identical(net, name)


def fsdp(folder: Path) -> None:
    """Norms are those of the whole and not of a shard; then the weights are too."""
    for name in METHODS:
        if name == "eigensam" or not SHARDS:
            continue  # needs products with the Hessian of a sharded model
        for form in (by_closures, by_phases) if name == "sam" else (by_closures,):
            expected, x, y = problem()
            form(expected, alone := wrap(name, expected), x, y, STEPS)
            net, x, y = problem()
            model = sharded(net)
            form(model, optimizer := wrap(name, model), x[mine()], y[mine()], STEPS)
            what = f"{name} {form.__name__}"
            assert_close(model, expected, what)
            for key in ("sam/rho", "sam/rho_realised", "sam/curvature", "update/grad_norm"):
                a, b = (o.telemetry.read().get(key, 0.0) for o in (optimizer, alone))
                assert abs(a - b) < 1e-9 * max(1.0, abs(b)), f"{what}: {key} {a} {b}"


def long_runs(folder: Path) -> None:
    """50 steps: DDP is the large batch in one process, and FSDP2 is DDP."""
    for name in ("sam", "asam", "msam", "gsam", "looksam"):
        expected, x, y = problem()
        by_closures(expected, wrap(name, expected), x, y, 50)
        net = problem()[0]
        model = DistributedDataParallel(net)
        by_closures(model, wrap(name, model), x[mine()], y[mine()], 50)
        assert_close(net, expected, f"{name} over 50 steps")
        assert_replicas_identical(net, name)
        if SHARDS:
            shards = sharded(problem()[0])
            by_closures(shards, wrap(name, shards), x[mine()], y[mine()], 50)
            assert_close(shards, net, f"{name} sharded over 50 steps", tolerance=1e-6)


def resume(folder: Path) -> None:
    """Saved and loaded through ``torch.distributed.checkpoint``, before the first step and after some."""
    for kind, name in (
        ("ddp", "sam"),
        ("fsdp", "sam"),
        ("ddp", "looksam"),
        ("fsdp", "looksam"),
        ("fsdp", "fsam"),
    ):
        for before in (0, 2) if kind == "ddp" or SHARDS else ():

            def start(kind: str = kind, name: str = name) -> tuple[nn.Module, Any]:
                net, _, _ = problem()
                model = DistributedDataParallel(net) if kind == "ddp" else sharded(net)
                return model, wrap(name, model)

            _, x, y = problem()
            x, y = x[mine()], y[mine()]
            straight, optimizer = start()
            by_closures(straight, optimizer, x, y, before)
            place = folder / f"{kind}_{name}_{before}"
            optimizer.zero_grad()
            weights, state = get_state_dict(straight, optimizer)
            state_dict_saver.save({"model": weights, "optimizer": state}, checkpoint_id=place)
            by_closures(straight, optimizer, x, y, 3)

            fresh, resumed = start()
            with torch.no_grad():
                for p in fresh.parameters():
                    p.zero_()
            weights, state = get_state_dict(fresh, resumed)
            state_dict_loader.load({"model": weights, "optimizer": state}, checkpoint_id=place)
            set_state_dict(fresh, resumed, model_state_dict=weights, optim_state_dict=state)
            by_closures(fresh, resumed, x, y, 3)
            for p, q in zip(fresh.parameters(), straight.parameters(), strict=True):
                assert torch.equal(whole(p), whole(q)), f"{kind} {name} {before}"
            a, b = (
                [copy.copy(g) | {"params": 0} for g in o.state_dict()["param_groups"]]
                for o in (optimizer, resumed)
            )
            assert a == b, f"{kind} {name} {before}: {a} {b}"


def micro_batches(folder: Path) -> None:
    """Ranks that count differently, cut differently or not at all: the gradient and loss of one process with all.

    Rank 0 has 8 samples with 3 targets, the second half of them without any; rank 1 has 4 samples with 4.
    """

    def counted(m: nn.Module, b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return nn.functional.cross_entropy(m(b[0]), b[1], reduction="sum"), (b[1] >= 0).sum()

    def mean(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(m(b[0]), b[1])

    def gradients(m: nn.Module) -> list[Tensor]:
        return [whole(p.grad).clone() for p in m.parameters()]

    whole_net, x, y = problem()
    y[3:8] = -100
    loss, count = counted(whole_net, (x, y))
    (loss / count).backward()
    expected, together = gradients(whole_net), float(loss.detach() / count)
    halves = []  # what DDP makes of a loss that is a mean: the mean over ranks
    for part in (slice(0, 8), slice(8, 12)):
        whole_net.zero_grad()
        mean(whole_net, (x[part], y[part])).backward()
        halves.append(gradients(whole_net))
    averaged = [sum(pair) / 2 for pair in zip(*halves, strict=True)]
    here = slice(0, 8) if dist.get_rank() == 0 else slice(8, 12)
    batch = (x[here], y[here])
    cuts = ({}, {"accumulation": 2}, {"micro_batch": 3}, {"micro_batch": 4})  # the last cuts on rank 0 alone
    for kind in ("ddp", "ddp with views", *(["fsdp"] if SHARDS else [])):
        for cut in cuts if kind != "fsdp" else cuts[:2]:
            for loss_fn, right in ((counted, expected), (mean, averaged)):
                net = problem()[0]
                if kind == "fsdp":
                    model = sharded(net)
                else:
                    model = DistributedDataParallel(net, gradient_as_bucket_view=kind != "ddp")
                parts = PrecisionConfig(**cut).build(torch.optim.SGD(model.parameters(), lr=0.1))
                what = f"{kind} {cut} {loss_fn.__name__}"
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always")
                    for k in (1, 2):  # added to what stands in .grad
                        found = parts.backward(loss_fn, model, batch)
                        for p, g in zip(model.parameters(), right, strict=True):
                            torch.testing.assert_close(
                                whole(p.grad),
                                k * g,
                                rtol=1e-10,
                                atol=1e-12,
                                msg=lambda m, w=what: f"{w}: {m}",
                            )
                if loss_fn is counted:
                    assert abs(float(found) - together) < 1e-10, what
                no_mean = sum("no mean over samples" in str(w.message) for w in told)
                assert no_mean == (loss_fn is mean and bool(cut)), f"{what}: {[str(w.message) for w in told]}"


CHECKS = {
    f.__name__: f for f in (ddp_synced, ddp_synced_more, ddp_per_rank, fsdp, long_runs, resume, micro_batches)
}


def fork(rank: int, names: str, folder: Path) -> None:
    """A rank that no launcher has started; what it says goes to a file."""
    said = os.open(folder / f"said by {rank}", os.O_WRONLY | os.O_CREAT)
    for number in (1, 2):
        os.dup2(said, number)
    main(names, folder, rank=rank, world_size=2, init_method=f"file://{folder}/group")


def main(names: str, folder: Path, **group: Any) -> None:
    """All checks named, in one group; without options it is that of a launcher."""
    from distributed import looking, no_sync, piloted

    known = CHECKS | no_sync.CHECKS | piloted.CHECKS | looking.CHECKS
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(200, exit=False)  # before the test's own limit: says where a rank waits
    dist.init_process_group("gloo", **group)
    for name in names.split("+"):
        known[name](folder)
    # Everything has been checked. Taking gloo down hangs now and then (PyTorch 2.6, inside destroy_process_group) or
    # aborts ("terminate called without an active exception", 2.14), so the ranks leave without it, together.
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(0.5)  # a rank that is through the barrier must not take the other's connection away
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
