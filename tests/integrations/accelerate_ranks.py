"""What each of two processes does under Accelerate; the expected numbers are those of one process with all samples."""

import os
import sys
import time

import torch
import torch.distributed as dist
from accelerate import Accelerator
from integrations.plain import assert_weights, net_and_data, plain_updates, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from two_processes import assert_replicas_identical

from optland.integrations.accelerate import micro_batches, passes
from optland.optim import SAM, LookSAM

SIZE = 2


def loss_fn(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def check(method, accumulation: int, clip: float, synced: bool) -> None:
    """Every process has every second batch of ``SIZE``; 20 updates."""
    what = f"{method.__name__} accumulation {accumulation} synced {synced}"

    def make():
        net, x, y = net_and_data(20 * accumulation * SIZE * 2)
        base = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        return net, method(base, rho=0.2, model=net), x, y

    alone, optimizer, x, y = make()
    whole = accumulation * SIZE * 2
    plain_updates(
        optimizer,
        [[part] for part in zip(x.split(whole), y.split(whole), strict=True)],
        lambda part: loss_fn(alone, part),
        clip=clip,
    )
    net, optimizer, x, y = make()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    loader = DataLoader(TensorDataset(x, y), SIZE)
    model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    assert isinstance(model, nn.parallel.DistributedDataParallel), what
    reductions = 0

    def count(_, bucket):
        nonlocal reductions
        reductions += 1
        return (
            dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future().then(lambda f: f.value()[0])
        )

    model.register_comm_hook(None, count)
    made = 0
    for batches in micro_batches(loader, accelerator, *(() if synced else (model,))):
        for _ in passes(accelerator, optimizer):
            for batch in batches:
                accelerator.backward(loss_fn(model, batch))
            made += len(batches) if synced else 1
        accelerator.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    assert reductions == made, f"{what}: {reductions} reductions in place of {made}"
    assert_weights(net, weights(alone))
    assert_replicas_identical(net, what)
    accelerator.free_memory()


if __name__ == "__main__":
    torch.set_num_threads(1)
    Accelerator(cpu=True)
    check(SAM, 1, 0.05, synced=False)
    for method in (SAM, LookSAM):
        for synced in (False, True):
            check(method, 4, 0.05, synced)
    # As in distributed/ranks.py: the ranks leave together, without taking gloo down.
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(0.5)
    os._exit(0)
