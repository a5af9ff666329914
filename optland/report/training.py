"""What a run's log adds to the report of its checkpoint: the edge ratio and the gradients by layer, over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optland.doctor.spread import QUANTILES, gradient_key
from optland.plots.runs import gradient_bands, gradient_layers, some_layers
from optland.report.charts import BLUE, GREEN, GREY, LOG, ORANGE, RED, Chart, frame

__all__ = ["edge_chart", "gradient_chart", "training_in_words", "training_of"]

Series = dict[str, tuple[tuple[float, float], ...]]
MOST = 400
"""Points kept of a series."""

_EDGE = {
    "edge/ratio": ("one probe", GREY), "edge/ratio_ema": ("average of the last probes", BLUE),
    "edge/ratio_precond": ("in Adam's metric", ORANGE),
}  # fmt: skip
_COLOURS = {RED: "214,69,69", GREEN: "58,157,106", BLUE: "59,130,196"}


def training_of(rows: Sequence[Mapping[str, Any]]) -> Series:
    """The values of a log that the report draws, by key: pairs of update and value.

    Args:
        rows: Logged rows.

    Returns:
        Finite values alone; of a series of more than :data:`MOST` points every second, third ... one.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            drawn = key in _EDGE or key.startswith("layer/grad_q")
            if drawn and isinstance(value, (int, float)) and math.isfinite(value):
                found.setdefault(key, []).append((float(row["step"]), float(value)))
    return {key: tuple(pairs[:: -(-len(pairs) // MOST)]) for key, pairs in found.items()}


def edge_chart(series: Series) -> Chart | None:
    """The edge ratio over the updates, with the edge; None where it was not logged.

    Args:
        series: From :func:`training_of`.
    """
    shown = {key: series[key] for key in _EDGE if key in series}
    if not shown:
        return None
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "markers" if key == "edge/ratio" else "lines", "name": _EDGE[key][0],
            "x": [s for s, _ in pairs], "y": [v for _, v in pairs],
            "line": {"color": _EDGE[key][1]}, "marker": {"color": _EDGE[key][1], "size": 4},
        }
        for key, pairs in shown.items()
    ]  # fmt: skip
    ends = [s for pairs in shown.values() for s, _ in pairs]
    data.append({
        "type": "scatter", "mode": "lines", "x": [min(ends), max(ends)], "y": [1, 1], "name": "the edge",
        "line": {"color": RED, "dash": "dash", "width": 1},
    })  # fmt: skip
    return {"data": data, "layout": _layout("edge ratio")}


def gradient_chart(series: Series) -> Chart | None:
    """Of the first, a middle and the last layer the median entry, a band of half of them, and where 5 % are above.

    Args:
        series: From :func:`training_of`.

    Returns:
        None where the log has no quantiles of gradients.
    """
    rows = _rows(series)
    chosen = some_layers(rows)
    if not chosen:
        return None
    data: list[dict[str, Any]] = []
    for layer, (colour, rgb) in zip(chosen, _COLOURS.items(), strict=False):
        steps, bands = gradient_bands(rows, layer)
        data.append({
            "type": "scatter", "mode": "lines", "x": [*steps, *steps[::-1]], "line": {"width": 0},
            "y": [v if v > 0 else None for v in (*bands[1], *bands[3][::-1])], "fill": "toself",
            "fillcolor": f"rgba({rgb},0.2)", "hoverinfo": "skip", "showlegend": False,
        })  # fmt: skip
        data.append({
            "type": "scatter", "mode": "lines", "x": steps, "y": [v if v > 0 else None for v in bands[4]],
            "line": {"color": colour, "width": 1, "dash": "dot"}, "name": "95 %", "showlegend": False,
        })  # fmt: skip
        data.append({
            "type": "scatter", "mode": "lines", "x": steps, "y": [v if v > 0 else None for v in bands[2]],
            "line": {"color": colour, "width": 1.5}, "name": layer,
        })  # fmt: skip
    return {"data": data, "layout": _layout("size of the gradient's entries")}


def training_in_words(series: Series) -> str:
    """How near to the edge the run was, and how far apart its layers' gradients are at the end.

    Args:
        series: From :func:`training_of`.

    Returns:
        One or two sentences; empty where neither was logged.
    """
    said = []
    ratios = sorted(v for _, v in series.get("edge/ratio", ()))
    if ratios:
        above = sum(r > 1 for r in ratios) / len(ratios)
        said.append(
            f"The edge ratio is {ratios[len(ratios) // 2]:.2g} at the median, and above 1 in {above:.0%}."
        )
    rows = _rows(series)
    ends = {layer: gradient_bands(rows, layer)[1][2][-1] for layer in gradient_layers(rows)}
    if len(ends) > 1 and min(ends.values()) > 0:
        low, high = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
        said.append(
            f"At the end the median entry of a gradient is {ends[low]:.2g} in {low} and {ends[high]:.2g} in {high}. "
            "Bands hold half of the entries, lines are medians, and 5 % of the entries are above the dotted ones."
        )
    return " ".join(said)


def _rows(series: Series) -> list[dict[str, float]]:
    """The gradient's quantiles as rows again, those that have all of them."""
    found: dict[float, dict[str, float]] = {}
    for key, pairs in series.items():
        if key.startswith("layer/grad_q"):
            for step, value in pairs:
                found.setdefault(step, {"step": step})[key] = value
    layers = gradient_layers(list(found.values()))
    whole = {gradient_key(layer, q) for layer in layers for q in QUANTILES}
    return [row for _, row in sorted(found.items()) if whole <= row.keys()]


def _layout(y: str) -> dict[str, Any]:
    layout = frame("update", y, legend=True)
    layout["yaxis"] |= LOG
    return layout
