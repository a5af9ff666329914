"""What each of two processes does in a ``SAMTrainer``; expected numbers are those of one process with all samples."""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from integrations import hf
from integrations.plain import assert_weights, weights
from torch import nn
from two_processes import assert_replicas_identical

ORDER = 80
"""Samples: 20 updates of 4, or 5 of 16; micro-batches of 2 here."""


def dealt(num: int, accumulation: int) -> list[int]:
    """The samples of the updates: batches of 2 go to the ranks in turn, so an update is what lies together."""
    return list(range(num - num % (4 * accumulation)))


def check(folder: Path, method: str, accumulation: int, counted: bool) -> None:
    """20 updates, clipped; items are counted over both processes."""
    what = f"{method} accumulation {accumulation} counted {counted}"
    kind = hf.Net if counted else hf.MeanNet
    samples = [hf.data(ORDER)[i] for i in dealt(ORDER, accumulation)]
    epochs = accumulation
    expected, net = kind(), kind()
    losses, norms = hf.plain(
        expected,
        method,
        whole=4 * accumulation,
        counted=counted,
        clip=0.05,
        epochs=epochs,
        samples=samples,
        micro=2,
    )
    trainer = hf.trainer(
        folder, net, method=method, rho=0.1, samples=samples, num_train_epochs=epochs, max_grad_norm=0.05,
        gradient_accumulation_steps=accumulation, per_device_train_batch_size=2, ddp_find_unused_parameters=False,
    )  # fmt: skip
    trainer.train()
    assert isinstance(trainer.model_wrapped, nn.parallel.DistributedDataParallel), what
    assert trainer.state.global_step == len(losses) == 20, (
        f"{what}: {trainer.state.global_step} {len(losses)}"
    )
    assert_weights(net, weights(expected))
    assert_replicas_identical(net, what)
    if dist.get_rank() == 0:
        logged = [row for row in trainer.state.log_history if "loss" in row]
        for row, loss, norm in zip(logged, losses, norms, strict=True):
            assert abs(row["loss"] - loss) < 1e-6 * loss, f"{what}: loss {row['loss']} {loss}"
            assert abs(row["grad_norm"] - norm) < 1e-9 * norm, f"{what}: norm {row['grad_norm']} {norm}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for method, accumulation, counted in (
        ("sam", 1, True),
        ("sam", 4, True),
        ("sam", 4, False),
        ("looksam", 4, True),
    ):
        check(folder, method, accumulation, counted)
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(0.5)  # as in distributed/ranks.py: the ranks leave together, without taking gloo down
    os._exit(0)
