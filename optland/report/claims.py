"""The page of decided claims: a table of verdicts, then each claim with its figure and what goes beside it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from optland.files import write_whole
from optland.plots.figure import COLOURS, figure, save, spans_decades
from optland.report.charts import BLUE, GREEN, GREY, LOG, ORANGE, RED, Chart, frame
from optland.report.page import Block, Part, Table, render
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.table import Row
from optland.train.experiments.claims.verdicts import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["claims_table", "plot_claims", "write_claims"]

COLUMNS = (
    "claim",
    "what is claimed",
    "predicted",
    "found (95 %)",
    "p after Holm",
    "verdict",
    "seeds",
    "dead",
    "GE",
)

HOW_TO_READ = (
    "Each row is one claim. The effect was measured once per seed and data set; 'found' is its mean over data sets "
    "with the 95 % interval over seeds, and ratios are averaged as logarithms. 'Predicted' is the band that the claim "
    "speaks of. The rule was written before the runs: supported, if the effect differs from no effect (p below 0.05 "
    "after Holm's correction over all rows) on the claimed side and lies in the band; the same direction at another "
    "size, if the interval leaves the band out; opposite, on the other side; not supported, if there is no difference "
    "and the interval leaves the band out; else undecided at this scale. A dead run is one whose loss was not finite. "
    "GE counts gradient evaluations of single samples; runs that claims share count in each."
)
NAMES = {
    Verdict.SUPPORTED: "green", Verdict.OTHER_SIZE: "blue", Verdict.NOT_SUPPORTED: "orange",
    Verdict.OPPOSITE: "red", Verdict.UNDECIDED: "grey",
}  # fmt: skip


def claims_table(
    rows: Sequence[Row], columns: Sequence[str] = COLUMNS
) -> tuple[list[str], list[list[str | float]]]:
    """Columns and rows of the table, as text and numbers; of the columns that are asked for.

    Args:
        rows: The table.
        columns: Some of :data:`COLUMNS`, in the order in which they shall stand.

    Returns:
        The columns, and a list of cells for each row; p is a number, all else text.
    """
    kept = [COLUMNS.index(name) for name in columns]
    return list(columns), [[cells[k] for k in kept] for cells in map(_cells, rows)]


def write_claims(
    rows: Sequence[Row], dial: Dial, folder: str | Path, *, about: Mapping[str, str] | None = None
) -> Path:
    """Write ``report.html``, and beside it ``claims.json`` with every number of it.

    Args:
        rows: The table.
        dial: At which sizes.
        folder: Where to; made where it is missing.
        about: Facts for the head of the page, such as the command.

    Returns:
        The page.

    Raises:
        UserError: plotly is not installed.
    """
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    found = {"dial": asdict(dial), "rows": [row.plain() for row in rows]}
    write_whole(where / "claims.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    counts = Counter(row.verdict for row in rows)
    facts = {**(about or {}), **{str(verdict): str(counts[verdict]) for verdict in Verdict}}
    facts["seeds"] = f"{dial.seeds}, from 0; at the greatest depth ({dial.depth} layers) {dial.deep_seeds}"
    facts["data"] = f"{', '.join(dial.data)}, {dial.samples} training samples each"
    missing = [row for row in rows if row.missing]
    waits = "row still misses" if len(missing) == 1 else "rows still miss"
    notes = [f"{len(missing)} {waits} runs; go on with --resume."] if missing else []
    columns, cells = claims_table(rows)
    parts = [
        Part(
            "All claims", [Block("Verdicts", HOW_TO_READ, {"Effects": _forest(rows)}, Table(columns, cells))]
        ),
        Part("One by one", [_block(row) for row in rows if not row.claim.published]),
        Part("Published experiments repeated", [_block(row) for row in rows if row.claim.published]),
    ]
    page = where / "report.html"
    write_whole(page, render("Claims about loss landscapes, decided by experiment", facts, notes, parts))
    return page


def plot_claims(rows: Sequence[Row], path: str | Path | None = None) -> Figure:
    """Draw every decided effect against its band: 0 is no effect, 1 the nearer end of what is claimed.

    Args:
        rows: The table.
        path: Where to write the picture as well; None writes nothing.

    Returns:
        The figure; what lies beyond three times the nearer end is drawn at three.

    Raises:
        UserError: matplotlib is not installed.
    """
    page = figure(9, 1.2 + 0.26 * max(1, len(rows)))
    axis = page.subplots()
    for k, row in enumerate(rows):
        middle, low, high = _scaled(row)
        if math.isnan(middle):
            axis.text(0.0, k, " not measured on enough seeds", va="center", fontsize=8, color=COLOURS["grey"])
            continue
        ends = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
        axis.errorbar([middle], [k], xerr=ends, fmt="o", color=COLOURS[NAMES[row.verdict]], capsize=2)
    axis.axvline(0.0, color="black", lw=0.8)
    axis.axvline(1.0, color="black", lw=0.8, ls=":")
    axis.set_yticks(range(len(rows)), [row.claim.name for row in rows], fontsize=8)
    axis.set_xlim(-CLIP - 0.2, CLIP + 0.2)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel("effect: 0 none, 1 the nearer end of the claimed band")
    return save(page, path)


CLIP = 3.0


def _scaled(row: Row) -> tuple[float, float, float]:
    """Effect and interval in units of the distance from the null to the nearer end of the band, clipped."""
    band = row.claim.band
    near = band.low if band.low > band.null else band.high

    def inner(value: float) -> float:
        if not band.is_ratio:
            return value
        return math.log(value) if value > 0 else -math.inf

    def unit(value: float) -> float:
        if math.isnan(value):
            return math.nan
        return min(CLIP, max(-CLIP, (inner(value) - inner(band.null)) / (inner(near) - inner(band.null))))

    middle = unit(row.effect.mean)
    low, high = sorted((unit(row.effect.low), unit(row.effect.high)))
    return middle, low, high


def _forest(rows: Sequence[Row]) -> Chart:
    """The same for the page."""
    colours = dict(zip(Verdict, (GREEN, BLUE, ORANGE, RED, GREY), strict=True))
    data = []
    for verdict in Verdict:
        shown = [(row, *_scaled(row)) for row in rows if row.verdict == verdict]
        shown = [entry for entry in shown if not math.isnan(entry[1])]
        data.append({
            "type": "scatter", "mode": "markers", "name": str(verdict),
            "x": [entry[1] for entry in shown], "y": [entry[0].claim.name for entry in shown],
            "error_x": {
                "type": "data", "symmetric": False, "array": [entry[3] - entry[1] for entry in shown],
                "arrayminus": [entry[1] - entry[2] for entry in shown], "color": GREY,
            },
            "marker": {"size": 8, "color": colours[verdict]},
        })  # fmt: skip
    layout = frame(
        "0: no effect, 1: the nearer end of the band", "", height=120 + 20 * len(rows), legend=True
    )
    layout["margin"] |= {"l": 190}
    layout["xaxis"] |= {"zeroline": True}
    layout["yaxis"] |= {"autorange": "reversed", "automargin": True, "tickfont": {"size": 10}}
    return {"data": data, "layout": layout}


def _block(row: Row) -> Block:
    claim, effect = row.claim, row.effect
    words = [f"{claim.text} ({claim.source}).", f"Measured: {claim.measured}.", f"Verdict: {row.verdict}."]
    if claim.published:
        words.append(f"Published: {claim.published}.")
    if effect.contradict:
        words.append("The data sets contradict each other.")
    if row.missing:
        words.append(f"{row.missing} of {row.runs} runs are not there yet.")
    if row.dead:
        words.append(f"{row.dead} of {row.runs} runs died.")
    if row.found.note:
        words.append(row.found.note)
    shown: list[Sequence[object]] = [
        [f"effect on {data}, {effect.counts[data]} values", value] for data, value in effect.by_data.items()
    ]
    shown += [[name, value] for name, value in row.found.beside.items()]
    charts = {claim.measured: _scatter(row)} if any(row.found.series.values()) else {}
    return Block(claim.name, " ".join(words), charts, Table(["quantity", "value"], shown))


def _scatter(row: Row) -> Chart:
    x, y = row.found.axes
    data, every = [], []
    for name, points in row.found.series.items():
        kept = [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b)]
        every += kept
        path = len(kept) > 8 and [a for a, _ in kept] == sorted({a for a, _ in kept})
        data.append({
            "type": "scatter", "mode": "lines" if path else "markers", "name": name, "marker": {"size": 7},
            "x": [a for a, _ in kept], "y": [b for _, b in kept],
        })  # fmt: skip
    layout = frame(x, y, legend=len(data) > 1)
    for axis, values in (("xaxis", [a for a, _ in every]), ("yaxis", [b for _, b in every])):
        layout[axis] |= {"zeroline": True, **(LOG if spans_decades(values) else {})}
    return {"data": data, "layout": layout}


def _cells(row: Row) -> list[str | float]:
    claim, effect = row.claim, row.effect
    times = " times" if claim.band.is_ratio else ""
    found = "not measured on enough seeds"
    if not math.isnan(effect.mean):
        found = f"{effect.mean:.3g}{times} [{effect.low:.3g}, {effect.high:.3g}]"
    seeds = ", ".join(f"{data} {count}" for data, count in effect.counts.items())
    return [
        claim.name, claim.text, f"{_band(row)}{times}", found, row.p_value, str(row.verdict), seeds,
        f"{row.dead} of {row.runs}", f"{row.cost_ge:,.0f}",
    ]  # fmt: skip


def _band(row: Row) -> str:
    low, high = row.claim.band.low, row.claim.band.high
    if math.isinf(high):
        return f"{low:.3g} or more"
    return f"{low:.3g} to {high:.3g}"
