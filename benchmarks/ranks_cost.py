"""Measure what the pilot's agreement of ranks costs: collectives and bytes per update, and time on two processes.

    python benchmarks/ranks_cost.py               # on an idle machine, about three minutes on two cores
    python benchmarks/ranks_cost.py --rounds 0    # the collectives and their bytes alone, on any machine
    python benchmarks/ranks_cost.py --rounds 2    # a look; writes nothing

Counts do not depend on the machine: every call of ``torch.distributed`` that the pilot makes is noted, with its bytes.
For the time, a loop under DDP whose step takes about 50 ms is trained bare, piloted, and piloted by a pilot of which
each rank is on its own, in turns of a few steps; the pilot's reductions are the difference of the last two, its whole
cost that to the first. A figure is the median over turns, of the slower rank, with its 95 % interval. The bar:
reductions at most 3 % of 50 ms.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sam_cost import interval
from step_loop import Side, mean_of_next, seconds_per_step, turns
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from optland.log import into
from optland.pilot import Pilot

RESULT = Path(__file__).parent / "results" / "ranks_cost.json"
ROUNDS, TURN = 60, 10
STEP_MS, BAR = 50.0, 0.03
LAYERS = 8

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
    """All layers of one width but the last, and this rank's batch."""
    torch.manual_seed(0)
    layers = [nn.Linear(width, width) for _ in range(LAYERS - 1)]
    net = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), nn.Linear(width, 10))
    torch.manual_seed(1 + dist.get_rank())
    return net, (torch.randn(samples, width), torch.randint(10, (samples,)))


class Alone(Pilot):
    """A pilot that knows of no other rank: what the agreement costs is what it leaves out."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.host.ranks.size, self.host.ranks.replicas = 1, None


def piloted(
    width: int, samples: int, kind: type[Pilot] | None, options: Mapping[str, Any]
) -> tuple[Side, Pilot | None]:
    """A loop under DDP, and the pilot that watches it."""
    net, batch = problem(width, samples)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    pilot = None if kind is None else kind(optimizer, model, loss_fn, **options)
    return seconds_per_step(model, optimizer, loss_fn, [batch], pilot), pilot


def counted(name: str) -> dict[str, Any]:
    """Collectives per update of one kind of pilot; those of DDP itself run below what is noted."""
    options = dict(COUNTED[name])
    options |= {"log": into(lambda row, step: None)} if options.pop("log", False) else {}
    side, pilot = piloted(16, 32, Pilot, {"total_steps": STEPS, **options})
    assert pilot is not None
    with Counts() as counts:
        mean_of_next(side, STEPS)
    pilot.close()
    calls = {kind: count / STEPS for kind, count in counts.calls.items() if count}
    return {"pilot": name, "calls_per_update": calls, "bytes_per_update": counts.bytes / STEPS}


def of_the_slower(side: Side, steps: int) -> float:
    """Milliseconds per step of the rank that takes longer; both begin together."""
    dist.barrier()
    spent = torch.tensor(1e3 * mean_of_next(side, steps), dtype=torch.float64)
    dist.all_reduce(spent, dist.ReduceOp.MAX)
    return float(spent)


def width_of_a_step(samples: int) -> int:
    """The width at which a bare step takes about 50 ms, the same on both ranks."""
    width = 256
    while width < 4096:
        bare, _ = piloted(width, samples, None, {})
        of_the_slower(bare, 3)
        if statistics.median([of_the_slower(bare, 1) for _ in range(5)]) > 0.8 * STEP_MS:
            break
        width = round(width * 1.25)
    return width


def timed(rounds: int) -> dict[str, Any]:
    """Milliseconds per step of each kind, in turns, and what the pilot adds with its 95 % interval."""
    samples = 64
    width = width_of_a_step(samples)
    options = {"total_steps": 100_000, **COUNTED["auto_lr"]}
    kinds = {"bare": None, "on its own": Alone, "piloted": Pilot}
    sides = {name: piloted(width, samples, kind, options)[0] for name, kind in kinds.items()}
    with Counts() as counts:
        mean_of_next(sides["on its own"], TURN)
    assert not any(counts.calls.values()), f"a pilot on its own is to reduce nothing: {counts.calls}"
    turns(sides, 2, TURN, of_the_slower)
    found = turns(sides, rounds, TURN, of_the_slower)
    reductions, whole = added(found, "on its own"), added(found, "bare")
    return {
        "width": width, "turns": rounds, "steps_per_turn": TURN,
        "ms": {name: statistics.median(times) for name, times in found.items()},
        "reductions_ms": reductions, "whole_pilot_ms": whole,
        "step_ms": STEP_MS, "share_of_it": reductions["median"] / STEP_MS, "bar": BAR,
    }  # fmt: skip


def added(found: Mapping[str, list[float]], to: str) -> dict[str, float]:
    """What the pilot takes longer per step than another loop in the same turn."""
    differences = [a - b for a, b in zip(found["piloted"], found[to], strict=True)]
    low, high = interval(differences)
    return {"median": statistics.median(differences), "low": low, "high": high}


def kept(counts: list[dict[str, Any]], time_: dict[str, Any] | None) -> None:
    """Write what was found; counts alone leave the time that was measured before."""
    machine = {"python": platform.python_version(), "torch": torch.__version__, "processes": 2, "threads": 1}
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result = {
        "benchmark": "ranks_cost", "machine": machine, "parameters": 2 * LAYERS, "counts": counts,
        "time": before.get("time") if time_ is None else time_,
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def worker(rounds: int) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    counts = [counted(name) for name in COUNTED]
    time_ = timed(rounds) if rounds else None
    if dist.get_rank() == 0:
        print(*map(json.dumps, [*counts, time_]), sep="\n")
        if not 0 < rounds < ROUNDS:
            kept(counts, time_)
    dist.barrier()
    sys.stdout.flush()
    time.sleep(0.5)
    os._exit(0)  # taking gloo down may hang


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="turns of each kind of loop; 0 counts alone"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 0:
        parser.error(f"--rounds: {arguments.rounds} is negative; use {ROUNDS}, or 0 to count alone")
    if "WORLD_SIZE" in os.environ:
        worker(arguments.rounds)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launch, __file__, *sys.argv[1:]], env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
