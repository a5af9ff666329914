"""What the shipped configs promise: the range of their result over seeds, in which the default run lies.

    python benchmarks/configs.py                     # into benchmarks/results/configs.json
    python benchmarks/configs.py --only digits_noisy

Every run goes through the command line with nothing changed but the seed. A config's own seed is among the seeds, and a
test holds the comment on top of each config against this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "configs.json"
KEYS = {"landscape_train": "test/acc last epoch", "language_model": "test/bpc last"}
"""The figure of each recipe: that of the last weights, which nothing has chosen."""

CONFIGS = {
    "landscape_train/digits": 6,
    "landscape_train/digits_noisy": 6,
    "landscape_train/teacher": 6,
    "landscape_train/mnist1d": 6,
    "language_model/stdlib": 3,
}
"""Seeds of each config that makes a promise and needs no download."""


def measure(config: str, seed: int) -> dict[str, float]:
    """One run of a config, in a process of its own."""
    recipe, name = config.split("/")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "optland.cli", "run", recipe, name, f"seed={seed}"]
        command += [f"out={folder}/run", "log.wandb=disabled", "log.console=false"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    return {"last": summary[KEYS[recipe]], "seconds": summary["train/seconds"]}


def summarise(runs: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The range of a config, and its runs by seed."""
    last = [run["last"] for run in runs.values()]
    return {"low": min(last), "high": max(last), "runs": runs}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], help="names of configs")
    arguments = parser.parse_args()
    import torch

    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"benchmark": "configs"}
    table = found.setdefault("configs", {})
    for config, num_seeds in CONFIGS.items():
        if arguments.only and config.split("/")[1] not in arguments.only:
            continue
        runs = {str(seed): measure(config, seed) for seed in range(num_seeds)}
        table[config] = {"figure": KEYS[config.split("/")[0]], **summarise(runs)}
        print(f"{config:<32} {table[config]['low']:.4g} to {table[config]['high']:.4g}", flush=True)
        found["machine"] = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cpus": os.cpu_count(),
        }
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
