"""The charts of the page, as plain data for plotly.js: surfaces, maps, spectra, bars and paths.

Colours of text and lines are left out: the page sets them, for light and for dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optland.curvature.points.portrait import Portrait
from optland.landscape import (
    Connection,
    EffectiveDimension,
    MinimaComparison,
    PathLoss,
    Rays,
    Slice,
)
from optland.landscape.rate import RateSensitivity
from optland.plots.figure import spans_decades

__all__ = [
    "Chart",
    "align",
    "contour",
    "dimension",
    "extremes",
    "frame",
    "is_log",
    "paths",
    "rate",
    "rays",
    "sharpness",
    "spectrum",
    "surface",
]

LEVELS = 20
"""Lines of equal height on a map."""

Chart = dict[str, Any]
"""``data`` and ``layout`` of plotly.js."""

BLUE, RED, GREEN, ORANGE, GREY = "#3b82c4", "#d64545", "#3a9d6a", "#d9822b", "#8a94a6"
LOG: Chart = {"type": "log", "exponentformat": "power"}
"""A logarithmic axis."""


def surface(found: Slice, *, line: Sequence[tuple[float, float]] = (), log: bool | None = None) -> Chart:
    """A surface to turn, with a point at the weights and at every marker; ``log`` as :func:`is_log` by default.

    Args:
        found: A plane.
        line: Places of a path in multiples of the directions, drawn in place of the markers.
        log: Whether heights are shown by their logarithm.

    Returns:
        Axes are in units of the weights' norm; points without a finite loss stay empty, and six digits are kept.
    """
    x, y = found.weight_units
    z, title = _height(found.loss, is_log([found]) if log is None else log)
    data: list[dict[str, Any]] = [
        {
            "type": "surface", "x": _plain(x), "y": _plain(y), "z": _grid(z), "colorscale": "Viridis",
            "showscale": False, "opacity": 0.95, "contours": {"z": {"show": True, "usecolormap": True, "width": 1}},
            "hovertemplate": f"%{{x:.3g}}, %{{y:.3g}}<br>{title} %{{z:.4g}}<extra></extra>",
        }
    ]  # fmt: skip
    for word, places, mode in _marks(found, line):
        heights = [_at(z, found, place) for place in places]
        px, py = zip(*(_units(found, place) for place in places), strict=True)
        data.append({
            "type": "scatter3d", "x": list(px), "y": list(py), "z": heights, "mode": mode, "name": word,
            "marker": {"size": 4, "color": RED}, "line": {"width": 5, "color": RED}, "showlegend": False,
            "hovertemplate": f"{word}<extra></extra>",
        })  # fmt: skip
    scene = {
        "xaxis": {"title": {"text": _short(found, 0)}},
        "yaxis": {"title": {"text": _short(found, 1)}},
        "zaxis": {"title": {"text": title}},
        "camera": {"eye": {"x": 1.6, "y": 1.6, "z": 1.05}},
        # By the data a logarithm of many decades would be a tower that the frame cuts.
        "aspectmode": "manual",
        "aspectratio": {"x": 1.0, "y": 1.0, "z": 0.8},
    }
    return {
        "data": data,
        "layout": {"scene": scene, "height": 420, "margin": {"l": 0, "r": 0, "t": 8, "b": 0}},
    }


def contour(found: Slice, *, line: Sequence[tuple[float, float]] = (), log: bool | None = None) -> Chart:
    """The same as a map.

    Args:
        found: A plane.
        line: Places of a path in multiples of the directions, drawn in place of the markers.
        log: Whether heights are shown by their logarithm.
    """
    x, y = found.weight_units
    z, title = _height(found.loss, is_log([found]) if log is None else log)
    data: list[dict[str, Any]] = [
        {
            "type": "contour", "x": _plain(x), "y": _plain(y), "z": _grid(z), "colorscale": "Viridis",
            "ncontours": LEVELS,
            "colorbar": {"title": {"text": title, "side": "right"}, "thickness": 12}, "line": {"width": 0.5},
            "hovertemplate": f"%{{x:.3g}}, %{{y:.3g}}<br>{title} %{{z:.4g}}<extra></extra>",
        }
    ]  # fmt: skip
    for word, places, mode in _marks(found, line):
        px, py = zip(*(_units(found, place) for place in places), strict=True)
        data.append({
            "type": "scatter", "x": list(px), "y": list(py), "mode": mode, "name": word, "showlegend": False,
            "marker": {"size": 8, "color": RED, "line": {"width": 1, "color": "white"}}, "line": {"color": RED},
            "hovertemplate": f"{word}<extra></extra>",
        })  # fmt: skip
    return {"data": data, "layout": frame(_label(found, 0), _label(found, 1), height=420)}


def is_log(slices: Sequence[Slice]) -> bool:
    """Whether surfaces that are to be compared are shown by their logarithm, all of them or none.

    Args:
        slices: Planes that are looked at beside each other.

    Returns:
        True where all values are positive and the largest is over 100 times the smallest.
    """
    if not slices:
        return False
    seen = torch.cat([found.loss.flatten() for found in slices])
    return spans_decades(seen[torch.isfinite(seen)].tolist())


def align(charts: Sequence[Chart]) -> None:
    """Give charts of one kind the same axes and colours, so that they can be compared by eye.

    Args:
        charts: Of one kind; they are changed in place. Where one has set a range, that stands for its data.
    """
    if len(charts) < 2:
        return
    for axis in ("x", "y", "z"):
        ends = [end for end in (_ends(chart, axis) for chart in charts) if end is not None]
        if not ends:
            continue
        low, high = min(e[0] for e in ends), max(e[1] for e in ends)
        for chart in charts:
            _set_range(chart, axis, low, high)


def _ends(chart: Chart, axis: str) -> tuple[float, float] | None:
    """The least and the largest that a chart shows along an axis: as set, or of its data with their errors."""
    box = chart["layout"].get(f"{axis}axis", {})
    if "range" in box:
        low, high = box["range"]
        return low, high
    values: list[float] = []
    for trace in chart["data"]:
        shown = _flat(trace.get(axis) or [])
        errors = trace.get(f"error_{axis}", {}).get("array", [0.0] * len(shown))
        values += [v + sign * e for v, e in zip(shown, errors, strict=True) for sign in (-1, 1)]
    return (min(values), max(values)) if values else None


def _set_range(chart: Chart, axis: str, low: float, high: float) -> None:
    kind, layout = chart["data"][0]["type"], chart["layout"]
    if kind == "surface":
        room = 0.02 * (high - low)
        layout["scene"][f"{axis}axis"]["range"] = [low - room, high + room]
        if axis == "z":
            chart["data"][0] |= {"cmin": low, "cmax": high}
    elif kind == "contour" and axis == "z":
        size = (high - low) / LEVELS or 1.0
        chart["data"][0] |= {"zmin": low, "zmax": high, "autocontour": False}
        chart["data"][0]["contours"] = {"start": low, "end": high, "size": size}
    elif axis != "z" and "range" not in layout[f"{axis}axis"]:
        room = 0.0 if kind == "contour" else 0.05 * (high - low) or 1.0
        layout[f"{axis}axis"]["range"] = [low - room, high + room]
    elif axis != "z":
        layout[f"{axis}axis"]["range"] = [low, high]


def _flat(values: Sequence[Any]) -> list[float]:
    """The finite numbers of rows, or of one row."""
    rows = [row if isinstance(row, list) else [row] for row in values]
    return [v for row in rows for v in row if v is not None]


def spectrum(portrait: Portrait) -> Chart | None:
    """The density of all eigenvalues, with outliers as spikes; None where it was not taken."""
    density = portrait.density
    if density is None:
        return None
    curve, outliers = density.curve(num_points=256), density.outliers
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "x": curve.grid.tolist(), "y": _plain(torch.from_numpy(curve.value)), "mode": "lines",
            "fill": "tozeroy", "line": {"color": BLUE, "width": 1.6}, "name": "bulk",
        }
    ]  # fmt: skip
    peak = float(curve.value.max(initial=0.0))
    heights = [
        s.mass.value / (curve.sigma * math.sqrt(2 * math.pi)) if curve.sigma else peak for s in outliers
    ]
    if outliers:
        places = [s.value.value for s in outliers]
        data.append({
            "type": "bar", "x": places, "y": heights, "width": [_bar(curve.grid, places)] * len(places),
            "marker": {"color": RED}, "name": "outliers", "hovertemplate": "%{x:.4g}<extra>outlier</extra>",
        })  # fmt: skip
    layout = frame("eigenvalue", "density")
    floor = min([h for h in heights if h > 0] + [peak or 1.0]) / 10
    top = max([peak, *heights]) or 1.0
    layout["yaxis"] |= {
        **LOG,
        "range": [math.log10(max(floor, 1e-6 * top)), math.log10(3 * top)],
    }
    return {"data": data, "layout": layout}


def extremes(portrait: Portrait) -> Chart:
    """The eigenvalues at both ends with their residuals; hollow where they have not converged."""
    values = portrait.spectrum.values
    place = list(range(1, len(values) + 1))
    chart = {
        "type": "scatter", "mode": "markers", "x": place, "y": [v.value for v in values],
        "error_y": {"type": "data", "array": [_error(v.error) for v in values], "color": GREY},
        "marker": {
            "size": 9, "color": BLUE, "symbol": ["circle" if v.converged else "circle-open" for v in values]
        },
        "hovertemplate": "%{y:.4g}<extra></extra>",
    }  # fmt: skip
    layout = frame("number, the largest first", "eigenvalue")
    layout["xaxis"] |= {"tickvals": place}
    return {"data": [chart], "layout": layout}


def rays(found: Rays) -> Chart:
    """Second differences against the Hessian along each ray.

    Args:
        found: Second differences at h and h / 2, and the Hessian's curvature, of each ray.
    """
    exact = [r[2] for r in found.per_ray]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "markers", "x": exact, "y": [r[i] for r in found.per_ray], "name": word,
            "marker": {"color": colour, "size": 7},
        }
        for i, (word, colour) in enumerate((("h", BLUE), ("h / 2", ORANGE)))
    ]  # fmt: skip
    ends = [min(exact), max(exact)]
    data.append({
        "type": "scatter", "mode": "lines", "x": ends, "y": ends, "line": {"color": GREY, "width": 1}, "name": "equal",
    })  # fmt: skip
    return {"data": data, "layout": frame("u'Hu", "second difference", legend=True)}


def rate(found: RateSensitivity) -> Chart:
    """The loss after one step over learning rates; what rises far above the start is cut off."""
    losses, rates = found.losses, found.rates.tolist()
    low, high = found.shown
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines+markers", "x": rates, "y": _plain(losses), "name": "after one step",
            "line": {"color": BLUE}, "marker": {"size": 4},
        },
        {
            "type": "scatter", "mode": "lines", "x": [rates[0], rates[-1]], "y": [found.centre] * 2,
            "name": "before it", "line": {"color": GREY, "dash": "dash", "width": 1},
        },
    ]  # fmt: skip
    for at, word, colour in ((found.best, "best rate", GREEN), (found.critical.value, "critical rate", RED)):
        if math.isfinite(at):
            data.append({
                "type": "scatter", "mode": "lines", "x": [at, at], "y": [low, high], "name": f"{word} {at:.2g}",
                "line": {"color": colour, "width": 1},
            })  # fmt: skip
    layout = frame("learning rate", "loss", legend=True)
    layout["xaxis"] |= LOG
    layout["yaxis"] |= {"range": [low, high]}
    return {"data": data, "layout": layout}


def sharpness(found: MinimaComparison) -> Chart:
    """Rise of the loss in every sense, a group of bars for each minimum.

    Args:
        found: One minimum or several, with the same measures.
    """
    colours = (BLUE, ORANGE, GREEN, RED, GREY)
    labels = [label.replace(", ", "<br>") for label in found.minima[0].labels.values()]
    data = [
        {
            "type": "bar", "orientation": "h", "y": labels,
            "x": [e.value for e in m.rises().values()], "name": m.name, "marker": {"color": colours[i % len(colours)]},
            "error_x": {"type": "data", "array": [_error(e.error) for e in m.rises().values()], "color": GREY},
        }
        for i, m in enumerate(found.minima)
    ]  # fmt: skip
    rows = len(found.minima[0].sharpness) * (1 + 0.4 * len(found.minima))
    layout = frame("rise of the loss", "", height=int(90 + 22 * rows), legend=len(data) > 1)
    rises = [s.rise.value for m in found.minima for s in m.sharpness]
    if spans_decades(rises):
        layout["xaxis"] |= {**LOG, "nticks": 4, "tickangle": 0}
    layout["yaxis"] |= {"autorange": "reversed", "automargin": True, "tickfont": {"size": 10}}
    return {"data": data, "layout": layout}


def paths(found: Connection) -> Chart:
    """The loss on the line and on the curve."""
    shown: list[tuple[PathLoss, str, str]] = [(found.linear, "straight line", RED)]
    if found.curve is not None:
        shown.append((found.curve, f"{found.curve.kind} curve", BLUE))
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines+markers", "x": path.t.tolist(), "y": _plain(path.loss), "name": word,
            "line": {"color": colour}, "marker": {"size": 4},
        }
        for path, word, colour in shown
    ]  # fmt: skip
    limit = found.linear.threshold * max(found.linear.ends)
    data.append({
        "type": "scatter", "mode": "lines", "x": [0, 1], "y": [limit, limit], "name": "threshold",
        "line": {"color": GREY, "dash": "dash", "width": 1},
    })  # fmt: skip
    return {"data": data, "layout": frame("t", "loss", legend=True)}


def dimension(found: EffectiveDimension) -> Chart:
    """Share of the squared length of the gradients in their first directions.

    Args:
        found: The squared lengths of the gradients along their principal directions.
    """
    share = (found.values.cumsum(0) / found.values.sum()).tolist()
    places = list(range(1, len(share) + 1))
    data = [
        {
            "type": "scatter", "mode": "lines+markers", "x": places, "y": share, "line": {"color": BLUE},
            "name": "share",
        },
        {
            "type": "scatter", "mode": "lines", "x": [found.k90, found.k90], "y": [0, 1], "name": "k90",
            "line": {"color": RED, "width": 1},
        },
    ]  # fmt: skip
    return {"data": data, "layout": frame("directions", "share of the squared length", legend=True)}


def frame(x: str, y: str, *, height: int = 320, legend: bool = False) -> dict[str, Any]:
    """The layout of a chart of two axes.

    Args:
        x: Title of the one.
        y: Title of the other.
        height: In pixels.
        legend: Whether it has one.
    """
    return {
        "height": height, "margin": {"l": 56, "r": 12, "t": 12, "b": 48}, "showlegend": legend,
        "legend": {"orientation": "h", "y": 1.12}, "xaxis": {"title": {"text": x}, "zeroline": False},
        "yaxis": {"title": {"text": y}, "zeroline": False},
    }  # fmt: skip


def _units(found: Slice, place: Sequence[float]) -> tuple[float, float]:
    """A place in multiples of the directions as a place in units of the weights' norm."""
    a, b = (p * unit for p, unit in zip(place, found.lengths, strict=True))
    return a, b


def _marks(
    found: Slice, line: Sequence[tuple[float, float]]
) -> list[tuple[str, list[tuple[float, float]], str]]:
    marks: list[tuple[str, list[tuple[float, float]], str]] = []
    if line:
        marks.append(("path of training", list(line), "lines+markers"))
    else:
        marks += [(name, [(place[0], place[1])], "markers") for name, place in found.markers.items()]
    return [*marks, ("the weights", [(0.0, 0.0)], "markers")]


def _at(z: Tensor, found: Slice, place: Sequence[float]) -> float | None:
    """The height at the nearest point of the grid, so that a mark lies on the surface."""
    i, j = (int((axis - p).abs().argmin()) for axis, p in zip(found.coordinates, place, strict=True))
    value = float(z[i, j])
    return value if math.isfinite(value) else None


def _height(loss: Tensor, log: bool) -> tuple[Tensor, str]:
    return (loss.log10(), "log10 of loss") if log else (loss, "loss")


def _grid(values: Tensor) -> list[list[float | None]]:
    """Rows for plotly, whose first index runs along y; what is not finite stays empty."""
    return [_plain(column) for column in values.T]


def _plain(values: Tensor) -> list[float | None]:
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values.tolist()]


def _label(found: Slice, axis: int) -> str:
    return f"{found.directions[axis].kind}, units of |w|"


def _short(found: Slice, axis: int) -> str:
    """A name that has room beside a turning box."""
    kind = found.directions[axis].kind.partition(",")[0]
    return kind.replace("eigenvector of", "λ =").replace("trajectory component", "component")


def _error(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _bar(grid: Any, places: Sequence[float]) -> float:
    low, high = min(float(grid[0]), *places), max(float(grid[-1]), *places)
    return (high - low) / 250
