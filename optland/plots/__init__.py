"""Pictures: of runs, of the curvature at a point, and of every result about the landscape.

The one place, with the report, that imports matplotlib, and only inside functions.
"""

from optland.plots import curvature as curvature  # registers its pictures
from optland.plots.escapes import Descent, plot_escapes
from optland.plots.gallery import plot_gallery
from optland.plots.landscape import plot
from optland.plots.runs import plot_comparison, plot_run

__all__ = [
    "Descent",
    "plot",
    "plot_comparison",
    "plot_escapes",
    "plot_gallery",
    "plot_run",
]
