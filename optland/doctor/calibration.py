"""How often findings were right: counts on runs of tasks and architectures that the rules were not made on.

``benchmarks/doctor.py`` makes the table; ``docs/results/doctor.md`` says on what.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["COUNTED", "share_of"]

COUNTED: dict[str, tuple[int, int]] = {
    "accumulation_not_divided": (12, 12),
    "batch_above_noise": (13, 12),
    "batch_below_noise": (7, 7),
    "corrupt_batches": (13, 12),
    "data_not_shuffled": (12, 12),
    "dead_units": (13, 12),
    "exploding_gradients": (13, 12),
    "gradients_not_zeroed": (12, 12),
    "inputs_off_scale": (24, 24),
    "modes_mixed_up": (12, 12),
    "over_regularised": (11, 11),
    "plateau": (5, 0),
    "poor_generalisation": (13, 12),
    "rate_above_edge": (25, 11),
    "rate_below_edge": (8, 8),
    "saddle_plateau": (12, 12),
    "sam_too_little": (12, 12),
    "sam_too_much": (10, 10),
    "scheduler_off": (12, 12),
    "softmax_twice": (12, 12),
    "stale_momentum": (12, 12),
    "stale_optimizer": (12, 12),
    "symmetric_weights": (12, 12),
    "vanishing_gradients": (12, 12),
    "weights_not_held": (12, 12),
    "wrong_labels": (7, 7),
    "wrong_reduction": (12, 12),
}
"""Of each symptom: how often it was the first finding, and how often that was right."""


def share_of(table: Mapping[str, tuple[int, int]], symptom: str) -> float:
    """The share of cases that a table counts for a symptom, with one for it and one against it added.

    Of a symptom that was never found that is a half: nothing is known of it.

    Args:
        table: How often each symptom was found, and in how many of those it was so.
        symptom: One of them.

    Returns:
        The mean of the posterior under a uniform prior: between 0 and 1, neither included.

    Example:
        >>> share_of({"plateau": (2, 2)}, "plateau"), share_of({}, "plateau")
        (0.75, 0.5)
    """
    found, so = table.get(symptom, (0, 0))
    return (so + 1) / (found + 2)
