"""The empty figure and the palette of every picture of the package."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from optland.config import UserError
from optland.files import write_whole

__all__ = ["COLOURS", "figure", "save"]

COLOURS = {"blue": "#2b6cb0", "red": "#c53030", "green": "#2f855a", "grey": "#718096", "orange": "#c05621"}


def figure(width: float, height: float) -> Any:
    """An empty figure through the object interface: no display, no change to the user's own pyplot.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("the figure needs matplotlib; run: pip install 'optland[recipes]'") from error
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(page: Any, path: str | Path) -> None:
    """Write a figure whole or not at all; its kind is the file's ending, PNG without an ending.

    Raises:
        OSError: It could not be written; nothing is left behind.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".") or "png"
    picture = io.BytesIO()
    page.savefig(picture, format=kind, dpi=110)
    write_whole(path if path.suffix else path.with_name(f"{path.name}.png"), picture.getbuffer())
