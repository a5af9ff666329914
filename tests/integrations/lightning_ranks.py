"""What each of two processes does under Lightning; the expected numbers are those of one process with all samples."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist
from integrations.lightning_runs import BATCH, Net, apart, dataset, net, plain, trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Subset
from two_processes import assert_close, assert_replicas_identical

from optland.integrations.lightning import PilotCallback

RANK = int(os.environ.get("RANK", 0))
TABLE = [("sam", 1), ("sam", 4), ("asam", 4), ("msam", 4), ("looksam", 4)]


def whole() -> list[Any]:
    """Batches of both processes together."""
    return list(DataLoader(dataset(), 2 * BATCH))


def mine() -> DataLoader[Any]:
    """This process's half of each."""
    kept = [i for i in range(len(dataset())) if i // BATCH % 2 == RANK]
    return DataLoader(Subset(dataset(), kept), BATCH)


def fit(module: Any, max_steps: int = 20, **options: Any) -> Any:
    made = trainer(
        max_steps, **{"devices": 2, "strategy": "ddp", "use_distributed_sampler": False, **options}
    )
    made.fit(module, mine())
    return made


def ddp(folder: Path) -> None:
    for method, accumulation in TABLE:
        module, other = Net(method), net()
        made = fit(module, accumulate_grad_batches=accumulation, gradient_clip_val=0.3)
        plain(
            method,
            other,
            whole(),
            accumulation=accumulation,
            clip=lambda params: clip_grad_norm_(params, 0.3),
        )
        assert made.global_step == 20
        assert_close(module.net, other, f"{method} {accumulation}")
        assert_replicas_identical(module.net, method)


def resume(folder: Path) -> None:
    whole_run = Net("looksam")
    fit(whole_run, -1, max_epochs=4, accumulate_grad_batches=3)
    first = fit(Net("looksam"), -1, max_epochs=2, accumulate_grad_batches=3)
    first.save_checkpoint(folder / "half.ckpt")
    resumed = Net("looksam")
    made = trainer(
        -1, devices=2, strategy="ddp", use_distributed_sampler=False, max_epochs=4, accumulate_grad_batches=3
    )
    made.fit(resumed, mine(), ckpt_path=folder / "half.ckpt")
    assert apart(whole_run.net, resumed.net) == 0.0


def pilot(folder: Path) -> None:
    free = Net()
    fit(free, accumulate_grad_batches=2)
    for mode in ("monitor", "control"):
        callback = PilotCallback(policies=["auto_lr"], mode=mode, budget=1.0)
        module = Net()
        fit(module, accumulate_grad_batches=2, callbacks=[callback])
        assert_replicas_identical(module.net, mode)
        assert callback.pilot is not None
        assert callback.pilot.step == 20
        assert (apart(module.net, free.net) == 0.0) == (mode == "monitor")


class Sharded(Net):
    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        fully_shard(self.net[0], mesh=mesh)
        fully_shard(self.net, mesh=mesh)


def fsdp(folder: Path) -> None:
    for method, accumulation in TABLE:
        module, other = Sharded(method), net()
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        fit(module, strategy=strategy, accumulate_grad_batches=accumulation, gradient_clip_val=0.3)
        plain(
            method,
            other,
            whole(),
            accumulation=accumulation,
            clip=lambda params: clip_grad_norm_(params, 0.3),
        )
        assert_close(module.net, other, f"{method} {accumulation}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in sys.argv[1].split("+"):
        {"ddp": ddp, "resume": resume, "pilot": pilot, "fsdp": fsdp}[name](Path(sys.argv[2]))
    if dist.is_initialized():
        dist.destroy_process_group()
