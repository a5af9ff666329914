"""The output of ``optland probe``: rows of the table, the verdict in words, the content of ``probe.json``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from optland.curvature.points.portrait import Portrait
from optland.curvature.stability.ratio import StabilityRatio
from optland.curvature.stability.stable_rate import StableRate
from optland.curvature.stochastic.density import Density
from optland.estimate import Estimate
from optland.files import for_json
from optland.report.words import curvature_in_words, point_in_words

__all__ = ["Report"]

LAYERS = 5
"""Layers with a row of their own; the figure and ``probe.json`` have them all."""

_LAYER = "  of "
"""Begins the name of a layer's trace."""

_RATES = {"last": "at its end", "median": "in the median", "peak": "at its peak"}


@dataclass(frozen=True)
class Report:
    """Everything that was measured, and what it was measured on.

    Attributes:
        portrait: The point.
        stability: Learning rates against the edge; None where it could not be had.
        averaged: Whether the point is the average of the weights, and stability that of the weights themselves.
        about: What, where and how, for ``probe.json``: plain values.
        notes: Sentences about what is not as it should be.
    """

    portrait: Portrait
    stability: StableRate | None
    averaged: bool
    about: Mapping[str, Any]
    notes: tuple[str, ...]

    def rows(self) -> Iterator[tuple[str, Estimate]]:
        """Every number of the table by its name.

        Returns:
            Pairs in the order of the table: those of the portrait, the five largest layers of the trace, the stability
            ratios.
        """
        trace = self.portrait.trace
        for name, estimate in self.portrait.estimates():
            if name != "gradient norm":  # its error is a floor, which has words of its own
                yield name, estimate
            else:
                yield f"gradient norm (floor: {self.portrait.point.floor_kind})", estimate
            if name == "trace":
                largest = sorted(trace.per_layer.items(), key=lambda item: -abs(item[1].value))
                yield from ((f"{_LAYER}{layer}", part) for layer, part in largest[:LAYERS])
        yield from self._stability_rows()

    def _stability_rows(self) -> Iterator[tuple[str, Estimate]]:
        if self.stability is None:
            return
        where = ", weights before averaging" if self.averaged else ""
        yield f"largest stable learning rate{where}", self.stability.largest
        for name, found in self.stability.ratios.items():
            yield f"stability ratio at the {name} rate {self.stability.rates[name]:.3g}", found.ratio

    def table(self) -> Table:
        """The rows, with what they were measured on as a caption.

        Returns:
            A table for a rich console; rows that have not converged are yellow and say so.
        """
        source = self.portrait.point.provenance
        where = f"{source.data}, {source.mode} mode, seed {source.seed}, {source.dtype}"
        caption = f"on {where}; errors: the estimators' own"
        table = Table(title="curvature", caption=Text(caption), title_style="bold", caption_style="")
        for column, side in (("quantity", "left"), ("value", "right"), ("error", "right"), ("kind", "left")):
            table.add_column(column, justify="right" if side == "right" else "left", overflow="fold")
        table.add_column("converged", overflow="fold")
        for name, estimate in self.rows():
            known = "yes" if estimate.converged else "NOT CONVERGED"
            value = f"{estimate.value:.4g}" if not math.isnan(estimate.value) else "not known"
            kind = "floor" if name.startswith("gradient norm") else estimate.error_kind.replace("_", " ")
            has_error = estimate.error_kind != "none" and not math.isnan(estimate.error)
            error = f"{estimate.error:.2g}" if has_error else ""
            cells = map(Text, (name, value, error, kind, known))
            table.add_row(*cells, style=None if estimate.converged else "yellow")
        return table

    # The verdict -----------------------------------------------------------------------------------

    def verdict(self) -> str:
        """The point, its curvature and its stability in a few sentences.

        Returns:
            Sentences on the kind of point, its curvature and the rates that it bears; last, what has not converged.
        """
        words = [point_in_words(self.portrait), curvature_in_words(self.portrait)]
        sentences = [*words, self._edge(), self._unconverged()]
        return " ".join(sentence for sentence in sentences if sentence)

    def _edge(self) -> str:
        found = self.stability
        if found is None:
            return ""
        text = ""
        if not math.isnan(found.largest.value):
            limit = found.largest.value
            upto = f"up to {'' if found.largest.converged else 'at most '}{limit:.3g}"
            upto = upto if math.isfinite(limit) else "of any size"
            whose = " before averaging" if self.averaged else ""
            text = f"At these weights{whose} the optimizer can stand learning rates {upto} ({found.rule})"
        parts = [
            f"{found.rates[name]:.3g} {_RATES.get(name, name)} ({_share(ratio)})"
            for name, ratio in found.ratios.items()
        ]
        used = f"the run used {_and(parts)}" if parts else ""
        joined = "; ".join(part for part in (text, used) if part)
        return f"{joined[0].upper()}{joined[1:]}." if joined else ""

    def _unconverged(self) -> str:
        missing = [
            name for name, estimate in self.rows() if not (estimate.converged or name.startswith(_LAYER))
        ]
        return f"NOT CONVERGED: {', '.join(missing)}; more --max-matvecs can help." if missing else ""

    # probe.json ------------------------------------------------------------------------------------

    def content(self) -> dict[str, Any]:
        """Everything as JSON can hold it; a number that is not finite becomes null.

        Returns:
            Nested plain values; each estimate with all its fields: value, error and its kind, whether it converged,
            cost, provenance.
        """
        spectrum, point = self.portrait.spectrum, self.portrait.point
        content = {
            **self.about,
            "dim": self.portrait.dim,
            "loss": point.loss,
            "method": self.portrait.method,
            "num_matvecs": self.portrait.num_matvecs,
            "verdict": self.verdict(),
            "notes": list(self.notes),
            "estimates": {n: e.to_dict() for n, e in self.rows() if not n.startswith(_LAYER)},
            "ritz_values": list(spectrum.ritz_values),
            "negative_curvature": {"verdict": spectrum.negative_curvature, "tau": spectrum.tau},
            "trace_per_layer": {k: v.to_dict() for k, v in self.portrait.trace.per_layer.items()},
            "density": None if self.portrait.density is None else _density(self.portrait.density),
            "point": {
                "verdict": point.verdict, "critical": point.critical, "index_at_least": point.index_at_least,
                "floor": point.floor, "floor_kind": point.floor_kind, "tau": point.tau, "tau_parts": point.tau_parts,
                "newton_step": point.newton_step.to_dict(), "flatness": point.flatness.to_dict(), "note": point.note,
            },
            "stability": None if self.stability is None else _stability(self.stability),
        }  # fmt: skip
        plain: dict[str, Any] = for_json(content)
        return plain


def _share(found: StabilityRatio) -> str:
    """A ratio in words; below its own edge it needs none but the number."""
    least = "" if found.ratio.converged else "at least "
    there = f", {found.verdict}" if found.verdict in ("at the edge", "beyond the edge") else ""
    return f"{least}{100 * found.ratio.value:.3g} % of the edge{there}"


def _density(shape: Density) -> dict[str, Any]:
    lists = {
        name: [part.tolist() for part in getattr(shape, name)] for name in ("nodes", "weights", "residuals")
    }
    outliers = [{"value": spike.value.to_dict(), "share": spike.mass.to_dict()} for spike in shape.outliers]
    return {**lists, "outliers": outliers, "num_matvecs": shape.num_matvecs, "note": shape.note}


def _stability(found: StableRate) -> dict[str, Any]:
    return {
        "rule": found.rule,
        "adaptive": found.adaptive,
        "largest": found.largest.to_dict(),
        "sharpness": found.sharpness.to_dict(),
        "note": found.note,
        "rates": {
            name: {"rate": found.rates[name], "ratio": ratio.ratio.to_dict(), "verdict": ratio.verdict}
            for name, ratio in found.ratios.items()
        },
    }


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
