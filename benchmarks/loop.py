"""Measure the cost of the recipe's loop over a bare PyTorch loop, of checkpoints, and the growth of memory.

    python benchmarks/loop.py                    # throughput and checkpoints, about 10 minutes
    python benchmarks/loop.py --memory 20        # the same, and 20 minutes of a run with the pilot in control

Throughput: `optland run landscape_train` with the pilot off and SGD, against the least that trains the same net on the
same data with the same evaluations. Each is run short and long, and the difference is taken, so that start-up cancels.
Repeats are interleaved; the table shows the ratio of their medians. Checkpoints: the time of one save over the default
interval between two.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from scipy.stats import linregress
from torch.nn import functional as F

from optland.cli import main as optland
from optland.train import DataConfig, ModelConfig, RunConfig, build_model, evaluate, load_data
from optland.train.runs.checkpoint import load_checkpoint, save_checkpoint

SHORT, LONG = 2, 62
NETS = {"cnn": ModelConfig("cnn", width=16), "resnet8": ModelConfig("resnet8", width=16)}


def bare(model_config: ModelConfig, epochs: int) -> float:
    """Seconds of the least that trains this net: shuffle, zero, forward, backward, step, cosine, evaluate."""
    data = load_data(DataConfig())
    torch.manual_seed(0)
    model = build_model(model_config, data.image_shape, data.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * 19)
    started = time.perf_counter()
    for _ in range(epochs):
        for index in torch.randperm(len(data.train_x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train_x[index]), data.train_y[index]).backward()
            optimizer.step()
            scheduler.step()
        evaluate(model, data.val_x, data.val_y)
        evaluate(model, data.test_x, data.test_y)
    return time.perf_counter() - started


def recipe(model_config: ModelConfig, epochs: int, folder: Path, **extra: Any) -> float:
    """Seconds of the recipe on the same work, log, wandb and checkpoints included."""
    out = folder / f"{model_config.name}-{epochs}-{time.time_ns()}"
    settings = {
        "model.name": model_config.name, "model.width": model_config.width, "epochs": epochs, "out": out,
        "optimizer.name": "sgd", "optimizer.lr": 0.05, "schedule": "cosine", "pilot.mode": "off",
        "log.console": "false", **extra,
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        code = optland(["run", "landscape_train", "digits", *(f"{k}={v}" for k, v in settings.items())])
    if code != 0:
        raise RuntimeError(f"the recipe ended with exit code {code}")
    return float(json.loads((out / "summary.json").read_text())["train/seconds"])


def throughput(repeats: int, folder: Path) -> dict[str, Any]:
    """Bare time over recipe time for each net; 1 means that the recipe's loop costs nothing."""
    table = {}
    for name, net in NETS.items():
        bare(net, 1)  # warm
        rows = []
        for _ in range(repeats):
            least = bare(net, LONG) - bare(net, SHORT)
            rows.append({"bare": least, "recipe": recipe(net, LONG, folder) - recipe(net, SHORT, folder)})
        medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        save = save_seconds(net, folder)
        table[name] = {
            "ratio": medians["bare"] / medians["recipe"],
            "bare_ms_a_step": 1e3 * medians["bare"] / (19 * (LONG - SHORT)),
            "save_seconds": save,
            "checkpoint_share": save / RunConfig().checkpoint_seconds,
            "repeats": rows,
        }
    return table


def save_seconds(net: ModelConfig, folder: Path) -> float:
    """Median time of one save of everything, in control mode, whose snapshots are most of it."""
    control = {"optimizer.name": "sam", "pilot.mode": "control", "schedule": "none"}
    recipe(net, 2, folder / "control" / net.name, **control)
    (file,) = (folder / "control" / net.name).rglob("checkpoint.pt")
    parts = load_checkpoint(file)
    taken = []
    for _ in range(9):
        started = time.perf_counter()
        save_checkpoint(folder / "again.pt", parts)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def memory(minutes: float, folder: Path) -> dict[str, Any]:
    """Resident memory of a real run in control mode, sampled every 5 s; the slope after a warm-up, with its error."""
    command = [sys.executable, "-m", "optland.cli", "run", "landscape_train", "digits_noisy", "epochs=100000"]
    command += [f"out={folder / 'memory'}", "log.console=false"]
    samples: list[tuple[float, float]] = []
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        started = time.monotonic()
        while time.monotonic() - started < 60 * minutes:
            time.sleep(5)
            if process.poll() is not None:
                raise RuntimeError(f"the run ended early with exit code {process.returncode}")
            samples.append(((time.monotonic() - started) / 60, resident_mib(process.pid)))
        process.kill()
    steady = [s for s in samples if s[0] > 0.15 * minutes]
    fit = linregress(*zip(*steady, strict=True))
    return {"minutes": minutes, "first_mib": steady[0][1], "last_mib": steady[-1][1], "slope_mib_a_minute": fit.slope,
            "slope_error": fit.stderr, "samples": [[round(t, 2), round(m, 1)] for t, m in samples[::6]]}  # fmt: skip


def resident_mib(pid: int) -> float:
    """Resident set size of a process."""
    for row in Path(f"/proc/{pid}/status").read_text().splitlines():
        if row.startswith("VmRSS"):
            return float(row.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no resident memory")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--memory", type=float, default=0.0, help="minutes of the memory run; 0 leaves it out"
    )
    parser.add_argument("--result", type=Path, default=Path("benchmarks/results/loop.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known: dict[str, Any] = (
        json.loads(arguments.result.read_text()) if arguments.result.exists() else {"benchmark": "loop"}
    )
    with tempfile.TemporaryDirectory() as folder:
        if arguments.repeats:
            known["throughput"] = throughput(arguments.repeats, Path(folder))
            for name, row in known["throughput"].items():
                print(
                    f"{name}: {row['ratio']:.3f} of a bare loop (bar 0.97), checkpoints {row['checkpoint_share']:.2%}"
                )
        if arguments.memory:
            known["memory"] = memory(arguments.memory, Path(folder))
            row = known["memory"]
            print(f"memory: {row['slope_mib_a_minute']:.3f} +- {row['slope_error']:.3f} MiB per minute")
    known["machine"] = {"torch": torch.__version__, "cpus": os.cpu_count()}
    arguments.result.write_text(json.dumps(known, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
