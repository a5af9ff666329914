"""``plot(result)``: the picture of any result, by its type.

What has a picture of its own registers it with :func:`plot`; every other result that can be saved is drawn as a card of
its numbers, each with its error and whether it converged.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optland.archive import Archived
from optland.estimate import Estimate, Provenance
from optland.plots.figure import COLOURS, figure, fitted, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["one_panel", "plot"]


@functools.singledispatch
def plot(result: Any, path: str | Path | None = None, *, title: str = "") -> Figure:
    """Draw a result.

    What is drawn, hollow or dotted wherever it did not converge:

    ======================================  ======================================================================
    result                                  picture
    ======================================  ======================================================================
    ``Spectrum``, ``Tracked``               eigenvalues at both ends, with their residuals
    ``Density``, ``Curve``                  the density of all eigenvalues with its error, outliers as spikes
    ``Trace``, ``Diagonal``                 the trace of each layer with its standard error, the 24 largest of many
    ``Portrait``                            these three and the kind of point on one page
    ``CriticalStep``                        the losses of the trials and the step that was found
    ``StableRate``                          every rate in units of the largest stable one
    ``Slice``                               the loss along a line, or as contours over a plane
    ``PathLoss``, ``Connection``            the loss along a path, the highest point and the ends
    ``Rays``                                each ray's second difference against the Hessian's curvature along it
    ``Sharpness``, ``Minimum`` and several  rises of the loss, side by side
    ``Damage``                              predicted and measured rise, and by layer
    ``EffectiveDimension``                  the share of the gradients' length that so many directions hold
    ``TrajectoryPlane``                     a run's path in the plane of its two principal components
    a mapping of rank correlations          Kendall's tau of each measure with its interval
    any other result                        a card of its numbers, each with its error
    ======================================  ======================================================================

    Args:
        result: Anything that :mod:`optland.curvature`, :mod:`optland.landscape` or :mod:`optland.report` returned and
            that can be saved; a list of sharpness values, or the mapping of rank correlations, is drawn side by side.
        path: Where to write the picture as well, as PNG unless the name ends otherwise; None, the default, writes
            nothing.
        title: Over the picture; by default what was measured, and on what.

    Returns:
        The figure, which a notebook shows and which can be changed and saved again.

    Raises:
        TypeError: This is no result.
        UserError: matplotlib is not installed.

    Example:
        >>> import optland
        >>> from optland.problems import saddle
        >>> figure = optland.plot(optland.lanczos(optland.hessian(saddle())))
        >>> [axis.get_ylabel() for axis in figure.axes]
        ['eigenvalue']
    """
    raise TypeError(
        f"there is no picture of a {type(result).__name__}; pass what a function of optland returned, such as a "
        "spectrum, a density or a slice, or a list of sharpness values"
    )


Draw = Callable[[Any, Any], str]
Inches = tuple[float, float]
Grid = Literal["both", "x", "y"]


def one_panel(
    *kinds: type, size: Inches | Callable[[Any], Inches] = (7.5, 4.2), grid: Grid = "both"
) -> Callable[[Draw], Callable[..., Figure]]:
    """Make ``draw(axis, result)``, which draws on one axis and gives the title, the picture of these kinds of result.

    Args:
        kinds: Types of result.
        size: Width and height in inches, or what gives them for a result.
        grid: Axis of the grid lines: ``x``, ``y`` or ``both``.

    Returns:
        A decorator. The picture that it makes takes ``(result, path=None, *, title="")``, as :func:`plot` does.
    """

    def registered(draw: Draw) -> Callable[..., Figure]:
        def picture(result: Any, path: str | Path | None = None, *, title: str = "") -> Figure:
            page = figure(*(size(result) if callable(size) else size))
            axis = page.subplots()
            words = draw(axis, result)
            page.suptitle(fitted(page, title or words, size=10), fontsize=10)
            axis.grid(alpha=0.25, axis=grid)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(frameon=False, fontsize=9)
            return save(page, path)

        for kind in kinds:
            plot.register(kind, picture)
        return picture

    return registered


_MOST = 40
"""Lines that a card has room for."""

_LETTERS = 76
"""Letters that a line has room for."""


@plot.register(Archived)
def _(result: Archived, path: str | Path | None = None, *, title: str = "") -> Figure:
    """A card: a line for each number, hollow where it has not converged."""
    lines = list(_lines(result))
    shown = lines[:_MOST]
    page = figure(8.5, 1.0 + 0.32 * len(shown))
    axis = page.subplots()
    axis.axis("off")
    axis.set_xlim(0.0, 1.0)
    axis.set_ylim(len(shown) - 0.5, -0.5)
    for row, (name, value, converged) in enumerate(shown):
        axis.plot([0.01], [row], "o", color=COLOURS["blue"], markersize=5,
                  markerfacecolor=COLOURS["blue"] if converged else "none")  # fmt: skip
        for place, words, colour in ((0.04, name, COLOURS["grey"]), (0.36, value, "black")):
            # Outside the layout, which would shrink the axis until the widest text fits beside itself.
            axis.text(place, row, words, va="center", fontsize=9, color=colour, in_layout=False)
    kind = _in_words(type(result).__name__)
    rest = f", the first {_MOST} of {len(lines)} values" if len(lines) > _MOST else ""
    at = getattr(result, "provenance", None)
    of = f"\n{in_words(at)}" if isinstance(at, Provenance) else ""
    page.suptitle(fitted(page, title or f"{kind}{rest}{of}", size=10), fontsize=10)
    return save(page, path)


def _lines(result: Any, prefix: str = "") -> Iterator[tuple[str, str, bool]]:
    """Name, value in words, and whether it converged, of every number and word in a result."""
    for field in dataclasses.fields(result):
        if field.name.startswith("_") or (
            field.name == "provenance" and not prefix
        ):  # of which the title speaks
            continue
        yield from _line(f"{prefix}{field.name.replace('_', ' ')}", getattr(result, field.name))


def _line(name: str, value: Any) -> Iterator[tuple[str, str, bool]]:
    if isinstance(value, Estimate):
        yield name, str(value), value.converged
    elif isinstance(value, Provenance):
        yield name, textwrap.shorten(in_words(value), _LETTERS, placeholder=" ..."), True
    elif dataclasses.is_dataclass(value):
        yield from _lines(value, f"{name}: ")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _line(f"{name}: {key}", item)
    elif isinstance(value, float):
        yield name, f"{value:.5g}", not math.isnan(value)
    elif isinstance(value, bool):
        yield name, "yes" if value else "no", True
    elif isinstance(value, int | str) and str(value):
        yield name, textwrap.shorten(str(value), _LETTERS, placeholder=" ..."), True
    elif isinstance(value, tuple | list) and value and all(isinstance(v, int | float | str) for v in value):
        shown = ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in value)
        yield name, textwrap.shorten(shown, _LETTERS, placeholder=" ..."), True
    elif hasattr(value, "shape"):
        yield name, f"an array of shape {tuple(value.shape)}", True


def in_words(at: Provenance) -> str:
    """What was measured, on what; why a way of computing was taken is left out.

    Example:
        >>> in_words(Provenance("lanczos on the Hessian by kept_graph (one batch)", num_samples=32))
        'lanczos on the Hessian by kept_graph, 32 samples, eval mode'
    """
    data = f", {at.num_samples} samples" if at.num_samples else ""
    return f"{at.method.partition(' (')[0]}{data}, {at.mode} mode"


def _in_words(name: str) -> str:
    """A class's name as words.

    Example:
        >>> _in_words("RankCorrelation")
        'rank correlation'
    """
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
