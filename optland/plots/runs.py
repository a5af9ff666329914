"""Figures of runs and of comparisons."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optland.doctor.spread import QUANTILES, gradient_key
from optland.plots.figure import COLOURS, figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["gradient_bands", "gradient_layers", "plot_comparison", "plot_run", "some_layers"]

Row = Mapping[str, Any]
Curve = Sequence[tuple[float, float]]

_BINDING = {
    0.0: ("user", "grey"),
    1.0: ("critical step", "red"),
    2.0: ("relative step", "blue"),
    3.0: ("guard", "orange"),
}


def plot_run(
    rows: Sequence[Row], events: Sequence[Row], path: str | Path | None = None, *, title: str = ""
) -> Figure:
    """Draw a run's curves: accuracy, loss, learning rate, edge ratio, sharpness, noise scale, gradients by layer.

    Vertical lines mark decisions in every panel; values whose estimator did not converge are drawn hollow. The axis of
    the accuracy shows the later three quarters of the run, where a few points matter. A panel without values is left
    out.

    Args:
        rows: Logged rows, keys of the metric vocabulary.
        events: Logged decisions.
        path: Where to write the picture as well; None writes nothing.
        title: Over the picture; by default the accuracy (or bits per character) that the run ended with, and its best.

    Returns:
        The figure.

    Raises:
        UserError: matplotlib is not installed.
    """
    panels = [
        draw
        for draw, keys in _PANELS.items()
        if any(
            key.partition(" ")[0] in keys and value is not None for row in rows for key, value in row.items()
        )
    ]
    panels = panels or [_loss]
    page = figure(11, 2.2 * len(panels) + 0.6)
    axes = page.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, draw in zip(axes, panels, strict=True):
        draw(axis, rows)
        _decisions(axis, events, labels=axis is axes[0])
        axis.grid(alpha=0.25)
        axis.margins(x=0.01)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    axes[-1].set_xlabel("step")
    page.suptitle(title or _outcome(rows), fontsize=11)
    return save(page, path)


def plot_comparison(
    panels: Mapping[str, Mapping[str, Sequence[Curve]]], path: str | Path | None = None
) -> Figure:
    """Draw test accuracy against gradient evaluations, a panel for each data set.

    A line is the mean over the runs of a method, which are evaluated at the same points; the band is their range.

    Args:
        panels: By title, then by name of the method: for every run, pairs (gradient evaluations, accuracy in percent).
        path: Where to write the picture as well; None writes nothing.

    Returns:
        The figure.

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
        axis.set_ylim(max(-1.0, min(shown, default=0.0) - 2.0), min(100.5, max(shown, default=100.0) + 2.0))
        axis.set_title(title)
        axis.set_xlabel("gradient evaluations")
        axis.set_ylabel("test accuracy, %")
        axis.grid(alpha=0.25)
        axis.legend(loc="lower right", frameon=False, fontsize=9)
    page.suptitle(
        "line: mean over the runs, band: their range" if _several(panels) else "one run each", fontsize=10
    )
    return save(page, path)


def _several(panels: Mapping[str, Mapping[str, Sequence[Curve]]]) -> bool:
    return any(len(runs) > 1 for methods in panels.values() for runs in methods.values())


def _series(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have ``key`` with a finite value.

    Two keys of one row may so have series of different lengths.
    """
    pairs = [(r["step"], r[key]) for r in rows if r.get(key) is not None and math.isfinite(r[key])]
    return [float(s) for s, _ in pairs], [float(v) for _, v in pairs]


def _line(axis: Any, rows: Sequence[Row], key: str, colour: str, label: str, **style: Any) -> None:
    steps, values = _series(rows, key)
    if steps:
        axis.plot(steps, values, color=COLOURS[colour], label=label, **{"linewidth": 1.4, **style})


def _log_where_it_can_be(axis: Any) -> None:
    """Logarithmic where all is positive; linear around zero and logarithmic beyond where some is not."""
    values = [float(v) for line in axis.get_lines() for v in line.get_ydata() if math.isfinite(float(v))]
    if values and min(values) > 0:
        axis.set_yscale("log")
        if max(values) < 10 * min(
            values
        ):  # or powers of ten would be the only figures, and none of them in view
            axis.yaxis.set_major_formatter("{x:.3g}")
            axis.yaxis.set_minor_formatter("{x:.3g}")
            axis.tick_params(axis="y", which="minor", labelsize=8)
    elif sizes := sorted(abs(v) for v in values if v):
        axis.set_yscale("symlog", linthresh=sizes[len(sizes) // 2])
        axis.axhline(0.0, color=COLOURS["grey"], linewidth=0.6)


def _loss(axis: Any, rows: Sequence[Row]) -> None:
    _line(axis, rows, "train/loss", "grey", "training, one batch", alpha=0.5, linewidth=0.8)
    _line(axis, rows, "train/loss_ema", "blue", "training, average of\nthe last batches")
    _line(axis, rows, "val/loss", "green", "validation", marker=".")
    axis.set_ylabel("loss")
    _log_where_it_can_be(axis)


def _rate(axis: Any, rows: Sequence[Row]) -> None:
    moving = [
        r for r in rows if r.get("lr/applied")
    ]  # the 0 that a schedule ends at has no place on a log axis
    _line(axis, moving, "lr/applied", "grey", "of the update", linewidth=0.8)
    for code, (name, colour) in _BINDING.items():
        _line(axis, [r for r in moving if r.get("lr/binding") == code], "lr/applied", colour, f"set by {name}",
              linestyle="", marker=".", markersize=4)  # fmt: skip
    _line(axis, rows, "lr/ceiling", "red", "the most that safe_lr\nallows", linestyle="--")
    _line(axis, rows, "ctl/lr_would_be", "orange", "what control mode\nwould set", linestyle=":")
    axis.set_ylabel("learning rate")
    _log_where_it_can_be(axis)


def _sharpness(axis: Any, rows: Sequence[Row]) -> None:
    _line(
        axis, rows, "sam/curvature", "grey", "curvature along SAM's\nperturbation", linewidth=0.8, alpha=0.7
    )
    _line(axis, rows, "edge/lambda_c", "red", "curvature along the update\n(2 / critical rate)", marker=".",
          linestyle="-", linewidth=0.8)  # fmt: skip
    for converged, face, label in (
        (1.0, COLOURS["blue"], "largest eigenvalue,\nbar: residual"),
        (0.0, "none", "the same, not converged:\na lower bound"),
    ):
        steps, values, errors = _eigenvalues(rows, converged)
        if steps:
            axis.errorbar(steps, values, yerr=errors, color=COLOURS["blue"], markerfacecolor=face, fmt="o",
                          markersize=5, capsize=2, label=label)  # fmt: skip
    axis.set_ylabel("sharpness")
    _log_where_it_can_be(axis)


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


def _edge(axis: Any, rows: Sequence[Row]) -> None:
    _line(axis, rows, "edge/ratio", "grey", "one probe", linestyle="", marker="o", markersize=4)
    _line(axis, rows, "edge/ratio_ema", "blue", "average of the last\nprobes")
    _line(axis, rows, "edge/ratio_precond", "orange", "in Adam's metric", marker=".", linewidth=0.8)
    axis.axhline(1.0, color=COLOURS["red"], linewidth=1.0, linestyle="--", label="the edge")
    axis.set_ylabel("edge ratio")
    _log_where_it_can_be(axis)


def _gradients(axis: Any, rows: Sequence[Row]) -> None:
    """Of the first, a middle and the last layer: the median, a band of half of the entries, and where 5 % are above."""
    chosen = some_layers(rows)
    for layer, colour in zip(chosen, ("red", "green", "blue"), strict=False):
        steps, bands = gradient_bands(rows, layer)
        axis.fill_between(steps, bands[1], bands[3], color=COLOURS[colour], alpha=0.18, linewidth=0)
        axis.plot(steps, bands[4], color=COLOURS[colour], linewidth=0.8, linestyle=":")
        axis.plot(steps, bands[2], color=COLOURS[colour], linewidth=1.2, label=layer)
    axis.set_ylabel("|gradient entries|")
    _log_where_it_can_be(axis)
    bottom, top = _shown(
        [value for layer in chosen for band in gradient_bands(rows, layer)[1] for value in band]
    )
    if top > bottom:
        axis.set_ylim(bottom, top)


def _shown(sizes: Sequence[float]) -> tuple[float, float]:
    """The range of the sizes that are not zero, six powers of ten of them at most."""
    found = [size for size in sizes if size > 0]
    return (max(min(found), 1e-6 * max(found)) / 2, 2 * max(found)) if found else (0.0, 0.0)


def gradient_layers(rows: Sequence[Row]) -> list[str]:
    """The layers whose gradients were logged, in the order of the model.

    Args:
        rows: Logged rows; the quantiles have keys of their own for each layer.

    Example:
        >>> gradient_layers([{"step": 1, "layer/grad_q50 fc1": 0.1, "layer/grad_q50 fc2": 0.2, "train/loss": 1.0}])
        ['fc1', 'fc2']
    """
    found = (key.partition(" ")[2] for row in rows for key in row if key.startswith("layer/grad_q50 "))
    return list(dict.fromkeys(found))


def some_layers(rows: Sequence[Row]) -> list[str]:
    """The first, a middle and the last of them, of few layers all.

    Args:
        rows: Logged rows.
    """
    layers = gradient_layers(rows)
    return list(dict.fromkeys([*layers[:1], *layers[len(layers) // 2 :][:1], *layers[-1:]]))


def gradient_bands(rows: Sequence[Row], layer: str) -> tuple[list[float], list[list[float]]]:
    """Updates, and for each quantile its values.

    Args:
        rows: Logged rows.
        layer: One of :func:`gradient_layers`.

    Returns:
        Steps, and a list for each of :data:`QUANTILES`, of the sizes of the layer's gradient entries; values that are
        not finite are left out.
    """
    series = [_series(rows, gradient_key(layer, q)) for q in QUANTILES]
    return series[0][0], [values for _, values in series]


def _noise(axis: Any, rows: Sequence[Row]) -> None:
    _line(
        axis,
        rows,
        "noise/b_simple",
        "orange",
        "noise scale: the batch at\nwhich noise equals signal",
        marker=".",
    )
    _line(axis, rows, "noise/b_current", "blue", "batch size", drawstyle="steps-post")
    axis.set_ylabel("samples")
    _log_where_it_can_be(axis)


def _quality(axis: Any, rows: Sequence[Row]) -> None:
    """Accuracy, or bits per character of a language model."""
    measure, name = (
        ("bpc", "bits per character") if any("val/bpc" in r for r in rows) else ("acc", "accuracy, %")
    )
    _line(axis, rows, f"val/{measure}", "green", "validation", marker=".")
    _line(axis, rows, f"test/{measure}", "blue", "test", marker=".")
    axis.set_ylabel(name)
    _where_it_matters(axis, [_series(rows, f"{split}/{measure}")[1] for split in ("val", "test")])


def _where_it_matters(axis: Any, curves: Sequence[Sequence[float]]) -> None:
    """The later three quarters of each curve with a margin; the rise at the start would squeeze the rest."""
    shown = [value for curve in curves for value in curve[len(curve) // 4 :]]
    if len(shown) > 4:
        low, high = min(shown), max(shown)
        margin = max(0.08 * (high - low), 0.5 if high > 10 else 0.02)
        axis.set_ylim(low - margin, high + margin)


def _outcome(rows: Sequence[Row]) -> str:
    """What the run came to, from its evaluations."""
    for key, unit, best in (("acc", " %", max), ("bpc", " bits per character", min)):
        judged = [
            row for row in rows if row.get(f"val/{key}") is not None and row.get(f"test/{key}") is not None
        ]
        if judged:
            lower = -1.0 if key == "acc" else 1.0  # of equal evaluations the one with the lower loss
            top = best(judged, key=lambda row: (row[f"val/{key}"], lower * row.get("val/loss", 0.0)))
            return (
                f"test {'accuracy ' if key == 'acc' else ''}{judged[-1][f'test/{key}']:.4g}{unit} at the end, "
                f"{top[f'test/{key}']:.4g}{unit} at step {top['step']}, the best by validation"
            )
    losses = _series(rows, "train/loss")[1]
    return f"training loss {losses[0]:.4g} to {losses[-1]:.4g}" if losses else ""


_PANELS: dict[Callable[[Any, Sequence[Row]], None], tuple[str, ...]] = {
    _quality: ("val/acc", "test/acc", "val/bpc", "test/bpc"),
    _loss: ("train/loss", "train/loss_ema", "val/loss"),
    _rate: ("lr/applied", "lr/ceiling", "ctl/lr_would_be"),
    _edge: ("edge/ratio", "edge/ratio_precond"),
    _sharpness: ("sam/curvature", "edge/lambda_c", "curv/lambda_max"),
    _noise: ("noise/b_simple", "noise/b_current"),
    _gradients: ("layer/grad_q50",),
}
"""Panels in the order of what matters, each with the keys that it draws."""


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
