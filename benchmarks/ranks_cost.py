"""Measure what the pilot's agreement of ranks costs: collectives and bytes per update, and time on two processes.

    python benchmarks/ranks_cost.py               # on an idle machine, about ten minutes on two cores
    python benchmarks/ranks_cost.py --count       # the collectives and their bytes alone; writes nothing
    python benchmarks/ranks_cost.py --rounds 2    # a look; writes nothing

Counts do not depend on the machine: every call of ``torch.distributed`` that the pilot makes is noted, with its bytes.
For the time, a loop under DDP whose step takes about 50 ms is trained bare, piloted, and piloted by a pilot of which
each rank is on its own, in turns of a few steps; the pilot's reductions are the difference of the last two, its whole
cost that to the first. A figure is the median over turns, of the slower rank. The bar: reductions at most 3 % of 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from optland.log import into
from optland.pilot import Pilot

RESULT = Path(__file__).parent / "results" / "ranks_cost.json"
ROUNDS, TURN = 60, 10
STEP_MS, BAR = 50.0, 0.03

WATCHING = ["auto_lr", "edge_monitor", "noise_monitor", "curvature_monitor"]
COUNTED: dict[str, dict[str, Any]] = {
    "auto_lr": {"policies": ["auto_lr"], "budget": 0.0},
    "auto_lr, logged": {"policies": ["auto_lr"], "budget": 0.0, "log": True},
    "all probes at 5 %": {"policies": WATCHING, "budget": 0.05, "log": True},
}
COLLECTIVES = ("all_reduce", "broadcast", "all_gather_object", "broadcast_object_list")
STEPS = 200


class Counts:
    """Calls and bytes of the collectives while a block runs; of objects only the calls, whose bytes are pickled."""

    def __init__(self) -> None:
        self.calls = dict.fromkeys(COLLECTIVES, 0)
        self.bytes = 0
        self._before = {name: getattr(dist, name) for name in COLLECTIVES}

    def __enter__(self) -> Counts:
        for name, call in self._before.items():
            setattr(dist, name, self._noted(name, call))
        return self

    def __exit__(self, *error: object) -> None:
        for name, call in self._before.items():
            setattr(dist, name, call)

    def _noted(self, name: str, call: Any) -> Any:
        def noted(first: Any, *rest: Any, **options: Any) -> Any:
            self.calls[name] += 1
            self.bytes += first.numel() * first.element_size() if isinstance(first, Tensor) else 0
            return call(first, *rest, **options)

        return noted


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def problem(width: int, samples: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Eight layers, and this rank's batch."""
    torch.manual_seed(0)
    layers = [nn.Linear(width, width) for _ in range(7)]
    net = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), nn.Linear(width, 10))
    torch.manual_seed(1 + dist.get_rank())
    return net, (torch.randn(samples, width), torch.randint(10, (samples,)))


class Alone(Pilot):
    """A pilot that knows of no other rank: what the agreement costs is what it leaves out."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.host.ranks.size = 1


def loop(kind: str, width: int, samples: int, options: Mapping[str, Any]) -> Iterator[float]:
    """Endless seconds per step."""
    net, batch = problem(width, samples)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    make = {"bare": None, "piloted": Pilot, "on its own": Alone}[kind]
    pilot = make(optimizer, model, loss_fn, total_steps=100_000, **options) if make is not None else None
    while True:
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        if pilot is not None:
            pilot.after_step(batch, loss)
        yield time.perf_counter() - started


def counted(name: str) -> dict[str, Any]:
    """Collectives per update of one kind of pilot; those of DDP itself run below what is noted."""
    options = dict(COUNTED[name])
    options |= {"log": into(lambda row, step: None)} if options.pop("log", False) else {}
    net, batch = problem(16, 32)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    pilot = Pilot(optimizer, model, loss_fn, total_steps=STEPS, **options)
    with Counts() as counts:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            pilot.after_step(batch, loss)
    pilot.close()
    calls = {kind: count / STEPS for kind, count in counts.calls.items() if count}
    return {"pilot": name, "parameters": len(list(net.parameters())), "calls_per_update": calls,
            "bytes_per_update": counts.bytes / STEPS}  # fmt: skip


def width_of_a_step(samples: int) -> int:
    """The width at which a bare step takes about 50 ms, the same on both ranks."""
    width = 256
    while width < 4096:
        bare = loop("bare", width, samples, {})
        found = statistics.median([next(bare) for _ in range(8)][3:])
        slowest = torch.tensor(found, dtype=torch.float64)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        if 1e3 * float(slowest) > 0.8 * STEP_MS:
            break
        width = round(width * 1.25)
    return width


def timed(rounds: int) -> dict[str, Any]:
    """Milliseconds per step of each kind, in turns."""
    samples = 64
    width = width_of_a_step(samples)
    options = COUNTED["auto_lr"]
    sides = {kind: loop(kind, width, samples, options) for kind in ("bare", "on its own", "piloted")}
    found: dict[str, list[float]] = {kind: [] for kind in sides}
    for turn in range(rounds + 2):
        for kind, side in sides.items():
            dist.barrier()
            spent = torch.tensor(sum(next(side) for _ in range(TURN)) / TURN, dtype=torch.float64)
            dist.all_reduce(spent, dist.ReduceOp.MAX)
            if turn >= 2:
                found[kind].append(1e3 * float(spent))
    middle = {kind: statistics.median(times) for kind, times in found.items()}
    added = [a - b for a, b in zip(found["piloted"], found["on its own"], strict=True)]
    reductions = statistics.median(added)
    return {
        "width": width, "turns": rounds, "steps_per_turn": TURN, "ms": middle, "reductions_ms": reductions,
        "share_of_50_ms": reductions / STEP_MS, "bar": BAR,
        "whole_pilot_ms": statistics.median([a - b for a, b in zip(found["piloted"], found["bare"], strict=True)]),
    }  # fmt: skip


def worker(rounds: int, count: bool) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    counts = [counted(name) for name in COUNTED]
    if dist.get_rank() == 0:
        for row in counts:
            print(json.dumps(row))
    time_ = None if count else timed(rounds)
    if dist.get_rank() == 0 and time_ is not None:
        print(json.dumps(time_))
        if rounds >= ROUNDS:
            machine = {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "processes": 2,
                "threads": 1,
            }
            result = {"benchmark": "ranks_cost", "machine": machine, "counts": counts, "time": time_}
            RESULT.write_text(json.dumps(result, indent=1) + "\n")
    dist.barrier()
    sys.stdout.flush()
    time.sleep(0.5)
    os._exit(0)  # taking gloo down may hang


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each kind of loop")
    parser.add_argument("--count", action="store_true", help="count alone")
    arguments = parser.parse_args()
    if "WORLD_SIZE" in os.environ:
        worker(arguments.rounds, arguments.count)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launch, __file__, *sys.argv[1:]], env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
