"""Pictures of the curvature at a point: densities, eigenvalues, traces by layer, and all of them on one page."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optland.curvature import CriticalStep, Density, Diagonal, Portrait, Spectrum, StableRate, Trace
from optland.curvature.eigen.tracker import Tracked
from optland.curvature.stochastic.density import Curve
from optland.plots.figure import COLOURS, figure, fitted, rows, save
from optland.plots.result import in_words, one_panel, plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_portrait"]


def plot_portrait(
    portrait: Portrait, path: str | Path | None = None, *, title: str = "", verdict: str = ""
) -> Figure:
    """Draw the curvature at a point: density with outliers as spikes, extreme eigenvalues, trace by layer, verdict.

    A spike is as high as its kernel would be, so that it and the curve share one unit. What did not converge is hollow.

    Args:
        portrait: The point.
        path: Where to write the picture as well; None writes nothing.
        title: What was measured, and on what.
        verdict: Sentences to set below; by default what kind of point it is.

    Returns:
        The figure.

    Raises:
        UserError: matplotlib is not installed.
    """
    page = figure(12, 9.5)
    halves: Any = page.subfigures(2, 1)
    above, below = halves  # apart, so that long names of layers leave the upper row its width
    upper = [["density", "density", "values"]] if portrait.density is not None else [["values"]]
    axes = above.subplot_mosaic(upper)
    axes |= below.subplot_mosaic([["layers", "text"]], width_ratios=[1.6, 1])
    if portrait.density is not None:
        _density(axes["density"], portrait.density)
    _extremes(axes["values"], portrait.spectrum)
    _layers(axes["layers"], portrait.trace)
    axes["text"].axis("off")
    verdict = verdict or str(portrait.point)
    long = len(verdict) > _LETTERS_OF_VERDICT
    lines = "\n".join(textwrap.fill(line.strip(), 66 if long else 52) for line in verdict.splitlines())
    axes["text"].text(0.0, 1.0, lines, va="top", fontsize=8 if long else 10,
                      transform=axes["text"].transAxes)  # fmt: skip
    page.suptitle(fitted(page, title or f"curvature at a point of loss {portrait.loss:.4g}", size=12))
    return save(page, path)


_LETTERS_OF_VERDICT = 1100  # more than this would run out of the figure

_FAR = 3.0  # outliers beyond this many widths of the bulk would squeeze it into a line


def _density(axis: Any, density: Density) -> None:
    """The smoothed bulk with its error, and every outlier by itself."""
    curve, outliers = density.curve(), density.outliers
    peak = float(curve.value.max(initial=0.0))
    heights = [spike.mass.value / (curve.sigma * math.sqrt(2 * math.pi)) for spike in outliers]
    shown = [height for height in [peak, *heights] if height > 0 and math.isfinite(height)]
    bottom = min([height / 10 for height in shown] + [1e-4 * peak or 1e-4])
    axis.semilogy(curve.grid, curve.value.clip(bottom / 10), color=COLOURS["blue"], label="bulk")
    low, high = (curve.value - curve.error).clip(bottom / 10), (curve.value + curve.error).clip(bottom / 10)
    axis.fill_between(
        curve.grid, low, high, color=COLOURS["blue"], alpha=0.2, linewidth=0, label="standard error"
    )
    places = [spike.value.value for spike in outliers]
    axis.vlines(places, bottom, heights, color=COLOURS["red"], linewidth=1)
    axis.plot(places, heights, "o", color=COLOURS["red"], markersize=4, label="outliers" if places else None)
    axis.axvline(0.0, color=COLOURS["grey"], linewidth=0.8, linestyle=":")
    axis.set_ylim(bottom, 3 * max(shown, default=1.0))
    bulk = float(abs(curve.grid).max(initial=0.0))
    if places and max(map(abs, places)) > _FAR * bulk > 0:
        axis.set_xscale("symlog", linthresh=bulk, linscale=2)
        axis.set_xlim(1.3 * min(curve.grid[0], *places), 1.3 * max(curve.grid[-1], *places))
        axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel(f"eigenvalue{', logarithmic beyond the bulk' if axis.get_xscale() == 'symlog' else ''}")
    axis.set_ylabel("density")
    axis.set_title(f"density of {density.d} eigenvalues", fontsize=10)
    axis.legend(frameon=False, fontsize=9)
    axis.grid(alpha=0.25)


def _extremes(axis: Any, spectrum: Spectrum) -> None:
    """The eigenvalues at both ends with their residuals, largest on the left."""
    for place, value in enumerate(spectrum.values):
        face = COLOURS["blue"] if value.converged else "none"
        bar = value.error if math.isfinite(value.error) else 0.0
        axis.errorbar([place], [value.value], yerr=bar, fmt="o", color=COLOURS["blue"], markerfacecolor=face,
                      markersize=7, capsize=3)  # fmt: skip
        axis.annotate(f"{value.value:.3g}", (place, value.value + bar), xytext=(0, 7),
                      textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
    count, top = len(spectrum.values), spectrum.num_top
    names = [f"top {i + 1}" if i < top else f"low {count - i}" for i in range(count)]
    axis.set_xticks(range(count), names, rotation=45 if count > 4 else 0, fontsize=9)
    axis.set_xlim(-0.6, count - 0.4)
    axis.margins(y=0.18)
    axis.axhline(0.0, color=COLOURS["grey"], linewidth=0.8, linestyle=":")
    axis.set_title("extreme eigenvalues, bar: residual", fontsize=10)
    axis.set_ylabel("eigenvalue")
    axis.set_xlabel("" if spectrum.converged else "hollow: NOT CONVERGED")
    axis.grid(alpha=0.25)


_LAYERS_SHOWN = 24  # more bars than this cannot be read


def _layers(axis: Any, trace: Trace | Diagonal) -> None:
    """The trace of every layer with its standard error, in the model's order; of many, those of the largest trace."""
    largest = sorted(trace.per_layer, key=lambda name: -abs(trace.per_layer[name].value))[:_LAYERS_SHOWN]
    names = [name for name in trace.per_layer if name in largest]
    short = [name if len(name) < 44 else f"...{name[-40:]}" for name in names]
    rows(axis, short, [trace.per_layer[name] for name in names], COLOURS["green"], size=8)
    total, left = trace.total, len(trace.per_layer) - len(names)
    state = "" if total.converged else ", NOT CONVERGED"
    axis.set_title(f"trace by layer, in all {total.value:.4g} ± {total.error:.2g}{state}", fontsize=10)
    rest = f"; {left} smaller ones left out" if left else ""
    axis.set_xlabel(f"trace (hollow: not known to a tenth{rest})")


# One result, one picture -------------------------------------------------------------------------------------


plot.register(Portrait, plot_portrait)


@one_panel(Density)
def _(axis: Any, result: Density) -> str:
    _density(axis, result)
    return in_words(result.provenance)


@one_panel(Spectrum, size=lambda result: (max(4.5, 0.8 * len(result.values) + 2.0), 4.2))
def _(axis: Any, result: Spectrum) -> str:
    _extremes(axis, result)
    return in_words(result.provenance)


@plot.register(Tracked)
def _(result: Tracked, path: str | Path | None = None, *, title: str = "") -> Figure:
    why = f"; audited ({result.why})" if result.why else ""
    return plot(result.spectrum, path, title=title or f"{in_words(result.spectrum.provenance)}{why}")


def _room(result: Trace | Diagonal) -> tuple[float, float]:
    return 7.5, 1.8 + 0.28 * max(min(len(result.per_layer), _LAYERS_SHOWN), 3)


@one_panel(Trace, Diagonal, size=_room, grid="x")
def _(axis: Any, result: Trace | Diagonal) -> str:
    _layers(axis, result)
    return in_words(result.provenance)


@one_panel(Curve)
def _(axis: Any, result: Curve) -> str:
    axis.plot(result.grid, result.value, color=COLOURS["blue"])
    axis.fill_between(result.grid, result.value - result.error, result.value + result.error,
                      color=COLOURS["blue"], alpha=0.2, linewidth=0)  # fmt: skip
    log = result.scale == "log"
    axis.set_xlabel("logarithm of the size of the eigenvalue, base 10" if log else "eigenvalue")
    axis.set_ylabel("density")
    return "density of eigenvalues, band: standard error"


@one_panel(CriticalStep)
def _(axis: Any, result: CriticalStep) -> str:
    """The loss at every trial, the level it started from, and the step that was found."""
    trials = sorted((t, loss) for t, loss in result.losses if math.isfinite(loss))
    if trials:
        axis.plot(*zip(*trials, strict=True), ".-", color=COLOURS["blue"], label="loss of the batch")
        axis.axhline(result.losses[0][1], color=COLOURS["grey"], linewidth=0.9, linestyle="--",
                     label="where it started")  # fmt: skip
    if result.step.finite:
        axis.axvline(result.step.value, color=COLOURS["red"], linewidth=1.0, label="critical step",
                     linestyle="-" if result.step.converged else ":")  # fmt: skip
    axis.set_xlabel("multiple of the direction")
    axis.set_ylabel("loss")
    return str(result)


@one_panel(StableRate, size=lambda result: (7.0, 1.4 + 0.4 * len(result.ratios)), grid="x")
def _(axis: Any, result: StableRate) -> str:
    """Every rate in units of the largest stable one, which stands at 1."""
    named = {f"{name}, {result.rates[name]:.3g}": found.ratio for name, found in result.ratios.items()}
    rows(axis, list(named), list(named.values()), COLOURS["blue"], size=9)
    unit = "sharpness over the largest stable one: above 1 a full-batch step is unstable"
    converged = all(e.converged for e in named.values())
    axis.set_xlabel(unit if converged else f"{unit} (hollow: NOT CONVERGED)")
    axis.axvline(1.0, color=COLOURS["red"], linewidth=1.2)
    return f"largest stable rate {result.largest}\n{result.rule}"
