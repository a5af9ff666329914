"""Digits with clean and with 40 % random training labels: SGD, tuned SGD, and SAM without a learning rate.

    python benchmarks/demo.py  # seeds 0 and 1, three rates: what `make demo` shows
    python benchmarks/demo.py --seeds 1 2 3 4 5 --result benchmarks/results/demo.json  # seven: the README's figures

Every run goes through the same recipe. SGD (momentum 0.9, 5 % warm-up, cosine) gets as many epochs as make its
gradient evaluations no fewer than those of landscape_train, SAM's second pass and all probes included. Tuned SGD takes,
for each column and data set by itself, the learning rate that is best on the clean validation split, and pays for all
rates: seven with ``--result``, else three, which are those that validation took in 19 of the 20 choices in
benchmarks/results/demo.json (the other took 0.02). "best" is the epoch that early stopping on the clean validation
split would have kept. The constants of landscape_train were chosen on other seeds and splits (100 to 102).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
LEARNING_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
FEW_RATES = (0.01, 0.05, 0.1)
USUAL = 0.1
PLAIN, OURS = "SGD, lr 0.1", "landscape_train"
CONFIGS = {"clean": "digits", "noisy": "digits_noisy"}
TITLES = {"clean": "clean labels", "noisy": "40 % random training labels"}
LANDSCAPE_EPOCHS = 25
SGD_EPOCHS = 53  # 25 epochs x 2 passes x 1.05: SAM's second pass and the whole probe budget, rounded up


@dataclass(frozen=True)
class Job:
    """One run: a data set, a seed, and a learning rate (None for landscape_train)."""

    data: str
    seed: int
    lr: float | None

    @property
    def name(self) -> str:
        return "landscape" if self.lr is None else f"sgd-{self.lr:g}"

    def overrides(self, out: Path) -> list[str]:
        common = [f"seed={self.seed}", f"data.noise_seed={self.seed}", f"out={out}", "log.console=false"]
        if self.lr is None:
            return [*common, f"epochs={LANDSCAPE_EPOCHS}"]
        sgd = ["optimizer.name=sgd", f"optimizer.lr={self.lr}", "schedule=cosine", "pilot.mode=off"]
        return [*common, *sgd, f"epochs={SGD_EPOCHS}", "log.wandb=disabled"]


def run(job: Job, folder: str) -> dict[str, Any]:
    """Run one job through the command line, in a worker process that has loaded torch already."""
    import warnings

    from optland.cli import main
    from optland.log import read_jsonl

    out = Path(folder) / f"{job.data}-{job.name}-seed{job.seed}"
    shutil.rmtree(out, ignore_errors=True)
    said = io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
        code = main(["run", "landscape_train", CONFIGS[job.data], *job.overrides(out)])
    if code != 0:
        raise RuntimeError(f"{job} ended with exit code {code}:\n{said.getvalue()}")
    summary = json.loads((out / "summary.json").read_text())
    curve = [(r["samples"], r["test/acc"]) for r in read_jsonl(out / "log.jsonl") if "test/acc" in r]
    where = [line for line in said.getvalue().splitlines() if line.startswith("wandb run")]
    return {
        "data": job.data, "seed": job.seed, "lr": job.lr,
        "last": summary["test/acc last epoch"], "best": summary["test/acc best by validation"],
        "val_last": summary["val/acc last epoch"], "val_best": summary["val/acc best"],
        "ge": summary["budget/ge"], "probe_frac": summary["budget/probe_frac"],
        "probe_wall_share": summary["budget/probe_ms"] / 1e3 / summary["train/seconds"],
        "seconds": time.perf_counter() - started, "steps": summary["train/steps"],
        "rewinds": summary["ctl/rewinds"], "curve": curve, "out": str(out),
        "wandb": where[0].removeprefix("wandb run").strip() if where else None,
    }  # fmt: skip


def all_runs(seeds: list[int], rates: list[float], folder: Path, workers: int) -> list[dict[str, Any]]:
    """Every run of every seed; the longest start first."""
    jobs = [Job(data, seed, lr) for seed in seeds for data in CONFIGS for lr in (None, *rates)]
    context = multiprocessing.get_context("spawn")
    results = []
    with ProcessPoolExecutor(workers, mp_context=context) as pool, Progress(transient=True) as progress:
        task = progress.add_task("training", total=len(jobs))
        for done in as_completed([pool.submit(run, job, str(folder)) for job in jobs]):
            results.append(done.result())
            progress.advance(task)
    return results


def tuned(num_rates: int) -> str:
    """The name in the result of SGD with the best of so many rates."""
    return f"SGD tuned, {num_rates} lrs"


def in_words(name: str, num_rates: int) -> str:
    """A row's name as the table and the picture show it."""
    shown = {tuned(num_rates): f"SGD, best of {num_rates} rates", OURS: f"{OURS}, no rate"}
    return shown.get(name, name)


def rows_of(runs: list[dict[str, Any]], data: str, seed: int) -> dict[str, dict[str, Any]]:
    """The three rows of the table for one data set and seed."""
    mine = [r for r in runs if r["data"] == data and r["seed"] == seed]
    sgd = [r for r in mine if r["lr"] is not None]
    usual = next(r for r in sgd if r["lr"] == USUAL)
    (landscape,) = (r for r in mine if r["lr"] is None)
    tuned_last, tuned_best = (max(sgd, key=lambda r: r[key]) for key in ("val_last", "val_best"))
    return {
        PLAIN: usual,
        tuned(len(sgd)): {
            "last": tuned_last["last"], "best": tuned_best["best"], "lr_last": tuned_last["lr"],
            "lr_best": tuned_best["lr"], "ge": sum(r["ge"] for r in sgd), "seconds": sum(r["seconds"] for r in sgd),
        },
        OURS: landscape,
    }  # fmt: skip


def summarise(runs: list[dict[str, Any]], seeds: list[int], rates: list[float]) -> dict[str, Any]:
    """Medians over seeds, the spread, and each bar with its figure."""
    table: dict[str, Any] = {}
    for data in CONFIGS:
        per_seed = [rows_of(runs, data, seed) for seed in seeds]
        table[data] = {
            name: {key: _spread([rows[name][key] for rows in per_seed]) for key in ("last", "best", "ge", "seconds")}
            for name in per_seed[0]
        }  # fmt: skip
    ours = [r for r in runs if r["lr"] is None]
    clean, noisy, best = table["clean"], table["noisy"], tuned(len(rates))
    gap = {
        "clean: landscape last - tuned SGD last (bar: at least -0.3)":
            clean[OURS]["last"]["median"] - clean[best]["last"]["median"],
        "clean: landscape last - tuned SGD best (bar: at least -0.3)":
            clean[OURS]["last"]["median"] - clean[best]["best"]["median"],
        "noisy: landscape last - SGD last (bar: at least 10)":
            noisy[OURS]["last"]["median"] - noisy[PLAIN]["last"]["median"],
        "noisy: landscape last - SGD stopped by clean validation (bar: at least -2)":
            noisy[OURS]["last"]["median"] - noisy[PLAIN]["best"]["median"],
        "dead runs of landscape_train (bar: 0)": sum(r["last"] < 20 for r in ours),
        "largest probe share of GE (bar: 0.05)": max(r["probe_frac"] for r in ours),
        "median probe share of wall time": statistics.median(r["probe_wall_share"] for r in ours),
    }  # fmt: skip
    return {"seeds": seeds, "rates": rates, "table": table, "bars": gap}


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def greet(seeds: list[int], rates: list[float], console: Console) -> None:
    """What is about to be trained."""
    num_runs = len(seeds) * len(CONFIGS) * (1 + len(rates))
    console.print(
        f"Digits, 1,797 real images: {num_runs} trainings of a small CNN, with clean labels and with 40 % of the "
        f"training labels at random, {len(seeds)} seed{'s' * (len(seeds) > 1)}. "
        f"SGD gets {len(rates)} learning rates ({', '.join(f'{lr:g}' for lr in rates)}), "
        f"landscape_train (SAM and auto_lr) none.\n",
        highlight=False,
    )


def show(summary: dict[str, Any], console: Console) -> None:
    """The table as people read it."""
    for data, title in TITLES.items():
        table = Table(title=f"digits, {title}: test accuracy, %", title_justify="left", title_style="bold")
        table.add_column("", no_wrap=True)
        for column in ("last epoch", "best epoch", "GE", "time, s"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, row in summary["table"][data].items():
            cells = [_range(row[k], len(summary["seeds"])) for k in ("last", "best")]
            cells += [f"{row['ge']['median']:,.0f}", f"{row['seconds']['median']:.1f}"]
            table.add_row(in_words(name, len(summary["rates"])), *cells)
        console.print(table)
    console.print(f"{reading(summary)}\n", highlight=False)


def reading(summary: dict[str, Any]) -> str:
    """What the columns are, and what the rows come to."""
    clean, noisy = (
        {name: row["last"]["median"] for name, row in summary["table"][data].items()} for data in CONFIGS
    )
    num_rates = len(summary["rates"])
    best = tuned(num_rates)
    times = summary["table"]["noisy"][best]["ge"]["median"] / summary["table"]["noisy"][OURS]["ge"]["median"]
    return (
        f"At the last epoch landscape_train, which is given no rate, is at {clean[OURS]:.1f} with clean labels "
        f"(the best of {num_rates} rates: {clean[best]:.1f}) and at {noisy[OURS]:.1f} with wrong ones (lr 0.1: "
        f"{noisy[PLAIN]:.1f}; the best of {num_rates} rates: {noisy[best]:.1f}, for {times:.0f} times the compute).\n"
        "best epoch: the one that is best on clean validation data; stopping there beats wrong labels too, where there "
        "are such data. GE: forward and backward passes of one sample, second passes and probes included."
    )


def _range(spread: dict[str, float], num_seeds: int) -> str:
    """The figure of one seed, both ends of two, or the median and the range of more."""
    low, middle, high = (f"{spread[key]:.1f}" for key in ("min", "median", "max"))
    if low == high:
        return middle
    return f"{low} to {high}" if num_seeds == 2 else f"{middle} ({low} to {high})"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--rates", type=float, nargs="+",
        help=f"learning rates of SGD, {USUAL} among them (default: seven with --result, else "
        f"{' '.join(f'{lr:g}' for lr in FEW_RATES)})",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the runs")
    parser.add_argument("--result", type=Path, help="write every run and the summary to this JSON file")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    rates = sorted(set(arguments.rates or (LEARNING_RATES if arguments.result else FEW_RATES)))
    if USUAL not in rates:
        parser.error(f"--rates needs {USUAL}, the rate of the row {PLAIN!r}; got {rates}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    greet(arguments.seeds, rates, console)
    runs = all_runs(arguments.seeds, rates, arguments.out, arguments.workers)
    summary = summarise(runs, arguments.seeds, rates)
    show(summary, console)
    picture = arguments.out / "demo.png"
    draw(runs, arguments.seeds, picture)
    ours = next(
        r for r in runs if r["lr"] is None and r["data"] == "noisy" and r["seed"] == arguments.seeds[0]
    )
    console.print(f"picture of the comparison   {picture}", soft_wrap=True)
    console.print(f"picture of one run          {Path(ours['out']) / 'curves.png'}", soft_wrap=True)
    console.print(f"the run in wandb's viewer   {ours['wandb']}", soft_wrap=True)
    program = Path(sys.executable).with_name("optland")
    shown = os.path.relpath(program) if program.exists() else "optland"
    console.print(f"one run in your terminal    {shown} run landscape_train digits", soft_wrap=True)
    for bar, value in summary["bars"].items():
        console.print(f"  {bar}: {value:.3g}", highlight=False) if arguments.result else None
    if arguments.result:
        write(arguments.result, runs, summary)
        shutil.copy(picture, arguments.result.with_suffix(".png"))
    return 0


def draw(runs: list[dict[str, Any]], seeds: list[int], path: Path) -> None:
    """Test accuracy against gradient evaluations, over the seeds; tuned SGD has each seed's best rate."""
    from optland.plots import plot_comparison

    panels = {}
    for data, title in TITLES.items():
        curves: dict[str, list[list[tuple[float, float]]]] = {}
        for seed in seeds:
            mine = {r["lr"]: r for r in runs if r["data"] == data and r["seed"] == seed}
            num_rates = len(mine) - 1
            best = rows_of(runs, data, seed)[tuned(num_rates)]["lr_last"]
            for name, lr in ((PLAIN, USUAL), (tuned(num_rates), best), (OURS, None)):
                curves.setdefault(in_words(name, num_rates), []).append(_curve(mine[lr]))
        panels[title] = curves
    plot_comparison(panels, path)


def _curve(run: dict[str, Any]) -> list[tuple[float, float]]:
    """Gradient evaluations and test accuracy at every evaluation of a run."""
    per_sample = run["ge"] / run["curve"][-1][0]
    return [(samples * per_sample, accuracy) for samples, accuracy in run["curve"]]


def write(path: Path, runs: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """The result file: summary, every run, and where it was measured."""
    import torch

    machine: dict[str, object] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
    }
    machine |= {"processor": platform.machine(), "argv": sys.argv[1:]}
    plain = [{k: v for k, v in r.items() if k not in ("curve", "out", "wandb")} for r in runs]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"benchmark": "demo", "machine": machine, **summary, "runs": plain}, indent=1) + "\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
