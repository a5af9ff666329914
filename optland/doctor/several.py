"""What several runs of one configuration say together: whether they agree."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from optland.doctor.finding import Finding, Symptom
from optland.doctor.histories import Histories

__all__ = ["between"]

POINTS, FACTOR = 5.0, 2.0
"""Accuracies this far apart, in points, or losses by this factor, are those of inconsistent runs."""


def between(runs: Mapping[str, Histories]) -> list[Finding]:
    """Findings over several runs.

    Args:
        runs: Their histories by name.

    Returns:
        At most one finding, on the first of validation accuracy, test accuracy, validation loss and training loss that
        two runs or more have; the median of its last three values counts for the training loss, else the last one.

    Example:
        >>> runs = {name: Histories() for name in "ab"}
        >>> for name, acc in (("a", 91.0), ("b", 62.0)):
        ...     runs[name].put(100, {"val/acc": acc})
        >>> between(runs)[0].evidence
        'Over 2 runs val/acc ends between 62 (b) and 91 (a).'
    """
    for key in ("val/acc", "test/acc", "val/loss", "train/loss"):
        ends = {name: statistics.median(v[-3:] if "train" in key else v[-1:]) for name, run in runs.items()
                if (v := run.values(key))}  # fmt: skip
        if len(ends) >= 2:
            low, high = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
            apart = (
                ends[high] - ends[low] > POINTS if key.endswith("acc") else ends[high] > FACTOR * ends[low]
            )
            return [_inconsistent(key, ends, low, high)] if apart else []
    return []


def _inconsistent(key: str, ends: Mapping[str, float], low: str, high: str) -> Finding:
    return Finding(
        Symptom.INCONSISTENT_RUNS,
        f"Over {len(ends)} runs {key} ends between {ends[low]:.3g} ({low}) and {ends[high]:.3g} ({high}).",
        "The landscape is chaotic at this step length: small differences at the start decide where a run ends.",
        "Lower the rate or lengthen the warm-up, average the weights or the runs, or take a simpler model.",
    )
