"""Figures of optimizers side by side at a saddle or on a plateau: their paths, costs and escapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optland.plots.figure import figure, save
from optland.problems import Surface

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Descent", "plot_escapes"]

_LINES = ("-", "--", "-.", ":")
_WHEEL = ("#2b6cb0", "#c53030", "#2f855a", "#c05621", "#6b46c1", "#718096", "#b7791f", "#0d9488")


@dataclass(frozen=True)
class Descent:
    """The path of one optimizer.

    Attributes:
        ge: Gradient evaluations after each step, ascending.
        loss: The loss there.
        places: (x, y) there; empty where there are more than two weights.
        escapes: Gradient evaluations and loss where it left along negative curvature or by a kick.
    """

    ge: Sequence[float]
    loss: Sequence[float]
    places: Sequence[tuple[float, float]] = ()
    escapes: Sequence[tuple[float, float]] = ()

    def left(self, surface: Surface | None = None) -> bool:
        """Whether it ended below its start and every saddle of the surface, by more than rounding.

        Args:
            surface: What it went over; without one the loss at its start is the level.
        """
        points = surface.points if surface is not None else ()
        saddles = [surface.objective(*p.at).value() for p in points if surface and p.kind != "minimum"]
        level = min([self.loss[0], *saddles])
        return self.loss[-1] < level - 1e-6 * (1 + abs(level))


def plot_escapes(
    descents: Mapping[str, Descent], path: str | Path | None = None, *, surface: Surface | None = None
) -> Figure:
    """Draw the loss against gradient evaluations, and the ways over the surface where it has two variables.

    Args:
        descents: By the optimizer's name.
        path: Where to write the picture as well; None writes nothing.
        surface: What they went over; None draws the loss alone.

    Returns:
        The figure.

    Raises:
        ValueError: There is nothing to draw.
        UserError: matplotlib is not installed.
    """
    if not descents:
        raise ValueError("descents is empty; give at least one by name")
    page = figure(13 if surface is not None else 8, 5.2)
    panels = page.subplots(1, 2 if surface is not None else 1, squeeze=False)[0]
    if surface is not None:
        _map(panels[0], surface, descents)
    _losses(panels[-1], descents)
    return save(page, path)


def _style(number: int) -> dict[str, Any]:
    """Colour and dashes of the line with this number; eight colours, then the next dashes."""
    return {"color": _WHEEL[number % len(_WHEEL)], "linestyle": _LINES[number // len(_WHEEL) % len(_LINES)]}


def _map(axis: Any, surface: Surface, descents: Mapping[str, Descent]) -> None:
    along, values = surface.grid(81)
    axis.contourf(along.numpy(), along.numpy(), values.numpy().T, levels=30, cmap="Greys", alpha=0.6)
    low, high = surface.window
    for number, (name, found) in enumerate(descents.items()):
        x, y = zip(*found.places, strict=True)
        axis.plot(x, y, label=name, linewidth=1.5, **_style(number))
        axis.plot(x[-1:], y[-1:], "o", color=_style(number)["color"], markersize=6, markeredgecolor="white")
    axis.plot(*next(iter(descents.values())).places[0], "k*", markersize=11, label="start")
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)
    axis.set_xlabel("x")
    axis.set_ylabel("y")
    axis.set_title(f"{surface.name}: the ways, a dot at each end", fontsize=10)


def _losses(axis: Any, descents: Mapping[str, Descent]) -> None:
    for number, (name, found) in enumerate(descents.items()):
        axis.plot(found.ge, found.loss, label=name, linewidth=1.6, **_style(number))
        if found.escapes:
            ge, loss = zip(*found.escapes, strict=True)
            axis.plot(ge, loss, "^", color=_style(number)["color"], markersize=8, markeredgecolor="white")
    axis.set_xlabel("gradient evaluations, looks at the curvature counted")
    axis.set_ylabel("loss")
    axis.set_title("a triangle marks an escape or a kick", fontsize=10)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
