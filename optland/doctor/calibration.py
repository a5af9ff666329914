"""How often findings were right: counts on runs of tasks and architectures that the rules were not made on.

``benchmarks/doctor.py`` makes the table; ``docs/results/doctor.md`` says on what.
"""

from __future__ import annotations

__all__ = ["COUNTED", "share_right"]

COUNTED: dict[str, tuple[int, int]] = {}
"""Of each symptom: how often it was the first finding, and how often that was right."""


def share_right(symptom: str) -> float:
    """The share of first findings of a symptom that were right, with one right and one wrong one added.

    Of a symptom that was never found that is a half: nothing is known of it.

    Example:
        >>> share_right("never_found")
        0.5
    """
    found, right = COUNTED.get(symptom, (0, 0))
    return (right + 1) / (found + 2)
