"""How often findings were right: counts on runs of tasks and architectures that the rules were not made on.

``benchmarks/doctor.py`` makes the table; ``docs/results/doctor.md`` says on what.
"""

from __future__ import annotations

__all__ = ["COUNTED", "share_right"]

COUNTED: dict[str, tuple[int, int]] = {
    "accumulation_not_divided": (2, 2),
    "batch_above_noise": (2, 2),
    "batch_below_noise": (2, 2),
    "corrupt_batches": (2, 2),
    "data_not_shuffled": (2, 2),
    "dead_units": (2, 2),
    "exploding_gradients": (3, 2),
    "gradients_not_zeroed": (2, 2),
    "inputs_off_scale": (4, 4),
    "modes_mixed_up": (2, 2),
    "over_regularised": (2, 2),
    "plateau": (2, 0),
    "poor_generalisation": (2, 2),
    "rate_above_edge": (5, 2),
    "rate_below_edge": (1, 1),
    "saddle_plateau": (2, 2),
    "sam_too_little": (2, 2),
    "sam_too_much": (2, 2),
    "scheduler_off": (2, 2),
    "softmax_twice": (2, 2),
    "stale_momentum": (2, 2),
    "stale_optimizer": (2, 2),
    "symmetric_weights": (2, 2),
    "vanishing_gradients": (2, 2),
    "weights_not_held": (2, 2),
    "wrong_labels": (1, 1),
    "wrong_reduction": (2, 2),
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
