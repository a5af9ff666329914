"""Measure what the doctor takes of a run's wall time: the live rules of the pilot, and a watch with them.

    python benchmarks/doctor_cost.py           # on an idle machine, about three minutes on one core
    python benchmarks/doctor_cost.py --quick   # a look; writes nothing

The time inside the doctor's own calls is added up and held against that of the whole run, both from one clock: a
difference of two runs would not show a share this small. What measures is counted as the doctor's.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pilot_cost import gpt, mlp, resnet8
from step_loop import seconds_per_step

from optland.doctor import watch
from optland.doctor.watching import Watch
from optland.log import NullLogger
from optland.pilot import Pilot
from optland.pilot.live import Live

RESULT = Path(__file__).resolve().parent / "results" / "doctor_cost.json"
ROWS: dict[str, tuple[Callable[[], Any], int, int]] = {
    "mlp": (mlp, 400, 5), "mlp, a longer run": (mlp, 4000, 1), "gpt": (gpt, 400, 1), "resnet8": (resnet8, 400, 1),
}  # fmt: skip
"""Net, updates, and runs, of which the middle one counts; a run of the larger nets takes most of a minute."""

QUICK = 60

CALLS = (
    (Live, ("begin", "gradients", "measured", "news", "row", "told")),
    (Watch, ("_forward", "_backward", "_step", "after_step")),
)
"""Everything of the doctor that runs in a loop."""


class Clock:
    """Seconds inside the doctor; a call inside another counts once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def inside(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return call(*args, **kwargs)
            begun, self._depth = time.perf_counter(), 1
            try:
                return call(*args, **kwargs)
            finally:
                self._depth = 0
                self.seconds += time.perf_counter() - begun

        return inside


@contextmanager
def on_the_clock() -> Iterator[Clock]:
    """The doctor's calls, timed."""
    clock = Clock()
    kept = [(owner, name, getattr(owner, name)) for owner, names in CALLS for name in names]
    for owner, name, call in kept:
        setattr(owner, name, clock.timed(call))
    try:
        yield clock
    finally:
        for owner, name, call in kept:
            setattr(owner, name, call)


class Rows(NullLogger):
    """Takes rows, so that they are made."""


def measured(make: Callable[[], Any], updates: int, *, watched: bool) -> dict[str, float]:
    """One run under a pilot that looks at the default budget, with or without a watch."""
    torch.manual_seed(0)
    net, batches, loss_fn = make()
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    with on_the_clock() as clock:
        doctor = watch(net, optimizer, batches, total_steps=updates) if watched else None
        pilot = Pilot(
            optimizer,
            net,
            loss_fn,
            policies=[],
            mode="monitor",
            total_steps=updates,
            log=Rows(),
            watch=doctor,
        )
        side = seconds_per_step(net, optimizer, loss_fn, batches, pilot)
        whole = sum(next(side) for _ in range(updates))
        pilot.close()
        if doctor is not None:
            doctor.close()
    return {"share": clock.seconds / whole, "ms_per_update": 1e3 * whole / updates}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    nets: dict[str, Any] = {}
    for name, (make, updates, repeats) in ROWS.items():
        measured(make, 20, watched=True)  # what is loaded at the first call is no cost of a run
        updates, repeats = (QUICK, 1) if options.quick else (updates, repeats)
        nets[name] = {"updates": updates, "runs": repeats}
        for how in ("rules", "watched"):
            rows = [measured(make, updates, watched=how == "watched") for _ in range(repeats)]
            nets[name][how] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        print(name, nets[name], flush=True)
    result = {"benchmark": "doctor_cost", "torch": torch.__version__, "bar": 0.01, "nets": nets}
    if not options.quick:
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
