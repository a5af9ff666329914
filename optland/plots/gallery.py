"""A gallery of landscapes of two variables: surfaces side by side, their critical points marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optland.config import did_you_mean
from optland.plots.figure import COLOURS, figure, save, tidy_depth
from optland.problems import SURFACES, Surface

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FOUR", "plot_gallery"]

FOUR = ("convex", "multimodal", "saddle", "Rosenbrock")
"""One of each: a bowl, many minima, a saddle, a bent valley."""

_MARKS = {
    "minimum": ("o", COLOURS["red"]),
    "strict saddle": ("X", COLOURS["orange"]),
    "degenerate": ("s", COLOURS["grey"]),
}


def plot_gallery(
    path: str | Path | None = None, names: Sequence[str] = FOUR, *, num_points: int = 81
) -> Figure:
    """Draw surfaces of :data:`optland.problems.SURFACES`, two in a row.

    Args:
        path: Where to write the picture as well; None writes nothing.
        names: Which; the four classic ones by default, ``tuple(SURFACES)`` for all.
        num_points: Of a side of each grid.

    Returns:
        The figure.

    Raises:
        ValueError: A name that is not known, or none.
        UserError: matplotlib is not installed.
    """
    for name in names:
        if name not in SURFACES:
            raise ValueError(
                f"surface {name!r} is not known; choose from {list(SURFACES)}.{did_you_mean(name, SURFACES)}"
            )
    if not names:
        raise ValueError(f"names is empty; choose from {list(SURFACES)}")
    columns = 2 if len(names) <= 4 else 4
    rows = -(-len(names) // columns)
    page = figure(5.0 * columns, 4.4 * rows)
    for place, name in enumerate(names, start=1):
        _draw(page.add_subplot(rows, columns, place, projection="3d"), SURFACES[name], num_points)
    kinds = dict.fromkeys(p.kind for name in names for p in SURFACES[name].points)
    handles = [_mark(kind) for kind in kinds]
    page.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return save(page, path)


def _draw(axis: Any, surface: Surface, points: int) -> None:
    import numpy as np

    along, values = surface.grid(points)
    x, y = np.meshgrid(along.numpy(), along.numpy(), indexing="ij")
    axis.plot_surface(x, y, values.numpy(), cmap="viridis", alpha=0.75, linewidth=0)
    for point in surface.points:
        mark, colour = _MARKS[point.kind]
        height = surface.objective(*point.at).value()
        axis.plot([point.at[0]], [point.at[1]], [height], mark, color=colour, markersize=7, zorder=10)
    axis.set_title(surface.name, fontsize=11)
    axis.set_xlabel("x")
    axis.set_ylabel("y")
    axis.set_zlabel("loss")
    tidy_depth(axis)


def _mark(kind: str) -> Any:
    from matplotlib.lines import Line2D

    mark, colour = _MARKS[kind]
    return Line2D([], [], marker=mark, color=colour, linestyle="", markersize=7, label=kind)
