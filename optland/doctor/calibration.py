"""How often findings were right: counts on runs of tasks and architectures that the rules were not made on.

``benchmarks/doctor.py`` makes the table; ``docs/results/doctor.md`` says on what.
"""

from __future__ import annotations

__all__ = ["COUNTED", "share_right"]

COUNTED: dict[str, tuple[int, int]] = {
    "accumulation_not_divided": (12, 12),
    "batch_above_noise": (12, 12),
    "batch_below_noise": (6, 6),
    "corrupt_batches": (12, 12),
    "data_not_shuffled": (12, 12),
    "dead_units": (12, 12),
    "exploding_gradients": (10, 9),
    "gradients_not_zeroed": (11, 11),
    "ill_conditioned": (1, 0),
    "inputs_off_scale": (23, 23),
    "modes_mixed_up": (12, 12),
    "noise_floor": (4, 1),
    "over_regularised": (11, 11),
    "plateau": (1, 0),
    "poor_generalisation": (9, 7),
    "rate_above_edge": (27, 12),
    "rate_below_edge": (7, 7),
    "saddle_plateau": (12, 12),
    "sam_too_little": (12, 12),
    "sam_too_much": (17, 12),
    "scheduler_off": (12, 12),
    "softmax_twice": (12, 12),
    "stale_momentum": (12, 12),
    "stale_optimizer": (12, 12),
    "symmetric_weights": (12, 12),
    "vanishing_gradients": (12, 12),
    "weights_not_held": (12, 12),
    "wrong_labels": (10, 10),
    "wrong_reduction": (15, 12),
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
