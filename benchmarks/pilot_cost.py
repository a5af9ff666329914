"""Measure the pilot's wall time: ``auto_lr`` alone, and with probes at the 5 % budget, against the bare loop.

    python benchmarks/pilot_cost.py               # about 25 minutes on one core
    python benchmarks/pilot_cost.py --quick       # a look, two minutes; writes nothing

The bare loop and the piloted one train the same net on the same batches in one process, in turns of a few steps, so
that both meet the same machine; a figure is the median over turns. Probes: the first 500 and the last 500 steps of runs
of 500, 1,500 and a million steps (of the last only the first 500 can be had).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.pilot import Pilot
from optland.train import ModelConfig, TransformerConfig, build_model

RESULT = Path(__file__).parent / "results" / "pilot_cost.json"
PROBED = ("auto_lr", "edge_monitor", "noise_monitor", "curvature_monitor")
BOUNDS = {"mlp": "0.25 ms", "gpt": "3 %", "resnet8": "3 %"}

Batch = tuple[Tensor, Tensor]


def image_loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def text_loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def mlp() -> tuple[nn.Module, list[Batch], Any]:
    """Three layers of 256, batch 64: a step of about 0.7 ms on one core."""
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return net, [(torch.randn(64, 64), torch.randint(10, (64,))) for _ in range(32)], image_loss


def resnet8() -> tuple[nn.Module, list[Batch], Any]:
    """ResNet-8 with BatchNorm on 32 x 32 colour images, batch 64."""
    net = build_model(ModelConfig("resnet8", width=16), (3, 32, 32), 10)
    return net, [(torch.randn(64, 3, 32, 32), torch.randint(10, (64,))) for _ in range(16)], image_loss


def gpt() -> tuple[nn.Module, list[Batch], Any]:
    """Four layers of width 128 with four heads, context 64, 12 sequences."""
    net = TransformerConfig(depth=4, heads=4, width=128).build(vocabulary=65, context=64)
    tokens = [torch.randint(65, (12, 65)) for _ in range(16)]
    return net, [(t[:, :-1], t[:, 1:]) for t in tokens], text_loss


NETS: dict[str, Callable[[], tuple[nn.Module, list[Batch], Any]]] = {
    "mlp": mlp,
    "gpt": gpt,
    "resnet8": resnet8,
}
BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
}


def loop(net: str, base: str, **options: Any) -> Iterator[float]:
    """Endless seconds per step; with ``policies`` under a pilot."""
    torch.manual_seed(0)
    model, batches, loss_fn = NETS[net]()
    optimizer = BASES[base](model.parameters())
    pilot = Pilot(optimizer, model, loss_fn, **options) if options else None
    k = 0
    while True:
        batch = batches[k % len(batches)]
        k += 1
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        if pilot is not None:
            pilot.after_step(batch, loss)
        yield time.perf_counter() - started


def turns(
    bare: Iterator[float], piloted: Iterator[float], steps: int, turn: int
) -> tuple[list[float], list[float]]:
    """Mean seconds per step of each turn, ``turn`` steps long, of the one and the other."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(steps // turn):
        for times, side in zip(found, (bare, piloted), strict=True):
            times.append(sum(next(side) for _ in range(turn)) / turn)
    return found


def alone(net: str, base: str, steps: int, turn: int) -> dict[str, Any]:
    """``auto_lr`` without probes."""
    bare = loop(net, base)
    piloted = loop(net, base, policies=["auto_lr"], total_steps=100_000, budget=0.0)
    turns(bare, piloted, 4 * turn, turn)
    a, b = turns(bare, piloted, steps, turn)
    added = [y - x for x, y in zip(a, b, strict=True)]
    middle = statistics.median(a)
    return {
        "net": net,
        "base": base,
        "bare_ms": 1e3 * middle,
        "added_ms": 1e3 * statistics.median(added),
        "added_share": statistics.median(added) / middle,
        "bound": BOUNDS[net],
        "turns": len(a),
    }


def probed(net: str, base: str, total: int, last: bool, turn: int) -> dict[str, Any]:
    """Everything that probes, at 5 %: mean over 500 steps at the start or at the end of a run of ``total`` steps.

    A mean and not a median: probes come now and then, and all of their cost counts.
    """
    bare = loop(net, base)
    piloted = loop(net, base, policies=list(PROBED), total_steps=total, budget=0.05)
    for _ in range(total - 500 if last else 0):
        next(piloted)
    turns(bare, loop(net, base), 2 * turn, turn)
    a, b = turns(bare, piloted, 500, turn)
    return {
        "net": net,
        "base": base,
        "total": total,
        "part": "last 500" if last else "first 500",
        "bare_ms": 1e3 * statistics.fmean(a),
        "added_share": statistics.fmean(b) / statistics.fmean(a) - 1.0,
        "bound": "8 %",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    without = []
    for net, base, steps, turn in (
        ("mlp", "sgd", 6000, 50), ("mlp", "adamw", 6000, 50), ("gpt", "adamw", 400, 5), ("gpt", "sgd", 400, 5),
        ("resnet8", "sgd", 240, 5), ("resnet8", "adamw", 240, 5),
    ):  # fmt: skip
        without.append(alone(net, base, steps // (10 if quick else 1), turn))
        row = without[-1]
        print(f"{net} {base}: {row['bare_ms']:.2f} ms, + {row['added_ms']:.3f} ms ({row['added_share']:.1%})")
    looking = []
    for net, base in (("gpt", "adamw"), ("resnet8", "sgd")):
        for total, last in ((500, False), (1500, True), (1_000_000, False)):
            if quick and total != 500:
                continue
            looking.append(probed(net, base, total, last, 10))
            row = looking[-1]
            print(f"{net} {base}, {row['part']} of {total}: + {row['added_share']:.1%}")
    if not quick:
        machine = {"python": platform.python_version(), "torch": torch.__version__, "threads": 1}
        result = {"benchmark": "pilot_cost", "machine": machine, "auto_lr": without, "probes": looking}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
