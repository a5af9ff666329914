"""Measure the pilot's wall time: ``auto_lr`` alone, and with probes at the 5 % budget, against the bare loop.

    python benchmarks/pilot_cost.py               # about 25 minutes on one core
    python benchmarks/pilot_cost.py --quick       # a look, two minutes; writes nothing
    python benchmarks/pilot_cost.py --alone --nets mlp gpt --rounds 40      # some of the rows, the others stay

The bare loop and the piloted one train the same net on the same batches in one process, in turns of a few steps, so
that both meet the same machine; a figure is the median over turns. Probes: the first 500 and the last 500 steps of runs
of 500, 1,500 and a million steps (of the last only the first 500 can be had).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from step_loop import seconds_per_step, turns
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
    return seconds_per_step(model, optimizer, loss_fn, batches, pilot)


def in_turns(
    bare: Iterator[float], piloted: Iterator[float], steps: int, turn: int
) -> tuple[list[float], list[float]]:
    """Mean seconds per step of each turn, ``turn`` steps long, of the one and the other."""
    found = turns({"bare": bare, "piloted": piloted}, steps // turn, turn)
    return found["bare"], found["piloted"]


def alone(net: str, base: str, steps: int, turn: int) -> dict[str, Any]:
    """``auto_lr`` without probes."""
    bare = loop(net, base)
    piloted = loop(net, base, policies=["auto_lr"], total_steps=100_000, budget=0.0)
    in_turns(bare, piloted, 4 * turn, turn)
    a, b = in_turns(bare, piloted, steps, turn)
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
    in_turns(bare, loop(net, base), 2 * turn, turn)
    a, b = in_turns(bare, piloted, 500, turn)
    return {
        "net": net,
        "base": base,
        "total": total,
        "part": "last 500" if last else "first 500",
        "bare_ms": 1e3 * statistics.fmean(a),
        "added_share": statistics.fmean(b) / statistics.fmean(a) - 1.0,
        "bound": "8 %",
    }


CELLS = (
    ("mlp", "sgd", 120, 50), ("mlp", "adamw", 120, 50), ("gpt", "adamw", 80, 5), ("gpt", "sgd", 80, 5),
    ("resnet8", "sgd", 48, 5), ("resnet8", "adamw", 48, 5),
)  # fmt: skip
"""Net, base, turns and steps of a turn, of ``auto_lr`` alone."""

PROBED_CELLS = tuple(
    (net, base, total, last)
    for net, base in (("gpt", "adamw"), ("resnet8", "sgd"))
    for total, last in ((500, False), (1500, True), (1_000_000, False))
)
"""Net, base, length of the run and whether its last steps are measured."""


def known() -> dict[str, Any]:
    """The rows that were measured before, by what they are of."""
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    return {_key(row): row for row in found.get("auto_lr", []) + found.get("probes", [])}


def _key(row: dict[str, Any]) -> Any:
    return tuple(row.get(name) for name in ("net", "base", "total", "part"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--rounds", type=int, help="turns of each row of auto_lr alone; their own by default")
    parser.add_argument(
        "--alone", action="store_true", help="auto_lr alone; the rows with probes stay as they are"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = known()
    for net, base, rounds, turn in CELLS:
        if net not in given.nets:
            continue
        rounds = given.rounds or (rounds // 10 if given.quick else rounds)
        row = alone(net, base, rounds * turn, turn)
        rows[_key(row)] = row
        print(f"{net} {base}: {row['bare_ms']:.2f} ms, + {row['added_ms']:.3f} ms ({row['added_share']:.1%})")
    for net, base, total, last in PROBED_CELLS:
        if given.alone or net not in given.nets or (given.quick and total != 500):
            continue
        row = probed(net, base, total, last, 10)
        rows[_key(row)] = row
        print(f"{net} {base}, {row['part']} of {total}: + {row['added_share']:.1%}")
    if not given.quick:
        machine = {"python": platform.python_version(), "torch": torch.__version__, "threads": 1}
        result = {
            "benchmark": "pilot_cost", "machine": machine,
            "auto_lr": [row for row in rows.values() if "added_ms" in row],
            "probes": [row for row in rows.values() if "added_ms" not in row],
        }  # fmt: skip
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
