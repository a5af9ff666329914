"""Decide the claims about landscapes at a dial, and keep every run: the table of docs/results/claims.md.

    python benchmarks/claims.py --minutes 40           # the dial of configs/test_claims/small.yaml
    python benchmarks/claims.py --dial cpu --minutes 480
    python benchmarks/claims.py --only-table           # from the runs that are there

What is finished is a line of a file in benchmarks/results/claims_DIAL; started again, the program goes on with what is
missing. The table is made from what is there, and says how much that is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.table import Work

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def dial_of(name: str) -> Dial:
    """The dial of a configuration of the recipe."""
    found = OmegaConf.load(ROOT / "configs" / "test_claims" / f"{name}.yaml")
    given: dict[str, Any] = {str(key): value for key, value in found.dial.items()}
    return Dial(**{**given, "data": tuple(given["data"])})


def make(work: Work, minutes: float) -> bool:
    """Do what is missing; whether all of it is done."""
    end = time.monotonic() + 60.0 * minutes
    waiting = work.missing()
    for k, piece in enumerate(waiting, 1):
        if time.monotonic() >= end:
            return False
        print(f"{k}/{len(waiting)} ", end="", flush=True)
        work.make(piece)
    return True


def write(work: Work, dial: Dial, path: Path) -> None:
    """The table, with how much of the work it rests on."""
    pieces, missing = work.pieces(), work.missing()
    rows = [row.plain() for row in work.rows()]
    lines = [work.evidence.line(piece[1]) for piece in pieces if isinstance(piece, tuple)]
    found = {
        "dial": {"name": path.stem.removeprefix("claims_"), **asdict(dial)},
        "pieces": len(pieces),
        "missing": len(missing),
        "runs": sum(bool(line) for line in lines),
        "dead": sum(bool(line) and line["dead"] for line in lines),
        "runs_ge": sum(line["facts"]["ge"] for line in lines if line),
        "rows": rows,
    }
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dial", default="small", choices=["smoke", "small", "cpu"])
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--only-table", action="store_true")
    parser.add_argument("--into", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    dial, name = dial_of(arguments.dial), f"claims_{arguments.dial}"
    work = Work(dial, arguments.into / name, watch=lambda line: print(line, flush=True))
    done = arguments.only_table or make(work, arguments.minutes)
    write(work, dial, arguments.into / f"{name}.json")
    return 0 if done else 75


if __name__ == "__main__":
    sys.exit(main())
