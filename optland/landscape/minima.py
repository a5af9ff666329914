r"""Several minima side by side: every sharpness of each, on the same data, with the same settings.

A value of sharpness means nothing alone, and between two minima only where everything that decides it is the same:
the data, the mode, m, the radius, the norm and the metric. :func:`compare_minima` takes care of that and gives

- the loss, and the gap to another loss (test minus training) where one is given;
- the largest eigenvalue and the trace of the Hessian;
- average, SAM and worst-case sharpness at each radius, in the identity and in the adaptive metric.

**Caveats.** The order of two minima can change with the metric, and does (Dinh et al. 2017, arXiv:1703.04933): rows
that disagree are the finding, not a fault. A radius in the adaptive metric is relative to each weight, so the same
number is a ball of another size there. Noise of the average has the length of the radius, not that deviation in each
weight.

**Cost.** For each minimum a Lanczos run and a trace of at most 40 Hessian products each, and for each
radius and metric ``2 num_pairs + 1`` forwards, one SAM step, and two ascents of ``num_steps`` gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optland.archive import Archived
from optland.curvature import hessian, lanczos, trace
from optland.estimate import Estimate
from optland.landscape.sharpness import Metric, Sharpness, average_sharpness, sam_sharpness, worst_sharpness
from optland.objective import Objective

__all__ = ["MinimaComparison", "Minimum", "compare_minima"]

METRICS: tuple[Metric, ...] = ("identity", "adaptive")

MATVECS = 40
"""Most Hessian products of the eigenvalue, and of the trace."""


@dataclass(frozen=True, slots=True)
class Minimum(Archived):
    """The measurements at one minimum.

    Attributes:
        name: Its name.
        loss: L there.
        gap: Loss on the other data minus ``loss``; NaN where there were none.
        largest: Largest eigenvalue of the Hessian.
        trace: Its trace.
        sharpness: Every sharpness, in the same order for every minimum.
        dim: Number of weights.
        cost_ge: Gradient evaluations.
    """

    name: str
    loss: float
    gap: float
    largest: Estimate
    trace: Estimate
    sharpness: tuple[Sharpness, ...]
    dim: int
    cost_ge: float

    def rises(self) -> dict[str, Estimate]:
        """Every rise of the loss by its complete name, which is the same for nets of different size.

        The average is named by the length of the noise, since its deviation in each weight depends on their number.
        """
        return {self._name(s): s.rise for s in self.sharpness}

    def measures(self) -> dict[str, Estimate]:
        """Every measure of flatness by its complete name."""
        return {"largest eigenvalue": self.largest, "trace": self.trace, **self.rises()}

    @property
    def labels(self) -> dict[str, str]:
        """What every rise measures in words for a reader, by its complete name."""
        return {self._name(s): s.in_words(self._length(s)) for s in self.sharpness}

    def _name(self, s: Sharpness) -> str:
        length = self._length(s)
        return s.name if length is None else s.name.replace(f"radius={s.radius:g}", f"|u|={length:g}")

    def _length(self, s: Sharpness) -> float | None:
        """The length of the noise; None for what is no noise."""
        return s.radius * math.sqrt(self.dim) if s.kind == "average" else None


@dataclass(frozen=True, slots=True)
class MinimaComparison(Archived):
    """Several minima, measured alike.

    Attributes:
        minima: In the order they were given.
    """

    minima: tuple[Minimum, ...]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Column names and rows: a measure per row, a value and its error for each minimum, and the flattest's name.

        Returns:
            Rows as long as the columns; the last column says ``not resolved`` where the two smallest are within two
            errors of each other, and nothing for the loss and the gap.
        """
        columns = ["measure"]
        for m in self.minima:
            columns += [m.name, f"error of {m.name}"]
        columns.append("flattest")
        rows: list[list[Any]] = [["loss", *(x for m in self.minima for x in (m.loss, math.nan)), ""]]
        if any(math.isfinite(m.gap) for m in self.minima):
            rows.append(["gap", *(x for m in self.minima for x in (m.gap, math.nan)), ""])
        for name in self.minima[0].measures():
            found = [m.measures()[name] for m in self.minima]
            cells = [x for e in found for x in (e.value, e.error)]
            rows.append([name, *cells, self.flattest(name) or "not resolved"])
        return columns, rows

    def flattest(self, measure: str) -> str | None:
        """The minimum of the smallest value; None where the two smallest are within two errors of each other."""
        ranked = sorted(self.minima, key=lambda m: m.measures()[measure].value)
        if len(ranked) < 2:
            return ranked[0].name
        first, second = (m.measures()[measure] for m in ranked[:2])
        errors = [0.0 if math.isnan(e.error) else e.error for e in (first, second)]
        resolved = second.value - first.value > 2 * math.hypot(*errors)
        return ranked[0].name if resolved else None

    def __str__(self) -> str:
        columns, rows = self.table()
        shown = [[f"{x:.4g}" if isinstance(x, float) else str(x) for x in row] for row in (columns, *rows)]
        return "\n".join("  ".join(row) for row in shown)


def compare_minima(
    minima: Mapping[str, Objective],
    *,
    radii: Sequence[float] = (0.05, 0.2),
    others: Mapping[str, Objective] | None = None,
    metrics: Sequence[Metric] = METRICS,
    num_pairs: int = 25,
    num_steps: int = 20,
    seed: int = 0,
) -> MinimaComparison:
    """Measure every minimum in the same way.

    Args:
        minima: The loss at each, by name: objectives of the same data, each with its own model.
        radii: Of the sharpness, each used in every metric.
        others: The loss on other data (test) at each, by the same names, for the gap.
        metrics: ``identity``, ``adaptive``, or both.
        num_pairs: Of the average sharpness.
        num_steps: Of each ascent.
        seed: Of everything random, the same for each minimum.

    Raises:
        ValueError: No minima, other data, modes or precisions among them, a name of ``others`` that is not among them,
            or a radius that is not positive.

    Example:
        >>> import torch
        >>> from optland.problems import quadratic
        >>> sharp, flat = (quadratic(h * torch.eye(3), torch.zeros(3)) for h in (8.0, 1.0))
        >>> found = compare_minima({"sharp": sharp, "flat": flat}, radii=[0.1], metrics=["identity"])
        >>> found.flattest("largest eigenvalue"), round(found.minima[0].trace.value, 6)
        ('flat', 24.0)
    """
    _check(minima, others or {})
    done = []
    for name, objective in minima.items():
        before = objective.cost_ge
        with hessian(objective) as H:
            spectrum = lanczos(H, ends="top", max_matvecs=MATVECS, seed=seed)
            total = trace(H, max_matvecs=MATVECS, seed=seed)
        sharpness: list[Sharpness] = []
        # A deviation of each weight that gives noise the length of the radius: the ball of the other two.
        dim = sum(p.numel() for p in objective.params)
        root = math.sqrt(dim)
        for metric in metrics:
            for radius in radii:
                sharpness += [
                    average_sharpness(
                        objective, radius / root, metric=metric, num_pairs=num_pairs, seed=seed
                    ),
                    sam_sharpness(objective, radius, metric=metric),
                    worst_sharpness(objective, radius, metric=metric, num_steps=num_steps, seed=seed),
                ]
        loss = objective.value()
        gap = others[name].value() - loss if others and name in others else math.nan
        cost = objective.cost_ge - before
        done.append(Minimum(name, loss, gap, spectrum.top, total, tuple(sharpness), dim, cost))
    return MinimaComparison(tuple(done))


def _check(minima: Mapping[str, Objective], others: Mapping[str, Objective]) -> None:
    if not minima:
        raise ValueError("minima is empty; give objectives by name")
    strange = sorted(set(others) - set(minima))
    if strange:
        raise ValueError(f"others has {strange[0]!r}, which is not among the minima {sorted(minima)}")
    first_name, first = next(iter(minima.items()))
    for name, objective in minima.items():
        for what in ("data", "num_samples", "mode", "dtype"):
            mine, theirs = getattr(objective, what), getattr(first, what)
            if mine != theirs:
                raise ValueError(
                    f"{name!r} and {first_name!r} differ in {what} ({mine!r} and {theirs!r}); sharpness can only be "
                    "compared where these are equal"
                )
