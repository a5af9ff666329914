"""The table of a comparison, made from the folders of its runs alone: accuracy, cost, gain, and the landscape's end.

Every number is a mean over seeds, with the range or, for a gain, the interval of :func:`paired_gain`. What a method's
telemetry says at the end is the median over the last logged rows of a run, since that of one step is one batch's.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optland.files import for_json
from optland.log import read_jsonl
from optland.train.experiments.seed_differences import Gain, paired_gain

__all__ = ["BEST", "LAST", "SCORE", "ComparisonTable", "Side", "summary_of"]

LAST, BEST, SCORE = "test/acc last epoch", "test/acc best by validation", "val/acc best"
"""What :func:`optland.train.summarise` calls the two test accuracies, and the one by which settings are chosen."""

TELEMETRY = ("sam/curvature", "sam/loss_gap", "sam/cos", "sam/rho_realised")
ROWS_AT_THE_END = 10


@dataclass(frozen=True)
class Side:
    """One side of the comparison.

    Attributes:
        label: What the side is called.
        equal: In what a base is equal to the method: ``epochs`` or ``GE``; empty for the method itself.
        epochs: Epochs of each run.
        folders: The run folders, one per seed; the same seeds in the same order on every side.
    """

    label: str
    equal: str
    epochs: int
    folders: Sequence[Path]

    def values(self, key: str) -> list[float]:
        """A number of the summaries, one per seed.

        Args:
            key: A name of the summary, such as :data:`BEST`.

        Returns:
            In the order of the folders; NaN for what was not finite.
        """
        return [float(summary_of(folder)[key]) for folder in self.folders]

    def mean(self, key: str) -> float:
        """Their mean.

        Args:
            key: A name of the summary.
        """
        return statistics.fmean(self.values(key))

    def telemetry(self) -> dict[str, float]:
        """The method's own measurements at the end of training, averaged over seeds; empty for a base alone.

        Returns:
            Of :data:`TELEMETRY` what every seed has.
        """
        ends = [telemetry_at_the_end(folder) for folder in self.folders]
        shared = [key for key in TELEMETRY if all(key in end for end in ends)]
        return {key: statistics.fmean(end[key] for end in ends) for key in shared}

    def curve(self, folder: Path) -> list[tuple[float, float]]:
        """Gradient evaluations and test accuracy at every evaluation of a run.

        Args:
            folder: A run's folder.

        Returns:
            Pairs (gradient evaluations so far, test accuracy in percent), in the order of training.
        """
        rows = read_jsonl(folder / "log.jsonl", kind="row")
        return [(float(row["budget/ge"]), float(row["test/acc"])) for row in rows if "test/acc" in row]


@dataclass(frozen=True)
class ComparisonTable:
    """The method and its bases.

    Attributes:
        method: The method's name, for the heading of what it gains.
        sides: The method first.
    """

    method: str
    sides: Sequence[Side]

    @property
    def columns(self) -> list[str]:
        """Headings: a column for each side, which keeps the table as narrow as it can be."""
        return [
            "",
            *(f"{side.label}, equal {side.equal}" if side.equal else side.label for side in self.sides),
        ]

    def cells(self) -> list[list[str]]:
        """The table as people read it, line by line.

        Returns:
            Lines of as many cells as there are columns, the first one the line's name; empty where a side has no such
            number.
        """
        ends = [side.telemetry() for side in self.sides]
        lines = {
            "epochs": [str(side.epochs) for side in self.sides],
            "gradient evaluations": [f"{side.mean('budget/ge'):,.0f}" for side in self.sides],
            "test, last epoch, %": [_range(side.values(LAST)) for side in self.sides],
            "test, best by validation, %": [_range(side.values(BEST)) for side in self.sides],
            f"{self.method} gains, last": [str(self.gain(side, LAST) or "") for side in self.sides],
            f"{self.method} gains, best": [str(self.gain(side, BEST) or "") for side in self.sides],
            "wall time, s": [f"{side.mean('train/seconds'):.1f}" for side in self.sides],
        }
        for key in dict.fromkeys(key for end in ends for key in end):
            lines[f"{key} at the end"] = [f"{end[key]:.3g}" if key in end else "" for end in ends]
        return [[name, *cells] for name, cells in lines.items()]

    def numbers(self) -> list[dict[str, Any]]:
        """Every side in full: the numbers of all seeds, and the gain of the method over it.

        Returns:
            One dictionary for each side, the method first; accuracies in percent, seconds of wall time. A ``gain`` has
            the fields of :class:`Gain`, its NaN as null, and is null for the method itself.
        """
        return [
            {
                "method": side.label,
                "equal": side.equal,
                "epochs": side.epochs,
                "runs": [folder.name for folder in side.folders],
                "ge": side.values("budget/ge"),
                "seconds": side.values("train/seconds"),
                "last": side.values(LAST),
                "best": side.values(BEST),
                "gain last": _numbers(self.gain(side, LAST)),
                "gain best": _numbers(self.gain(side, BEST)),
                "telemetry": side.telemetry(),
            }
            for side in self.sides
        ]

    def summary(self) -> dict[str, float]:
        """Gain and final values of the method, the main number first.

        Returns:
            Gains in points of accuracy with their error (half the 95 % interval), for each base that the method is
            compared with; then means over seeds of the method.
        """
        ours, found = self.sides[0], {}
        for side in self.sides[1:]:
            for which, key in (("best", BEST), ("last", LAST)):
                gain = paired_gain(ours.values(key), side.values(key))
                found[f"summary/gain {which}, equal {side.equal}"] = gain.mean
                found[f"summary/gain {which}, equal {side.equal}, error"] = gain.error
        found |= {key: ours.mean(key) for key in (BEST, LAST, "budget/ge", "train/seconds")}
        return found | {f"{key} at the end": value for key, value in ours.telemetry().items()}

    def curves(self) -> dict[str, list[list[tuple[float, float]]]]:
        """By heading, for every seed: pairs (gradient evaluations, test accuracy in percent); the method last.

        Returns:
            For :func:`optland.plots.plot_comparison`; points in the order of training.
        """
        named = list(zip(self.columns[1:], self.sides, strict=True))
        return {
            name: [side.curve(folder) for folder in side.folders] for name, side in [*named[1:], named[0]]
        }

    def gain(self, side: Side, key: str) -> Gain | None:
        """The gain of the method over a base; None for the method itself.

        Args:
            side: One of the table's sides.
            key: A name of the summary.
        """
        return paired_gain(self.sides[0].values(key), side.values(key)) if side.equal else None


def summary_of(folder: Path) -> dict[str, Any]:
    """The content of a finished run's ``summary.json``; a null there, a number that was not finite, is NaN again.

    Args:
        folder: The folder of a run that has ended.

    Returns:
        The closing table by name, as :func:`optland.train.runs.summary.summarise` makes it.

    Raises:
        FileNotFoundError: It has no summary yet.
    """
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {key: math.nan if value is None else value for key, value in found.items()}


def telemetry_at_the_end(folder: Path) -> dict[str, float]:
    """The median of each telemetry key over the last rows of a run that have it.

    Args:
        folder: A run's folder.

    Returns:
        Of :data:`TELEMETRY` what the run logged, over its last 10 rows with it; empty for a base alone.
    """
    rows = read_jsonl(folder / "log.jsonl", kind="row")
    series = {key: [float(row[key]) for row in rows if key in row] for key in TELEMETRY}
    return {key: statistics.median(values[-ROWS_AT_THE_END:]) for key, values in series.items() if values}


def _range(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


def _numbers(gain: Gain | None) -> dict[str, Any] | None:
    return None if gain is None else for_json(asdict(gain))
