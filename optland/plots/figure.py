"""An empty figure and the palette, for every picture of the package."""

from __future__ import annotations

from typing import Any

from optland.config import UserError

__all__ = ["COLOURS", "figure"]

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
