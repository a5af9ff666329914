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
from optland.plots.figure import COLOURS, figure, fitted, rows, save, spans_decades, tidy_depth
from optland.plots.result import one_panel, plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot"]


@one_panel()
def _line(axis: Any, found: Slice) -> str:
    x, several = found.weight_units[0].tolist(), len(found.surfaces) > 1
    for (name, values), colour in zip(found.surfaces.items(), COLOURS.values(), strict=False):
        axis.plot(x, values.tolist(), color=colour, linewidth=1.8, label=name if several else None)
    axis.axvline(0.0, color=COLOURS["grey"], linewidth=0.8)
    axis.set_xlabel(f"distance along the {found.directions[0].kind} direction, in units of |w|")
    axis.set_ylabel("loss")
    return _stamp(found)


@plot.register(Slice)
def _(result: Slice, path: str | Path | None = None, *, title: str = "") -> Figure:
    return _line(result, path, title=title) if len(result.coordinates) == 1 else _plane(result, path, title)


def _plane(found: Slice, path: str | Path | None, title: str) -> Figure:
    """The surface in three dimensions, and as a map with the centre and the markers."""
    page = figure(12, 5)
    across, up = found.weight_units
    z = found.loss
    shown = torch.where(torch.isfinite(z), z, torch.full_like(z, math.nan))
    grid_x, grid_y = torch.meshgrid(across, up, indexing="ij")
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
    along, above = found.lengths
    for name, (a, b) in {"": (0.0, 0.0), **found.markers}.items():
        place = (a * along, b * above)
        flat.plot(*place, "o", color=COLOURS["red"], markersize=6, markeredgecolor="white")
        flat.annotate(name, place, textcoords="offset points", xytext=(6, 4), color="white")
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
    if spans_decades([low, high]):
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


@one_panel(PathLoss)
def _(axis: Any, result: PathLoss) -> str:
    _path(axis, result, "blue")
    _finish(axis, result)
    return str(result)


@one_panel(Connection)
def _(axis: Any, result: Connection) -> str:
    _path(axis, result.linear, "red")
    if result.curve is not None:
        _path(axis, result.curve, "blue")
    _finish(axis, result.linear)
    word = "connected" if result.connected else "not connected"
    return f"{word} at {result.linear.threshold:g} times the larger end"


def _path(axis: Any, found: PathLoss, colour: str) -> None:
    label = f"{found.kind}, barrier {found.above:.3g}"
    axis.plot(found.t.tolist(), found.loss.tolist(), ".-", color=COLOURS[colour], label=label, markersize=4)


def _finish(axis: Any, found: PathLoss) -> None:
    limit, label = found.threshold * max(found.ends), f"{found.threshold:g} times the larger end"
    axis.axhline(limit, color=COLOURS["grey"], linewidth=0.9, linestyle="--", label=label)
    axis.set_xlabel("t, from the first to the second minimum")
    axis.set_ylabel("loss")


@one_panel(Rays, size=(5.5, 5.0))
def _(axis: Any, result: Rays) -> str:
    exact = [ray[2] for ray in result.per_ray]
    for index, (colour, label) in enumerate((("blue", f"h = {result.h:.3g}"), ("orange", "h / 2"))):
        seen = [ray[index] for ray in result.per_ray]
        axis.plot(exact, seen, "o", color=COLOURS[colour], label=label, alpha=0.8)
    low, high = min(exact), max(exact)
    axis.plot([low, high], [low, high], color=COLOURS["grey"], linewidth=0.9)
    axis.set_xlabel("Hessian, u'Hu")
    axis.set_ylabel("second difference along the ray")
    return "kinks: the rays are not the Hessian's" if result.kinks else "rays and Hessian agree"


@one_panel(RateSensitivity)
def _(axis: Any, result: RateSensitivity) -> str:
    rates, losses = result.rates.tolist(), result.losses.tolist()
    axis.plot(rates, losses, ".-", color=COLOURS["blue"], label="loss after one step")
    axis.axhline(result.centre, color=COLOURS["grey"], linewidth=0.9, linestyle="--", label="loss before it")
    for rate, colour, name in (
        (result.best, "green", "best rate"),
        (result.critical.value, "red", "critical rate"),
    ):
        if math.isfinite(rate):
            axis.axvline(rate, color=COLOURS[colour], linewidth=1.0, label=f"{name} {rate:.2g}")
    axis.set_ylim(*result.shown)
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("loss")
    return str(result)


@one_panel(EffectiveDimension, size=(6.5, 4.2))
def _(axis: Any, result: EffectiveDimension) -> str:
    share = (result.values.cumsum(0) / result.values.sum()).tolist()
    axis.plot(range(1, len(share) + 1), share, ".-", color=COLOURS["blue"])
    axis.axhline(0.9, color=COLOURS["grey"], linewidth=0.9, linestyle="--")
    axis.axvline(result.k90, color=COLOURS["red"], linewidth=0.9)
    axis.set_xlabel("directions")
    axis.set_ylabel("share of the squared length")
    return str(result)


@one_panel(dict, size=lambda result: (7.5, 1.4 + 0.32 * len(result)), grid="x")
def _(axis: Any, result: Mapping[str, RankCorrelation]) -> str:
    """Tau of every measure with its interval, as :func:`optland.landscape.rank_correlations` gives them."""
    strange = [type(r).__name__ for r in result.values() if not isinstance(r, RankCorrelation)]
    if strange or not result:
        raise TypeError(
            f"a mapping to draw holds rank correlations; this one holds {strange[:1] or 'nothing'}; draw its values"
        )
    for row, found in enumerate(result.values()):
        axis.plot([found.low, found.high], [row, row], color=COLOURS["grey"], linewidth=1.4)
        axis.plot([found.tau], [row], "o", color=COLOURS["blue"])
    axis.set_yticks(range(len(result)), [f"{name}, p {found.p_value:.2g}" for name, found in result.items()])
    axis.set_ylim(len(result) - 0.5, -0.5)
    axis.set_xlim(-1.05, 1.05)
    axis.axvline(0.0, color=COLOURS["grey"], linewidth=0.8)
    axis.set_xlabel("Kendall's tau with the gap, bar: 95 % interval over resampled runs")
    return f"do the measures order {next(iter(result.values())).num_runs} runs as the gap does?"


@one_panel(list, tuple, size=lambda result: (8.5, 1.2 + 0.45 * len(result)), grid="x")
def _(axis: Any, result: Sequence[Sharpness]) -> str:
    strange = [type(r).__name__ for r in result if not isinstance(r, Sharpness)]
    if strange or not result:
        raise TypeError(f"a list to draw holds sharpness values; this one holds {strange[:1] or 'nothing'}")
    rows(axis, [r.in_words() for r in result], [r.rise for r in result], COLOURS["blue"], size=8)
    axis.set_xlabel("rise of the loss (hollow: not converged)")
    return "rise of the loss around the weights, bar: its error"


@plot.register(Sharpness)
def _(result: Sharpness, path: str | Path | None = None, *, title: str = "") -> Figure:
    return plot([result], path, title=title)


@plot.register(Minimum)
def _(result: Minimum, path: str | Path | None = None, *, title: str = "") -> Figure:
    return plot(MinimaComparison((result,)), path, title=title)


@one_panel(Damage, size=lambda result: (8.5, 2.36 + 0.32 * len(result.per_layer)), grid="x")
def _(axis: Any, result: Damage) -> str:
    """The rise measured and predicted, and under it each layer's part of the trace form; hollow: not converged."""
    rises = {
        "measured": result.measured, "second order": result.predicted, "from traces": result.trace_form,
        **{f"  {name}": part for name, part in result.per_layer.items()},
    }  # fmt: skip
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
    return f"{result.verdict}: measured against predicted, bar: its error"


@one_panel(TrajectoryPlane, size=(6.0, 5.0))
def _(axis: Any, result: TrajectoryPlane) -> str:
    x, y = zip(*result.coordinates, strict=True)
    axis.plot(x, y, ".-", color=COLOURS["blue"])
    axis.plot([x[-1]], [y[-1]], "o", color=COLOURS["red"], markersize=7, label="the last checkpoint")
    for name, share in zip(("x", "y"), result.explained, strict=True):
        getattr(axis, f"set_{name}label")(f"principal component, {share:.0%} of the variance")
    return f"path of {len(x)} checkpoints"


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
    if spans_decades(rises):
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
