"""How often findings were right: counts on runs of tasks and architectures that the rules were not made on.

``benchmarks/doctor.py`` makes the table; ``docs/results/doctor.md`` says on what.
"""

from __future__ import annotations

__all__ = ["COUNTED", "share_right"]

COUNTED: dict[str, tuple[int, int]] = {
    "accumulation_not_divided": (4, 4),
    "batch_above_noise": (4, 4),
    "batch_below_noise": (2, 2),
    "corrupt_batches": (4, 4),
    "data_not_shuffled": (4, 4),
    "dead_units": (4, 4),
    "exploding_gradients": (14, 4),
    "gradients_not_zeroed": (4, 4),
    "inputs_off_scale": (8, 8),
    "modes_mixed_up": (4, 4),
    "over_regularised": (3, 3),
    "plateau": (1, 0),
    "poor_generalisation": (4, 4),
    "rate_above_edge": (9, 3),
    "rate_below_edge": (3, 3),
    "saddle_plateau": (5, 4),
    "sam_too_little": (4, 4),
    "sam_too_much": (3, 3),
    "scheduler_off": (4, 4),
    "softmax_twice": (4, 4),
    "stale_momentum": (4, 4),
    "stale_optimizer": (4, 4),
    "symmetric_weights": (4, 4),
    "vanishing_gradients": (4, 4),
    "weights_not_held": (4, 4),
    "wrong_labels": (3, 3),
    "wrong_reduction": (4, 4),
}
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
