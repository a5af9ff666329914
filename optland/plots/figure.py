"""The empty figure, the palette, and the way out of every picture of the package.

A picture is a plain matplotlib ``Figure``: returned, so that it can be changed and saved again, and written where a
path is given. It belongs to no window and to no ``pyplot``; a notebook shows it where it is the last line of a cell.
"""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optland.config import UserError
from optland.estimate import Estimate
from optland.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "figure", "fitted", "rows", "save", "spans_decades", "tidy_depth"]

_DPI = 110
COLOURS = {"blue": "#2b6cb0", "red": "#c53030", "green": "#2f855a", "grey": "#718096", "orange": "#c05621"}


def figure(width: float, height: float) -> Figure:
    """An empty figure through the object interface: no display, no change to the user's own pyplot.

    Args:
        width: In inches.
        height: In inches.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise UserError("the figure needs matplotlib; run: pip install 'optland[recipes]'") from error
    room = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)  # inches, or text stands at the very edge
    made: Figure = _shown_in_notebooks()(figsize=(width, height), layout=room)
    FigureCanvasAgg(made)
    return made


def fitted(page: Figure, text: str, *, size: float = 9) -> str:
    r"""A title broken into lines that the figure has room for; the lines that it has stay.

    Args:
        page: The figure, whose width decides.
        text: The title.
        size: Of its letters, in points.

    Example:
        >>> fitted(figure(3, 2), "one two three four five six seven eight nine ten")
        'one two three four five six seven eight\nnine ten'
    """
    letters = int(page.get_figwidth() * 72 / (0.58 * size))  # a letter is about 0.58 of its size wide
    return "\n".join(textwrap.fill(line, letters) for line in text.splitlines())


def tidy_depth(axis: Any) -> None:
    """Few small figures on the axes of a surface, or they run into each other.

    Args:
        axis: A three-dimensional axis.
    """
    for one in (axis.xaxis, axis.yaxis, axis.zaxis):
        one.set_major_locator(_few())
        one.set_tick_params(labelsize=8)
    axis.zaxis.labelpad = 8


def rows(axis: Any, names: Sequence[str], parts: Sequence[Estimate], colour: str, *, size: int) -> None:
    """A bar for each estimate with its error, the first on top; hollow where it did not converge.

    Args:
        axis: A plain axis.
        names: One for each estimate.
        parts: The estimates; an error that is not finite is drawn as none.
        colour: Of the bars.
        size: Of the names, in points.
    """
    errors = [part.error if math.isfinite(part.error) else 0.0 for part in parts]
    faces = [colour if part.converged else "none" for part in parts]
    axis.barh(range(len(parts)), [part.value for part in parts], xerr=errors, color=faces, capsize=3,
              edgecolor=colour, ecolor=COLOURS["grey"])  # fmt: skip
    axis.set_yticks(range(len(parts)), list(names), fontsize=size)
    axis.invert_yaxis()
    axis.axvline(0.0, color=COLOURS["grey"], linewidth=0.8, linestyle=":")
    axis.grid(alpha=0.25, axis="x")


def spans_decades(values: Sequence[float]) -> bool:
    """Whether numbers are shown by their logarithm, or the small ones would not be seen.

    Args:
        values: What is drawn, without NaN.

    Returns:
        True where all are positive and the largest is over 100 times the smallest.
    """
    return bool(values) and min(values) > 0 and max(values) > 100 * min(values)


def _few() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=4, min_n_ticks=3)


@functools.cache
def _shown_in_notebooks() -> Any:
    """The class of our figures: matplotlib's, which a notebook shows without ``pyplot`` and its state."""
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure that a notebook shows."""

        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png", dpi=_DPI)
            return picture.getvalue()

    return Picture


def save(page: Figure, path: str | Path | None) -> Figure:
    """Write a figure whole or not at all, and give it back; its kind is the file's ending, PNG without an ending.

    Args:
        page: The figure.
        path: Where to; None writes nothing.

    Returns:
        The same figure.

    Raises:
        OSError: It could not be written; nothing is left behind.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save(figure(3, 2), Path(folder) / "empty.svg")
        ...     [file.name for file in Path(folder).iterdir()]
        ['empty.svg']
    """
    if path is None:
        return page
    path = Path(path)
    kind = path.suffix.removeprefix(".") or "png"
    picture = io.BytesIO()
    page.savefig(picture, format=kind, dpi=_DPI)
    write_whole(path if path.suffix else path.with_name(f"{path.name}.png"), picture.getbuffer())
    return page
