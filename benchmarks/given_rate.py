"""Draw test accuracy against the learning rate that was given, with and without ``auto_lr``.

    python benchmarks/given_rate.py  # benchmarks/results/control_report_runs.jsonl -> docs/pictures/given_rate.png

Every run is one that ``benchmarks/control.py`` made. Without ``auto_lr``: a warm-up and a cosine from the rate given.
With it the rate given is not used: the line is the mean of five seeds, the band their range, and the squares are the
runs that were given 1e-5 and 1e3.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "benchmarks" / "results" / "control_report_runs.jsonl"
PICTURE = ROOT / "docs" / "pictures" / "given_rate.png"
PANELS = {
    ("fashion_cnn", "sgd"): "Fashion-MNIST, CNN, SGD",
    ("fashion_cnn", "adamw"): "Fashion-MNIST, CNN, AdamW",
    ("digits_deep_mlp", "sgd"): "digits, deep MLP, SGD",
}
PLAIN, OURS = "#8a8a8a", "#0072b2"


def runs() -> dict[tuple[str, str], dict[str, list[tuple[float | None, float]]]]:
    """Rate given and test accuracy of every run, by task and optimizer, then by method."""
    found: dict[tuple[str, str], dict[str, list[tuple[float | None, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for line in RUNS.read_text().splitlines():
        run = json.loads(line)
        cell = dict(part.split("=") for part in run["key"].split("/"))
        where = (cell["task"], cell["optimizer"])
        as_usual = cell["steps"] == cell["batch"] == "None" and cell["label_noise"] == "0"
        if where in PANELS and as_usual and cell["method"] in ("tuned", "auto_lr"):
            rate = None if cell["lr"] == "None" else float(cell["lr"])
            found[where][cell["method"]].append((rate, run["test_acc"]))
    return found


def draw(axes: Any, plain: list[tuple[float | None, float]], ours: list[tuple[float | None, float]]) -> None:
    """One panel: a dot per run, and the line of ``auto_lr`` across all rates."""
    by_rate: dict[float, list[float]] = defaultdict(list)
    for rate, accuracy in plain:
        if rate is not None:
            by_rate[rate].append(accuracy)
    rates = sorted(by_rate)
    axes.plot(rates, [statistics.median(by_rate[r]) for r in rates], color=PLAIN, lw=1.2, zorder=2)
    dots = [(r, a) for r in rates for a in by_rate[r]]
    axes.scatter(
        *zip(*dots, strict=True), s=13, color=PLAIN, zorder=3, label="given rate, warm-up and cosine"
    )
    chosen = [accuracy for rate, accuracy in ours if rate is None]
    axes.axhspan(min(chosen), max(chosen), color=OURS, alpha=0.18, lw=0)
    axes.axhline(statistics.mean(chosen), color=OURS, lw=1.6, label="auto_lr, whatever rate is given")
    squares = [(rate, accuracy) for rate, accuracy in ours if rate is not None]
    axes.scatter(*zip(*squares, strict=True), s=26, marker="s", color=OURS, zorder=4)
    axes.set(xscale="log", xlim=(4e-6, 2.5e3), ylim=(0, 103), xlabel="learning rate given")
    axes.grid(alpha=0.25)


def main() -> None:
    mpl.use("Agg")
    found = runs()
    figure, row = plt.subplots(1, len(PANELS), figsize=(10.5, 3.5), sharey=True, layout="constrained")
    for axes, (where, title) in zip(row, PANELS.items(), strict=True):
        draw(axes, found[where]["tuned"], found[where]["auto_lr"])
        axes.set_title(title, fontsize=11)
    row[0].set_ylabel("test accuracy, %")
    row[1].legend(loc="lower center", fontsize=9, frameon=False)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=130, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
