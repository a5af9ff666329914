"""Does the end that bears the damage best beat one plain run of equal cost? ``recipes/release.py`` over seeds.

    python benchmarks/release.py --minutes 30       # goes on where it was; half a minute per seed on one core

Every run goes through the command line with nothing changed but the seed. The gain is how much lower the test loss of
the taken end is after the damage than that of the plain run, which had as many gradient evaluations as all ends
together. A config is in the table when all of its seeds are there.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from intervals import interval
from kept import Kept

RESULTS = Path(__file__).resolve().parent / "results"
CONFIGS = {"digits": 5}
"""Seeds of each config, beginning with 1: the config's own seed 0 was looked at when it was written."""


def measure(config: str, seed: int) -> dict[str, Any]:
    """One run, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "optland.cli",
            "run",
            "release",
            config,
            f"seed={seed}",
            f"out={folder}/run",
        ]
        subprocess.run(
            [*command, "log.wandb=disabled", "log.console=false"], check=True, stdout=subprocess.DEVNULL
        )
        found: dict[str, Any] = json.loads(
            (Path(folder) / "run" / "summary.json").read_text(encoding="utf-8")
        )
    return {key: value for key, value in found.items() if key.startswith("release/")}


def table(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Gain after the damage, and the clean loss of what was taken relative to the plain run's."""
    clean = [
        r[f"release/{r['release/taken']}: test loss"] / r["release/one long run: test loss"] - 1 for r in runs
    ]
    return {
        "gain": interval([r["release/gain"] for r in runs]), "clean": interval(clean),
        "base": statistics.fmean(r["release/one long run: test loss after"] for r in runs),
        "taken": [r["release/taken"] for r in runs],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no run is begun after these")
    end = time.monotonic() + 60 * parser.parse_args().minutes
    kept, whole = Kept(RESULTS / "release_runs.jsonl"), {}
    for config, seeds in CONFIGS.items():
        runs = []
        for seed in range(1, seeds + 1):
            if f"{config} {seed}" not in kept.done and time.monotonic() >= end:
                break
            runs.append(kept.of(f"{config} {seed}", lambda c=config, s=seed: measure(c, s)))  # type: ignore[misc]
            print(config, seed, runs[-1]["release/taken"], runs[-1]["release/gain"], flush=True)
        if len(runs) == seeds:
            whole[config] = table(runs)
    (RESULTS / "release.json").write_text(json.dumps({"configs": whole}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
