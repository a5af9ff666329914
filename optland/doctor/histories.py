"""What the rules read: measured values over the updates of a run, and facts about it that do not change."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Histories"]

MOST = 2048
"""Values kept of each name; of a longer run every second one is dropped, again and again, so memory stays bounded."""


class Histories:
    """Series by name, each a list of updates and one of values, with facts beside them.

    Names are the metric keys of :mod:`optland.log.vocabulary`. A value that is not finite is kept, since that is a
    symptom itself.

    Args:
        facts: What does not change: numbers, words and lists by name.

    Attributes:
        facts: As given, and as others add to them.
        step: Largest update so far.

    Example:
        >>> run = Histories()
        >>> run.put(1, {"train/loss": 2.3})
        >>> run.put(2, {"train/loss": 1.9, "edge/ratio": 0.4})
        >>> run.values("train/loss"), run.steps("edge/ratio"), run.step
        ([2.3, 1.9], [2], 2)
    """

    def __init__(self, facts: Mapping[str, Any] | None = None) -> None:
        self.facts: dict[str, Any] = dict(facts or {})
        self.step = 0
        self._series: dict[str, tuple[list[int], list[float]]] = {}

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, Any]], facts: Mapping[str, Any] | None = None
    ) -> Histories:
        """Histories of logged rows, which carry their update under ``step``.

        Args:
            rows: In order. What is no number is left out; a row without ``step`` has its place for its update, from 1.
            facts: What does not change.

        Example:
            >>> Histories.from_rows([{"step": 5, "train/loss": 2.0, "note": "x"}]).names()
            ['train/loss']
        """
        run = cls(facts)
        for count, row in enumerate(rows, start=1):
            numbers = {
                k: float(v) for k, v in row.items() if isinstance(v, (bool, int, float)) and k != "step"
            }
            run.put(int(row.get("step", count)), numbers)
        return run

    def put(self, step: int, values: Mapping[str, float]) -> None:
        """Take in what was measured at an update.

        Args:
            step: The update; not below those before it, since parts of a run are found by bisection.
            values: Numbers by metric key.
        """
        if step > self.step:
            self.step = step
        for name, value in values.items():
            series = self._series.get(name)
            if series is None:
                series = self._series[name] = ([], [])
            steps, kept = series
            steps.append(step)
            kept.append(float(value))
            if len(kept) > MOST:
                del steps[1::2], kept[1::2]

    def names(self) -> list[str]:
        """Names that have a value."""
        return list(self._series)

    def steps(self, name: str) -> list[int]:
        """Updates at which there is a value."""
        return self._series.get(name, ([], []))[0]

    def values(self, name: str, begin: float = 0.0, end: float = 1.0) -> list[float]:
        """The finite values of a part of the run, given as shares of its updates.

        Args:
            name: A metric key.
            begin: Share of the updates so far at which the part begins, included.
            end: Share at which it ends, included.

        Returns:
            In order; empty for a name without values.

        Example:
            >>> run = Histories()
            >>> for step in range(1, 11):
            ...     run.put(step, {"train/loss": float(step)})
            >>> run.values("train/loss", 0.8)
            [8.0, 9.0, 10.0]
        """
        steps, kept = self._series.get(name, ([], []))
        low, high = bisect_left(steps, begin * self.step), bisect_right(steps, end * self.step)
        return [v for v in kept[low:high] if math.isfinite(v)]

    def raw(self, name: str) -> list[float]:
        """All values, those that are not finite too."""
        return self._series.get(name, ([], []))[1]

    def median(self, name: str, begin: float = 0.0, end: float = 1.0) -> float:
        """Median of the finite values of a part of the run; NaN where there is none.

        Args:
            name: A metric key.
            begin: Share of the updates so far at which the part begins.
            end: Share at which it ends.
        """
        found = self.values(name, begin, end)
        return statistics.median(found) if found else math.nan

    def fact(self, name: str, default: Any = math.nan) -> Any:
        """A fact; NaN where it is unknown, so that every comparison with it is false.

        Args:
            name: Its name.
            default: In place of NaN, for facts that are no numbers.
        """
        return self.facts.get(name, default)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        series = {name: [list(steps), list(kept)] for name, (steps, kept) in self._series.items()}
        return {"facts": dict(self.facts), "step": self.step, "series": series}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.facts, self.step = dict(state["facts"]), state["step"]
        self._series = {name: (list(steps), list(kept)) for name, (steps, kept) in state["series"].items()}
