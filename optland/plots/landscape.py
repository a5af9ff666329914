"""Pictures of slices, paths, rays, sharpness and minima, each registered with ``plot`` by its type."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from optland.landscape import (
    Connection,
    Damage,
    EffectiveDimension,
    MinimaComparison,
    PathLoss,
    Rays,
    Sharpness,
    Slice,
)
from optland.landscape.correlation import RankCorrelation
from optland.landscape.minima import Minimum
from optland.landscape.rate import RateSensitivity
from optland.landscape.trajectory import TrajectoryPlane
from optland.plots.figure import COLOURS, figure, fitted, save, tidy_depth
from optland.plots.result import plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot"]


@plot.register(Slice)
def _(result: Slice, path: str | Path | None = None, *, title: str = "") -> Figure:
    draw = _line if len(result.coordinates) == 1 else _plane
    return draw(result, path, title)


def _line(found: Slice, path: str | Path | None, title: str) -> Figure:
    page = figure(7.5, 4.2)
    axis = page.subplots()
    x = found.weight_units[0].tolist()
    for (name, values), colour in zip(found.surfaces.items(), COLOURS.values(), strict=False):
        axis.plot(x, values.tolist(), color=colour, linewidth=1.8, label=name)
    axis.axvline(0.0, color=COLOURS["grey"], linewidth=0.8)
    axis.set_xlabel(f"distance along the {found.directions[0].kind} direction, in units of |w|")
    axis.set_ylabel("loss")
    page.suptitle(fitted(page, title or _stamp(found), size=10), fontsize=10)
    axis.grid(alpha=0.25)
    if len(found.surfaces) > 1:
        axis.legend(frameon=False)
    return save(page, path)


def _plane(found: Slice, path: str | Path | None, title: str) -> Figure:
    """The surface in three dimensions, and as a map with the centre and the markers."""
    page = figure(12, 5)
    rows, columns = found.weight_units
    z = found.loss
    shown = torch.where(torch.isfinite(z), z, torch.full_like(z, math.nan))
    grid_x, grid_y = torch.meshgrid(rows, columns, indexing="ij")
    surface = page.add_subplot(1, 2, 1, projection="3d")
    surface.plot_surface(
        grid_x.numpy(), grid_y.numpy(), shown.numpy(), cmap="viridis", linewidth=0, alpha=0.95
    )
    surface.set_zlabel("loss")
    tidy_depth(surface)
    flat = page.add_subplot(1, 2, 2)
    levels, norm = _levels(shown)
    lines = flat.contourf(
        grid_x.numpy(), grid_y.numpy(), shown.numpy(), levels=levels, norm=norm, cmap="viridis"
    )
    flat.contour(
        grid_x.numpy(), grid_y.numpy(), shown.numpy(), levels=levels[::2], colors="white", linewidths=0.4
    )
    page.colorbar(lines, ax=flat, label="loss", format="%.3g")
    unit = [
        float(w[-1] / c[-1]) if float(c[-1]) else 1.0
        for w, c in zip(found.weight_units, found.coordinates, strict=True)
    ]
    for name, (a, b) in {"": (0.0, 0.0), **found.markers}.items():
        flat.plot(a * unit[0], b * unit[1], "o", color=COLOURS["red"], markersize=6, markeredgecolor="white")
        flat.annotate(
            name, (a * unit[0], b * unit[1]), textcoords="offset points", xytext=(6, 4), color="white"
        )
    for axis in (surface, flat):
        axis.set_xlabel(f"{found.directions[0].kind}, in units of |w|", fontsize=8)
        axis.set_ylabel(f"{found.directions[1].kind}, in units of |w|", fontsize=8)
    page.suptitle(fitted(page, title or _stamp(found), size=10), fontsize=10)
    return save(page, path)


def _levels(values: torch.Tensor) -> tuple[list[float], Any]:
    """Levels of a map: logarithmic where corners a hundred times as high would leave the basin one colour."""
    from matplotlib.colors import LogNorm, Normalize

    known = values[torch.isfinite(values)]
    low, high = float(known.min()), float(known.max())
    if low > 0 and high > 100 * low:
        return torch.logspace(math.log10(low), math.log10(high), 25).tolist(), LogNorm(low, high)
    high = high if high > low else low + 1e-12 + abs(low) * 1e-6
    return torch.linspace(low, high, 25).tolist(), Normalize(low, high)


def _stamp(found: Slice) -> str:
    words = [f"{found.provenance.data}, {found.provenance.num_samples} samples, {found.provenance.mode} mode"]
    if all(math.isfinite(c) for c in found.curvature):
        words.append("d'Hd = " + ", ".join(f"{c:.3g}" for c in found.curvature))
    if len(found.directions) == 2:
        words.append(f"cosine {found.cosine:.2f}")
    return "; ".join(words)


@plot.register(PathLoss)
def _(result: PathLoss, path: str | Path | None = None, *, title: str = "") -> Figure:
    page = figure(7.5, 4.2)
    axis = page.subplots()
    _path(axis, result, "blue")
    _finish(page, axis, result, title or str(result))
    return save(page, path)


@plot.register(Connection)
def _(result: Connection, path: str | Path | None = None, *, title: str = "") -> Figure:
    page = figure(7.5, 4.2)
    axis = page.subplots()
    _path(axis, result.linear, "red")
    if result.curve is not None:
        _path(axis, result.curve, "blue")
    word = "connected" if result.connected else "not connected"
    _finish(page, axis, result.linear, title or f"{word} at {result.linear.threshold:g} times the larger end")
    return save(page, path)


def _path(axis: Any, found: PathLoss, colour: str) -> None:
    label = f"{found.kind}, barrier {found.above:.3g}"
    axis.plot(found.t.tolist(), found.loss.tolist(), ".-", color=COLOURS[colour], label=label, markersize=4)


def _finish(page: Any, axis: Any, found: PathLoss, title: str) -> None:
    limit, label = found.threshold * max(found.ends), f"{found.threshold:g} times the larger end"
    axis.axhline(limit, color=COLOURS["grey"], linewidth=0.9, linestyle="--", label=label)
    axis.set_xlabel("t, from the first to the second minimum")
    axis.set_ylabel("loss")
    page.suptitle(fitted(page, title), fontsize=9)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)


@plot.register(Rays)
def _(result: Rays, path: str | Path | None = None, *, title: str = "") -> Figure:
    page = figure(5.5, 5)
    axis = page.subplots()
    exact = [ray[2] for ray in result.per_ray]
    for index, (colour, label) in enumerate((("blue", f"h = {result.h:.3g}"), ("orange", "h / 2"))):
        axis.plot(
            exact, [ray[index] for ray in result.per_ray], "o", color=COLOURS[colour], label=label, alpha=0.8
        )
    low, high = min(exact), max(exact)
    axis.plot([low, high], [low, high], color=COLOURS["grey"], linewidth=0.9)
    axis.set_xlabel("Hessian, u'Hu")
    axis.set_ylabel("second difference along the ray")
    axis.set_title(
        title or ("kinks: the rays are not the Hessian's" if result.kinks else "rays and Hessian agree")
    )
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    return save(page, path)


@plot.register(RateSensitivity)
def _(result: RateSensitivity, path: str | Path | None = None, *, title: str = "") -> Figure:
    page = figure(7.5, 4.2)
    axis = page.subplots()
    axis.plot(
        result.rates.tolist(),
        result.losses.tolist(),
        ".-",
        color=COLOURS["blue"],
        label="loss after one step",
    )
    axis.axhline(result.centre, color=COLOURS["grey"], linewidth=0.9, linestyle="--", label="loss before it")
    for rate, colour, name in (
        (result.best, "green", "best rate"),
        (result.critical.value, "red", "critical rate"),
    ):
        if math.isfinite(rate):
            axis.axvline(rate, color=COLOURS[colour], linewidth=1.0, label=f"{name} {rate:.2g}")
    finite = [v for v in result.losses.tolist() if math.isfinite(v)]
    gain = result.centre - min([*finite, result.centre])
    top = result.centre + max(2 * gain, 0.05 * abs(result.centre), 1e-12)
    axis.set_ylim(result.centre - 1.2 * gain - 0.01 * abs(result.centre), top)
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("loss")
    axis.set_title(title or str(result), fontsize=10)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=9)
    return save(page, path)


@plot.register(EffectiveDimension)
def _(result: EffectiveDimension, path: str | Path | None = None, *, title: str = "") -> Figure:
    page = figure(6.5, 4.2)
    axis = page.subplots()
    share = (result.values.cumsum(0) / result.values.sum()).tolist()
    axis.plot(range(1, len(share) + 1), share, ".-", color=COLOURS["blue"])
    axis.axhline(0.9, color=COLOURS["grey"], linewidth=0.9, linestyle="--")
    axis.axvline(result.k90, color=COLOURS["red"], linewidth=0.9)
    axis.set_xlabel("directions")
    axis.set_ylabel("share of the squared length")
    page.suptitle(fitted(page, title or str(result), size=10), fontsize=10)
    axis.grid(alpha=0.25)
    return save(page, path)


@plot.register(dict)
def _(result: Mapping[str, RankCorrelation], path: str | Path | None = None, *, title: str = "") -> Figure:
    """Tau of every measure with its interval, as :func:`optland.landscape.rank_correlations` gives them."""
    strange = [type(r).__name__ for r in result.values() if not isinstance(r, RankCorrelation)]
    if strange or not result:
        raise TypeError(
            f"a mapping to draw holds rank correlations; this one holds {strange[:1] or 'nothing'}; draw its values"
        )
    page = figure(7.5, 1.4 + 0.32 * len(result))
    axis = page.subplots()
    for row, found in enumerate(result.values()):
        axis.plot([found.low, found.high], [row, row], color=COLOURS["grey"], linewidth=1.4)
        axis.plot([found.tau], [row], "o", color=COLOURS["blue"])
    axis.set_yticks(range(len(result)), [f"{name}, p {found.p_value:.2g}" for name, found in result.items()])
    axis.set_ylim(len(result) - 0.5, -0.5)
    axis.set_xlim(-1.05, 1.05)
    axis.axvline(0.0, color=COLOURS["grey"], linewidth=0.8)
    axis.set_xlabel("Kendall's tau with the gap, bar: 95 % interval over resampled runs")
    num_runs = next(iter(result.values())).num_runs
    page.suptitle(
        fitted(page, title or f"do the measures order {num_runs} runs as the gap does?", size=10), fontsize=10
    )
    axis.grid(alpha=0.25, axis="x")
    return save(page, path)


@plot.register(list)
@plot.register(tuple)
def _(result: Sequence[Sharpness], path: str | Path | None = None, *, title: str = "") -> Figure:
    strange = [type(r).__name__ for r in result if not isinstance(r, Sharpness)]
    if strange or not result:
        raise TypeError(f"a list to draw holds sharpness values; this one holds {strange[:1] or 'nothing'}")
    page = figure(8.5, 1.2 + 0.45 * len(result))
    axis = page.subplots()
    errors = [0.0 if math.isnan(r.rise.error) else r.rise.error for r in result]
    places = range(len(result))
    axis.barh(
        places, [r.rise.value for r in result], xerr=errors, color=COLOURS["blue"], ecolor=COLOURS["grey"]
    )
    axis.set_yticks(places, [r.in_words() for r in result], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("rise of the loss")
    page.suptitle(
        fitted(page, title or "rise of the loss around the weights, bar: its error", size=10), fontsize=10
    )
    axis.grid(alpha=0.25, axis="x")
    return save(page, path)


@plot.register(Sharpness)
def _(result: Sharpness, path: str | Path | None = None, *, title: str = "") -> Figure:
    return plot([result], path, title=title)


@plot.register(Minimum)
def _(result: Minimum, path: str | Path | None = None, *, title: str = "") -> Figure:
    return plot(MinimaComparison((result,)), path, title=title)


@plot.register(Damage)
def _(result: Damage, path: str | Path | None = None, *, title: str = "") -> Figure:
    """The rise measured and predicted, and under it each layer's part of the trace form; hollow: not converged."""
    rises = {
        "measured": result.measured, "second order": result.predicted, "from traces": result.trace_form,
        **{f"  {name}": part for name, part in result.per_layer.items()},
    }  # fmt: skip
    page = figure(8.5, 1.4 + 0.32 * len(rises))
    axis = page.subplots()
    for row, (name, e) in enumerate(rises.items()):
        colour = COLOURS["grey" if name.startswith(" ") else "red" if name == "measured" else "blue"]
        error = e.error if math.isfinite(e.error) else 0.0
        if math.isfinite(e.value):
            axis.errorbar([e.value], [row], xerr=[error], fmt="o", color=colour,
                          markerfacecolor=colour if e.converged else "none")  # fmt: skip
    axis.set_yticks(range(len(rises)), list(rises), fontsize=8)
    axis.set_ylim(len(rises) - 0.5, -0.5)
    axis.axvline(0.0, color=COLOURS["grey"], linewidth=0.8)
    axis.set_xlabel(f"rise of the loss of {result.loss:.4g}")
    page.suptitle(
        fitted(page, title or f"{result.verdict}: measured against predicted, bar: its error", size=10),
        fontsize=10,
    )
    axis.grid(alpha=0.25, axis="x")
    return save(page, path)


@plot.register(TrajectoryPlane)
def _(result: TrajectoryPlane, path: str | Path | None = None, *, title: str = "") -> Figure:
    page = figure(6.0, 5.0)
    axis = page.subplots()
    x, y = zip(*result.coordinates, strict=True)
    axis.plot(x, y, ".-", color=COLOURS["blue"])
    axis.plot([x[-1]], [y[-1]], "o", color=COLOURS["red"], markersize=7, label="the last checkpoint")
    for name, axis_share in zip(("x", "y"), result.explained, strict=True):
        getattr(axis, f"set_{name}label")(f"principal component, {axis_share:.0%} of the variance")
    page.suptitle(fitted(page, title or f"path of {len(x)} checkpoints", size=10), fontsize=10)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=9)
    return save(page, path)


@plot.register(MinimaComparison)
def _(result: MinimaComparison, path: str | Path | None = None, *, title: str = "") -> Figure:
    """Every rise of the loss, a bar for each minimum; eigenvalue and trace have another unit and a panel each."""
    measures = list(result.minima[0].rises())
    count = len(result.minima)
    page = figure(9.5, 2.6 + (0.3 + 0.16 * count) * len(measures))
    grid = page.add_gridspec(2, 2, height_ratios=[0.8 + 0.25 * count, (0.3 + 0.16 * count) * len(measures)])
    curvature = (
        ("largest eigenvalue", page.add_subplot(grid[0, 0])),
        ("trace", page.add_subplot(grid[0, 1])),
    )
    for name, axis in curvature:
        _bars(axis, result, [name])
        axis.set_yticks([])
        axis.set_title(name, fontsize=9)
    below = page.add_subplot(grid[1, :])
    _bars(below, result, measures)
    labels = result.minima[0].labels
    below.set_yticks(range(len(measures)), [labels[name] for name in measures], fontsize=8)
    below.set_xlabel("rise of the loss")
    rises = [e.value for m in result.minima for e in m.rises().values()]
    if min(rises) > 0 and max(rises) > 100 * min(rises):  # or the small ones would not be seen
        below.set_xscale("log")
    if count > 1:
        below.legend(frameon=False, fontsize=8)
    words = title or f"how flat: {', '.join(m.name for m in result.minima)}"
    page.suptitle(fitted(page, words, size=10), fontsize=10)
    return save(page, path)


def _bars(axis: Any, result: MinimaComparison, measures: Sequence[str]) -> None:
    high = 0.8 / len(result.minima)
    for i, (minimum, colour) in enumerate(
        zip(result.minima, itertools.cycle(COLOURS.values()), strict=False)
    ):
        found = [minimum.measures()[name] for name in measures]
        errors = [0.0 if math.isnan(e.error) else e.error for e in found]
        places = [row + (i - (len(result.minima) - 1) / 2) * high for row in range(len(measures))]
        axis.barh(
            places,
            [e.value for e in found],
            high,
            xerr=errors,
            color=colour,
            ecolor=COLOURS["grey"],
            label=minimum.name,
        )
    axis.invert_yaxis()
    axis.grid(alpha=0.25, axis="x")
