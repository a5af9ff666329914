"""Figures of a run. The one place, with the report, that imports matplotlib, and only inside functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optland.config import UserError

__all__ = ["plot_comparison", "plot_grid", "plot_run"]

Row = Mapping[str, Any]

_COLOURS = {"blue": "#2b6cb0", "red": "#c53030", "green": "#2f855a", "grey": "#718096", "orange": "#c05621"}
_BINDING = {
    0.0: ("user", "grey"),
    1.0: ("critical step", "red"),
    2.0: ("relative step", "blue"),
    3.0: ("guard", "orange"),
}

_LETTERS_ALONG_AXIS = 60  # more tick letters than this would run into each other


def plot_run(rows: Sequence[Row], events: Sequence[Row], path: str | Path) -> None:
    """Draw a run's curves: loss, learning rate with its ceiling, sharpness, noise scale with batch, accuracy.

    Vertical lines mark decisions in every panel; values whose estimator did not converge are drawn hollow.

    Args:
        rows: Logged rows, keys of the metric vocabulary.
        events: Logged decisions.
        path: Where to write the PNG.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure = _figure(11, 11)
    axes = figure.subplots(5, 1, sharex=True)
    for axis, draw in zip(axes, (_loss, _rate, _sharpness, _noise, _quality), strict=True):
        draw(axis, rows)
        _decisions(axis, events, labels=axis is axes[0])
        axis.grid(alpha=0.25)
        axis.margins(x=0.01)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    axes[-1].set_xlabel("step")
    figure.savefig(path, dpi=110)


def plot_comparison(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], path: str | Path
) -> None:
    """Draw test accuracy against gradient evaluations, a panel for each data set.

    Args:
        panels: By title, then by name of the method: pairs (gradient evaluations, accuracy in percent).
        path: Where to write the PNG.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure = _figure(11, 4)
    for axis, (title, curves) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for (name, points), colour in zip(curves.items(), ("grey", "orange", "blue"), strict=False):
            axis.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=_COLOURS[colour],
                label=name,
                linewidth=1.6,
            )
        axis.set_title(title)
        axis.set_xlabel("gradient evaluations")
        axis.set_ylabel("test accuracy, %")
        axis.set_ylim(50, 101)
        axis.grid(alpha=0.25)
        axis.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=110)


def plot_grid(
    keys: Sequence[str], values: Mapping[tuple[str, ...], Sequence[float]], name: str, path: str | Path
) -> None:
    """Draw a number over a grid: a dot for every seed, mean and standard deviation for every point.

    The first key runs along the axis; every combination of the others is a line of its own. Points are joined where the
    first key is a number, and not across one that has no value, which gets a cross at the bottom.

    Args:
        keys: The grid's keys; none for a grid of seeds alone.
        values: By the point's values, in the order of ``keys``: the number of every seed; none where all failed.
        name: What the number is.
        path: Where to write the PNG.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure = _figure(8, 4.5)
    axis = figure.subplots()
    ticks = list(dict.fromkeys(point[0] if point else "all seeds" for point in values))
    lines = list(dict.fromkeys(point[1:] for point in values))
    for number, line in enumerate(lines):
        shift = 0.2 * (number - 0.5 * (len(lines) - 1)) / max(len(lines) - 1, 1)
        points = [values.get((tick, *line) if keys else (), ()) for tick in ticks]
        label = ", ".join(f"{key}={value}" for key, value in zip(keys[1:], line, strict=True))
        joined = bool(keys) and all(_is_number(tick) for tick in ticks)
        _grid_line(axis, points, shift, f"C{number}", label, joined)
    crowded = sum(map(len, ticks)) > _LETTERS_ALONG_AXIS
    axis.set_xticks(range(len(ticks)), ticks, rotation=20 * crowded, ha="right" if crowded else "center")
    axis.set_xlim(-0.5, len(ticks) - 0.5)
    axis.set_xlabel(keys[0] if keys else "")
    axis.set_ylabel(name)
    axis.set_title("mean ± standard deviation; a dot is a seed, a cross a point without a value", fontsize=9)
    axis.grid(alpha=0.25)
    if len(lines) > 1:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def _grid_line(
    axis: Any, points: Sequence[Sequence[float]], shift: float, colour: str, label: str, joined: bool
) -> None:
    """One line of a grid's figure: ``points`` are the seeds' numbers at each tick."""
    means, deviations = [], []
    for place, point in enumerate(points):
        seeds = [value for value in point if math.isfinite(value)]
        axis.plot([place + shift - 0.03] * len(seeds), seeds, ".", color=colour, alpha=0.5)
        means.append(statistics.fmean(seeds) if seeds else math.nan)
        # One seed has no deviation; a bar of length 0 would claim one.
        deviations.append(statistics.stdev(seeds) if len(seeds) > 1 else math.nan)
    places = [place + shift for place in range(len(points))]
    empty = [place for place, mean in zip(places, means, strict=True) if math.isnan(mean)]
    axis.plot(empty, [0.03] * len(empty), "x", color=colour, transform=axis.get_xaxis_transform())
    style = "o-" if joined else "o"
    axis.errorbar(places, means, yerr=deviations, fmt=style, color=colour, capsize=4, label=label)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _figure(width: float, height: float) -> Any:
    """An empty figure through the object interface: no display, no change to the user's own pyplot."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("the figure needs matplotlib; run: pip install 'optland[recipes]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _series(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have ``key`` with a finite value."""
    pairs = [(r["step"], r[key]) for r in rows if r.get(key) is not None and math.isfinite(r[key])]
    return [float(s) for s, _ in pairs], [float(v) for _, v in pairs]


def _line(axis: Any, rows: Sequence[Row], key: str, colour: str, label: str, **style: Any) -> None:
    steps, values = _series(rows, key)
    if steps:
        axis.plot(steps, values, color=_COLOURS[colour], label=label, **{"linewidth": 1.4, **style})


def _positive_log(axis: Any) -> None:
    """Logarithmic where there is something positive to show."""
    if any((line.get_ydata() > 0).any() for line in axis.get_lines() if hasattr(line.get_ydata(), "any")):
        axis.set_yscale("log")


def _loss(axis: Any, rows: Sequence[Row]) -> None:
    _line(axis, rows, "train/loss", "grey", "batch", alpha=0.5, linewidth=0.8)
    _line(axis, rows, "train/loss_ema", "blue", "average")
    _line(axis, rows, "val/loss", "green", "validation", marker=".")
    axis.set_ylabel("loss")
    _positive_log(axis)


def _rate(axis: Any, rows: Sequence[Row]) -> None:
    _line(axis, rows, "lr/applied", "grey", "applied", linewidth=0.8)
    for code, (name, colour) in _BINDING.items():
        _line(axis, [r for r in rows if r.get("lr/binding") == code], "lr/applied", colour, f"set by {name}",
              linestyle="", marker=".", markersize=4)  # fmt: skip
    _line(axis, rows, "lr/ceiling", "red", "ceiling", linestyle="--")
    _line(axis, rows, "ctl/lr_would_be", "orange", "would be", linestyle=":")
    axis.set_ylabel("learning rate")
    _positive_log(axis)


def _sharpness(axis: Any, rows: Sequence[Row]) -> None:
    _line(axis, rows, "sam/curvature", "grey", "along the gradient", linewidth=0.8, alpha=0.7)
    _line(axis, rows, "edge/lambda_c", "red", "critical, 2 / eta_c", marker=".", linestyle="-", linewidth=0.8)
    for converged, face, label in (
        (1.0, _COLOURS["blue"], "largest eigenvalue"),
        (0.0, "none", "not converged"),
    ):
        steps, values, errors = _eigenvalues(rows, converged)
        if steps:
            axis.errorbar(steps, values, yerr=errors, color=_COLOURS["blue"], markerfacecolor=face, fmt="o",
                          markersize=5, capsize=2, label=label)  # fmt: skip
    axis.set_ylabel("sharpness")
    _positive_log(axis)


def _eigenvalues(rows: Sequence[Row], converged: float) -> tuple[list[float], list[float], list[float]]:
    """Steps, top eigenvalues and residuals of the probes that did, or did not, converge."""
    chosen = [
        r
        for r in rows
        if r.get("curv/lambda_max") is not None and r.get("curv/lambda_max_converged") == converged
    ]
    return (
        [float(r["step"]) for r in chosen],
        [float(r["curv/lambda_max"]) for r in chosen],
        [float(r["curv/lambda_max_error"]) for r in chosen],
    )


def _noise(axis: Any, rows: Sequence[Row]) -> None:
    _line(axis, rows, "noise/b_simple", "orange", "noise scale", marker=".")
    _line(axis, rows, "noise/b_current", "blue", "batch size", drawstyle="steps-post")
    axis.set_ylabel("samples")
    _positive_log(axis)


def _quality(axis: Any, rows: Sequence[Row]) -> None:
    """Accuracy, or bits per character of a language model."""
    measure, name = (
        ("bpc", "bits per character") if any("val/bpc" in r for r in rows) else ("acc", "accuracy, %")
    )
    _line(axis, rows, f"val/{measure}", "green", "validation", marker=".")
    _line(axis, rows, f"test/{measure}", "blue", "test", marker=".")
    axis.set_ylabel(name)


_EVENTS = {"batch_size": ("batch grew", "green"), "rewind": ("rewind", "red"), "alarm": ("alarm", "grey")}


def _decisions(axis: Any, events: Sequence[Row], *, labels: bool) -> None:
    """A vertical line for each decision; only the first panel names them."""
    named = set()
    for event in events:
        actuator = str(event["actuator"])
        if actuator not in _EVENTS:
            continue
        label, colour = _EVENTS[actuator]
        show = label if labels and actuator not in named else None
        named.add(actuator)
        axis.axvline(float(event["step"]), color=_COLOURS[colour], linewidth=0.8, linestyle=":", label=show)
