"""Figures of runs, comparisons, grids, and of the curvature at the end of a run."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optland.plots.figure import COLOURS, figure, save

if TYPE_CHECKING:
    from optland.curvature.eigen.spectrum import Spectrum
    from optland.curvature.points.portrait import Portrait
    from optland.curvature.stochastic.density import Density
    from optland.curvature.stochastic.trace import Trace

__all__ = ["plot_comparison", "plot_portrait", "plot_run"]

Row = Mapping[str, Any]
Curve = Sequence[tuple[float, float]]

_BINDING = {
    0.0: ("user", "grey"),
    1.0: ("critical step", "red"),
    2.0: ("relative step", "blue"),
    3.0: ("guard", "orange"),
}


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
    page = figure(11, 11)
    axes = page.subplots(5, 1, sharex=True)
    for axis, draw in zip(axes, (_loss, _rate, _sharpness, _noise, _quality), strict=True):
        draw(axis, rows)
        _decisions(axis, events, labels=axis is axes[0])
        axis.grid(alpha=0.25)
        axis.margins(x=0.01)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    axes[-1].set_xlabel("step")
    save(page, path)


def plot_comparison(panels: Mapping[str, Mapping[str, Sequence[Curve]]], path: str | Path) -> None:
    """Draw test accuracy against gradient evaluations, a panel for each data set.

    A line is the mean over the runs of a method, which are evaluated at the same points; the band is their range.

    Args:
        panels: By title, then by name of the method: for every run, pairs (gradient evaluations, accuracy in percent).
        path: Where to write the PNG.

    Raises:
        UserError: matplotlib is not installed.
    """
    page = figure(max(7.0, 5.5 * len(panels)), 4)
    colours = ("grey", "orange", "blue", "green", "red")
    for axis, (title, methods) in zip(
        page.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        shown: list[float] = []
        for number, (name, runs) in enumerate(methods.items()):
            colour = COLOURS[colours[number % len(colours)]]
            points = [list(zip(*together, strict=True)) for together in zip(*runs, strict=False)]
            cost = [statistics.fmean(spent) for spent, _ in points]
            mean = [statistics.fmean(reached) for _, reached in points]
            axis.plot(cost, mean, ".-", color=colour, label=name, linewidth=1.6, markersize=4)
            low, high = ([edge(reached) for _, reached in points] for edge in (min, max))
            axis.fill_between(cost, low, high, color=colour, alpha=0.15, linewidth=0)
            shown += low[len(low) // 4 :] + high[len(high) // 4 :]
        # The first epochs are alike and would squeeze what is to be compared.
        axis.set_ylim(max(-1.0, min(shown, default=0.0) - 2.0), min(101.0, max(shown, default=100.0) + 2.0))
        axis.set_title(title)
        axis.set_xlabel("gradient evaluations")
        axis.set_ylabel("test accuracy, %")
        axis.grid(alpha=0.25)
        axis.legend(loc="lower right", frameon=False, fontsize=9)
    save(page, path)


def plot_portrait(portrait: Portrait, path: str | Path, *, title: str = "", verdict: str = "") -> None:
    """Draw the curvature at a point: density with outliers as spikes, extreme eigenvalues, trace by layer, verdict.

    A spike is as high as its kernel would be, so that it and the curve share one unit. What did not converge is hollow.

    Args:
        portrait: The point.
        path: Where to write the PNG.
        title: What was measured, and on what.
        verdict: Sentences to set below.

    Raises:
        UserError: matplotlib is not installed.
    """
    page = figure(12, 9.5)
    above, below = page.subfigures(2, 1)  # apart, so that long names of layers leave the upper row its width
    upper = [["density", "density", "values"]] if portrait.density is not None else [["values"]]
    axes = above.subplot_mosaic(upper)
    axes |= below.subplot_mosaic([["layers", "text"]], width_ratios=[1.6, 1])
    if portrait.density is not None:
        _density(axes["density"], portrait.density)
    _extremes(axes["values"], portrait.spectrum)
    _layers(axes["layers"], portrait.trace)
    axes["text"].axis("off")
    long = len(verdict) > _LETTERS_OF_VERDICT
    axes["text"].text(0.0, 1.0, textwrap.fill(verdict, 66 if long else 52), va="top", fontsize=8 if long else 10,
                      transform=axes["text"].transAxes)  # fmt: skip
    page.suptitle(title)
    save(page, path)


_LETTERS_OF_VERDICT = 1100  # more than this would run out of the figure

_FAR = 3.0  # outliers beyond this many widths of the bulk would squeeze it into a line


def _density(axis: Any, density: Density) -> None:
    """The smoothed bulk with its error, and every outlier by itself."""
    curve, outliers = density.curve(), density.outliers
    peak = float(curve.value.max(initial=0.0))
    heights = [spike.mass.value / (curve.sigma * math.sqrt(2 * math.pi)) for spike in outliers]
    shown = [height for height in [peak, *heights] if height > 0 and math.isfinite(height)]
    bottom = min([height / 10 for height in shown] + [1e-4 * peak or 1e-4])
    axis.semilogy(curve.grid, curve.value.clip(bottom / 10), color=COLOURS["blue"], label="bulk")
    low, high = (curve.value - curve.error).clip(bottom / 10), (curve.value + curve.error).clip(bottom / 10)
    axis.fill_between(
        curve.grid, low, high, color=COLOURS["blue"], alpha=0.2, linewidth=0, label="standard error"
    )
    places = [spike.value.value for spike in outliers]
    axis.vlines(places, bottom, heights, color=COLOURS["red"], linewidth=1)
    axis.plot(places, heights, "o", color=COLOURS["red"], markersize=4, label="outliers" if places else None)
    axis.axvline(0.0, color=COLOURS["grey"], linewidth=0.8, linestyle=":")
    axis.set_ylim(bottom, 3 * max(shown, default=1.0))
    bulk = float(abs(curve.grid).max(initial=0.0))
    if places and max(map(abs, places)) > _FAR * bulk > 0:
        axis.set_xscale("symlog", linthresh=bulk, linscale=2)
        axis.set_xlim(1.3 * min(curve.grid[0], *places), 1.3 * max(curve.grid[-1], *places))
        axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel(f"eigenvalue{', logarithmic beyond the bulk' if axis.get_xscale() == 'symlog' else ''}")
    axis.set_ylabel("density")
    axis.set_title(f"density of {density.d} eigenvalues", fontsize=10)
    axis.legend(frameon=False, fontsize=9)
    axis.grid(alpha=0.25)


def _extremes(axis: Any, spectrum: Spectrum) -> None:
    """The eigenvalues at both ends with their residuals, largest on the left."""
    for place, value in enumerate(spectrum.values):
        face = COLOURS["blue"] if value.converged else "none"
        bar = value.error if math.isfinite(value.error) else 0.0
        axis.errorbar([place], [value.value], yerr=bar, fmt="o", color=COLOURS["blue"], markerfacecolor=face,
                      markersize=7, capsize=3)  # fmt: skip
        axis.annotate(f"{value.value:.3g}", (place, value.value + bar), xytext=(0, 7),
                      textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
    count, top = len(spectrum.values), spectrum.num_top
    names = [f"top {i + 1}" if i < top else f"low {count - i}" for i in range(count)]
    axis.set_xticks(range(count), names, rotation=45 if count > 4 else 0, fontsize=9)
    axis.set_xlim(-0.6, count - 0.4)
    axis.margins(y=0.18)
    axis.axhline(0.0, color=COLOURS["grey"], linewidth=0.8, linestyle=":")
    axis.set_title("extreme eigenvalues, bar: residual", fontsize=10)
    axis.set_xlabel("" if spectrum.converged else "hollow: NOT CONVERGED")
    axis.grid(alpha=0.25)


_LAYERS_SHOWN = 24  # more bars than this cannot be read


def _layers(axis: Any, trace: Trace) -> None:
    """The trace of every layer with its standard error, in the model's order; of many, those of the largest trace."""
    largest = sorted(trace.per_layer, key=lambda name: -abs(trace.per_layer[name].value))[:_LAYERS_SHOWN]
    names = [name for name in trace.per_layer if name in largest]
    parts = [trace.per_layer[name] for name in names]
    errors = [part.error if math.isfinite(part.error) else 0.0 for part in parts]
    faces = [COLOURS["green"] if part.converged else "none" for part in parts]
    axis.barh(range(len(names)), [part.value for part in parts], xerr=errors, color=faces, capsize=3,
              edgecolor=COLOURS["green"], ecolor=COLOURS["grey"])  # fmt: skip
    axis.set_yticks(range(len(names)), [name if len(name) < 44 else f"...{name[-40:]}" for name in names],
                    fontsize=8)  # fmt: skip
    axis.invert_yaxis()
    axis.axvline(0.0, color=COLOURS["grey"], linewidth=0.8, linestyle=":")
    total, left = trace.total, len(trace.per_layer) - len(names)
    state = "" if total.converged else ", NOT CONVERGED"
    axis.set_title(f"trace by layer, in all {total.value:.4g} ± {total.error:.2g}{state}", fontsize=10)
    rest = f"; {left} smaller ones left out" if left else ""
    axis.set_xlabel(f"trace (hollow: not known to a tenth{rest})")
    axis.grid(alpha=0.25, axis="x")


def _series(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have ``key`` with a finite value."""
    pairs = [(r["step"], r[key]) for r in rows if r.get(key) is not None and math.isfinite(r[key])]
    return [float(s) for s, _ in pairs], [float(v) for _, v in pairs]


def _line(axis: Any, rows: Sequence[Row], key: str, colour: str, label: str, **style: Any) -> None:
    steps, values = _series(rows, key)
    if steps:
        axis.plot(steps, values, color=COLOURS[colour], label=label, **{"linewidth": 1.4, **style})


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
        (1.0, COLOURS["blue"], "largest eigenvalue"),
        (0.0, "none", "not converged"),
    ):
        steps, values, errors = _eigenvalues(rows, converged)
        if steps:
            axis.errorbar(steps, values, yerr=errors, color=COLOURS["blue"], markerfacecolor=face, fmt="o",
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
        axis.axvline(float(event["step"]), color=COLOURS[colour], linewidth=0.8, linestyle=":", label=show)
