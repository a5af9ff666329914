"""What each of two processes does in a ``SAMTrainer`` with a ``PilotCallback``."""

import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from integrations import hf
from integrations.plain import assert_weights, weights
from integrations.transformers_ranks import ORDER
from torch import nn
from two_processes import assert_replicas_identical

from optland import SAM, Pilot
from optland.integrations.transformers import PilotCallback

WATCHING = ["auto_lr", "edge_monitor", "noise_monitor", "curvature_monitor"]


def run(
    folder: Path, net: nn.Module, callback: PilotCallback | None, resume: str | None = None, **given: Any
) -> Any:
    """20 updates of 4 samples, 2 in each process, or of 8 in two micro-batches each."""
    trainer = hf.trainer(
        folder, net, callbacks=[] if callback is None else [callback],
        **{"rho": 0.1, "num": ORDER, "per_device_train_batch_size": 2, "lr_scheduler_type": "constant",
           "ddp_find_unused_parameters": False, "max_grad_norm": 1.0, **given},
    )  # fmt: skip
    trainer.train(resume)
    assert isinstance(trainer.model_wrapped, nn.parallel.DistributedDataParallel)
    return trainer


def told(value: Any) -> list[Any]:
    """By both processes."""
    held: list[Any] = [None, None]
    dist.all_gather_object(held, value)
    return held


def control(folder: Path) -> None:
    """With and without accumulation: replicas equal bit for bit, decisions and costs too, rows of the first alone."""
    for accumulation, kind in ((1, hf.MeanNet), (2, hf.Net)):
        net, callback = kind(), PilotCallback(WATCHING, budget=1.0, seed=1)
        trainer = run(
            folder, net, callback, gradient_accumulation_steps=accumulation, num_train_epochs=accumulation
        )
        what, pilot = f"accumulation {accumulation}", callback.pilot
        assert pilot.step == trainer.state.global_step == 20, what
        assert pilot.budget.probe_ge > 0, what
        assert_replicas_identical(net, what)
        first, second = told((pilot.budget.state_dict(), [repr(d) for d in pilot.decisions], pilot.samples))
        assert first == second, what
        assert pilot.samples == 20 * 4 * accumulation, what
        ours = [row for row in trainer.state.log_history if "optland/step" in row]
        theirs = {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}
        assert len(ours) == (20 if dist.get_rank() == 0 else 0), what
        for row in ours if kind is hf.MeanNet else ():  # the trainer's is the mean over both processes too
            assert abs(row["optland/train/loss"] - theirs[row["step"]]) < 1e-5, (
                what,
                row,
                theirs[row["step"]],
            )
        assert any("optland/edge/ratio" in row for row in ours) == bool(ours), what


def as_one_process(folder: Path) -> None:
    """Without probes, the weights are those of a plain loop that has the samples of both processes in one batch."""
    net, expected = hf.Net(), hf.Net()
    run(folder, net, PilotCallback(["auto_lr"], budget=0.0))
    base = torch.optim.AdamW(hf.groups(expected), lr=1e-2)
    torch.optim.lr_scheduler.LambdaLR(
        base, lambda k: 1.0
    )  # so that the pilot sees a schedule, as it does there
    optimizer = SAM(base, rho=0.1, model=expected)
    pilot = Pilot(
        optimizer, expected, lambda model, batch: model(**batch)["loss"], policies=["auto_lr"], budget=0.0,
        total_steps=20, dataset_size=ORDER,
    )  # fmt: skip
    samples = hf.data(ORDER)
    expected.train()
    for i in range(0, ORDER, 4):
        batch, losses = hf.stacked(samples[i : i + 4]), []
        optimizer.zero_grad()
        for _ in optimizer.passes():
            loss = expected(**batch)["loss"]
            loss.backward()
            losses.append(loss.detach())
        optimizer.restore()
        nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
        optimizer.step()
        pilot.after_step(batch, losses[0])
    assert_weights(net, weights(expected), atol=1e-7)


def monitor(folder: Path) -> None:
    """Looking changes no bit."""
    ends = []
    for callback in (None, PilotCallback(WATCHING, mode="monitor", budget=1.0)):
        net = hf.Net(dropout=0.2)
        run(folder, net, callback)
        ends.append(net)
    assert_weights(ends[1], weights(ends[0]), atol=0)


def resumed(folder: Path) -> None:
    """Each process has its state in the checkpoint, and the run goes on bit for bit."""
    straight, net = hf.Net(dropout=0.2), hf.Net(dropout=0.2)
    first, second = (PilotCallback(WATCHING, budget=0.5, seed=1) for _ in range(2))
    run(folder / "a", straight, first, save_strategy="steps", save_steps=13)
    checkpoint = folder / "a/checkpoint-13"
    dist.barrier()
    assert {"pilot_0.pt", "pilot_1.pt"} <= {file.name for file in checkpoint.iterdir()}
    run(folder / "b", net, second, resume=str(checkpoint))
    assert_weights(net, weights(straight), atol=0)
    assert [d.to_dict() for d in second.pilot.decisions] == [d.to_dict() for d in first.pilot.decisions]


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("error", RuntimeWarning)
    place = Path(sys.argv[1])
    for check in (control, as_one_process, monitor, resumed):
        check(place / check.__name__)
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(0.5)  # as in distributed/ranks.py: the ranks leave together, without taking gloo down
    os._exit(0)
