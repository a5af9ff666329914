"""Write findings as a page, as pictures, and as tables and images of a logger."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from optland.files import for_json, write_whole
from optland.landscape import Slice
from optland.log import Logger
from optland.plots import plot
from optland.plots.curvature import plot_portrait
from optland.report import charts, training, words
from optland.report.findings import Findings, Trajectory
from optland.report.page import Block, Card, Named, Part, Table, render
from optland.report.survey import Survey

__all__ = ["log_report", "write_report"]


def write_report(findings: Findings, folder: str | Path) -> Path:
    """Write ``report.html``, and beside it a PNG of every chart and the findings themselves (``Findings.load``).

    Args:
        findings: What was measured.
        folder: Where to; made where it is missing.

    Returns:
        The page.

    Raises:
        UserError: plotly or matplotlib is not installed.
    """
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    findings.save(where / "findings")
    parts = list(_parts(findings))
    text = render(findings.title, findings.about, findings.notes, parts, list(_cards(findings)))
    for key, draw in _pictures(findings):
        draw(where / f"{key}.png")
    page = where / "report.html"
    write_whole(page, text)
    return page


def log_report(findings: Findings, folder: str | Path, log: Logger) -> None:
    """Show the pictures that :func:`write_report` has written, and the tables, in a logger.

    Args:
        findings: What was measured.
        folder: Where the pictures are.
        log: Where they are shown.
    """
    for key, _ in _pictures(findings):
        log.image(f"landscape/{key}", Path(folder) / f"{key}.png")
    columns, rows = findings.comparison.table()
    labels = findings.comparison.minima[0].labels
    log.table(
        "landscape/sharpness", ["in words", *columns],
        [[labels.get(row[0], row[0]), *(for_json(x) for x in row)] for row in rows],
    )  # fmt: skip
    named = ["point", "quantity", "value", "error", "kind", "converged"]
    estimates = [
        [s.name, what, for_json(e.value), for_json(e.error), e.error_kind, e.converged]
        for s in findings.surveys
        for what, e in s.portrait.estimates()
    ]
    log.table("landscape/curvature", named, estimates)
    if findings.connections:
        paths = [
            [name, c.linear.above, for_json(math.nan if c.curve is None else c.curve.above), c.connected]
            for name, c in findings.connections.items()
        ]
        log.table("landscape/connections", ["between", "barrier", "barrier of the curve", "connected"], paths)


# The page --------------------------------------------------------------------------------------------------


def _cards(findings: Findings) -> Iterator[Card]:
    """What one wants to know first of every checkpoint: how good, made how, and what kind of point."""
    for one in findings.surveys:
        yield Card(one.name, {**findings.results.get(one.name, {}), **words.summary_of(one)})


def _parts(findings: Findings) -> Iterator[Part]:
    if len(findings.surveys) > 1:
        yield Part("Side by side", [_sharpness_block(findings)])
    if findings.connections:
        yield Part("Between the checkpoints", [
            Block(name, words.connection_in_words(name, found), {"Loss along the paths": charts.paths(found)})
            for name, found in findings.connections.items()
        ])  # fmt: skip
    if findings.trajectory is not None:
        yield Part("The path of training", [_trajectory_block(findings.trajectory)])
    alone = len(findings.surveys) == 1
    eigen = [s.eigen for s in findings.surveys if s.eigen is not None]
    logs = {"random": charts.is_log([s.random for s in findings.surveys]), "eigen": charts.is_log(eigen)}
    parts = [
        Part(
            one.name,
            [*_survey_blocks(one, findings if alone else None, logs), *_training_blocks(findings, one.name)],
        )
        for one in findings.surveys
    ]
    _align(parts)
    yield from parts


def _align(parts: list[Part]) -> None:
    """The same axes for the same chart of every checkpoint."""
    kinds: dict[tuple[str, str], list[charts.Chart]] = {}
    for block in (block for part in parts for block in part.blocks):
        for caption, chart in block.charts.items():
            kinds.setdefault((block.title, caption), []).append(chart)
    for alike in kinds.values():
        charts.align(alike)


def _survey_blocks(one: Survey, findings: Findings | None, logs: dict[str, bool]) -> Iterator[Block]:
    portrait = one.portrait
    density = charts.spectrum(portrait)
    shown = {"Density of all eigenvalues": density} if density is not None else {}
    estimates = [
        [what, e.value, e.error, e.error_kind.replace("_", " "), "yes" if e.converged else "NOT CONVERGED"]
        for what, e in portrait.estimates()
    ]
    yield Block(
        "Kind of point and curvature",
        f"{words.point_in_words(portrait)} {words.curvature_in_words(portrait)}",
        {**shown, "Eigenvalues at both ends, with residuals": charts.extremes(portrait)},
        Table(["quantity", "value", "error", "kind of error", "converged"], estimates),
    )
    yield _plane_block("Surface along two random directions", one.random, portrait.dim, logs["random"])
    if one.eigen is not None:
        yield _plane_block("Surface along the extreme eigenvectors", one.eigen, portrait.dim, logs["eigen"])
    yield Block(
        "Rays", words.rays_in_words(one.rays), {"Each ray against the Hessian": charts.rays(one.rays)}
    )
    if one.rate is not None:
        yield Block(
            "Sensitivity to the learning rate", words.rate_in_words(one.rate),
            {"Loss after one step": charts.rate(one.rate)},
        )  # fmt: skip
    if findings is not None:
        yield _sharpness_block(findings)
    if one.dimension is not None:
        yield Block(
            "Effective dimension of the gradients", words.dimension_in_words(one.dimension),
            {"Share of the squared length": charts.dimension(one.dimension)},
        )  # fmt: skip


def _training_blocks(findings: Findings, name: str) -> Iterator[Block]:
    """What the run logged on the way to the checkpoint, where it did."""
    series = findings.training.get(name, {})
    drawn = {
        "Learning rate over the critical one": training.edge_chart(series),
        "Gradients by layer": training.gradient_chart(series),
    }
    shown = {caption: chart for caption, chart in drawn.items() if chart is not None}
    if shown:
        yield Block("On the way here", training.training_in_words(series), shown)


def _plane_block(title: str, found: Slice, dim: int, log: bool) -> Block:
    return Block(
        title, words.plane_in_words(found, dim),
        {"Drag to turn": charts.surface(found, log=log), "The same as a map": charts.contour(found, log=log)},
    )  # fmt: skip


def _sharpness_block(findings: Findings) -> Block:
    comparison = findings.comparison
    columns, rows = comparison.table()
    alone = len(comparison.minima) == 1
    named = [[_measure(str(row[0]), comparison.minima[0].labels), *row[1:]] for row in rows]
    shown = [row[:-1] if alone else row for row in named]
    return Block(
        "Sharpness", words.comparison_in_words(comparison),
        {"Rise of the loss": charts.sharpness(comparison)}, Table(columns[:-1] if alone else columns, shown),
    )  # fmt: skip


def _measure(name: str, labels: dict[str, str]) -> object:
    """A measure by a name to read, with the complete one below where that is another."""
    if name in labels:
        return Named(f"rise of the loss: {labels[name]}", name)
    return "test loss minus training loss" if name == "gap" else name


def _trajectory_block(found: Trajectory) -> Block:
    line = found.path.coordinates
    return Block(
        "Loss over the plane of the path", words.trajectory_in_words(found),
        {
            "Drag to turn": charts.surface(found.surface, line=line),
            "The same as a map": charts.contour(found.surface, line=line),
        },
    )  # fmt: skip


# The pictures ----------------------------------------------------------------------------------------------


def _pictures(findings: Findings) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """By its key, what draws each picture into a file."""
    for number, one in enumerate(findings.surveys, start=1):
        tag = f"{number}_" if len(findings.surveys) > 1 else ""
        text = f"{words.point_in_words(one.portrait)} {words.curvature_in_words(one.portrait)}"
        yield f"{tag}curvature", partial(plot_portrait, one.portrait, title=one.name, verdict=text)
        results = {
            "plane": one.random, "eigen_plane": one.eigen, "rays": one.rays, "dimension": one.dimension,
            "rate": one.rate,
        }  # fmt: skip
        for key, result in results.items():
            if result is not None:
                yield f"{tag}{key}", partial(plot, result)
    yield "sharpness", partial(plot, findings.comparison)
    for number, (name, found) in enumerate(findings.connections.items(), start=1):
        yield f"connection_{number}", partial(plot, found, title=name)
    if findings.trajectory is not None:
        title = words.trajectory_in_words(findings.trajectory)[:90]
        yield "trajectory", partial(plot, findings.trajectory.surface, title=title)
