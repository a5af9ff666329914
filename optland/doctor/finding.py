"""A finding: what a run shows, with figures, how the landscape explains it, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

__all__ = ["Finding", "Symptom"]


class Symptom(StrEnum):
    """Everything that the doctor can find."""

    # What a log can show
    NOT_FINITE = "not_finite"
    RATE_ABOVE_EDGE = "rate_above_edge"
    RATE_BELOW_EDGE = "rate_below_edge"
    VANISHING_GRADIENTS = "vanishing_gradients"
    EXPLODING_GRADIENTS = "exploding_gradients"
    DEAD_UNITS = "dead_units"
    SADDLE_PLATEAU = "saddle_plateau"
    PLATEAU = "plateau"
    STALE_MOMENTUM = "stale_momentum"
    ILL_CONDITIONED = "ill_conditioned"
    NOISE_FLOOR = "noise_floor"
    BATCH_BELOW_NOISE = "batch_below_noise"
    BATCH_ABOVE_NOISE = "batch_above_noise"
    POOR_GENERALISATION = "poor_generalisation"
    WRONG_LABELS = "wrong_labels"
    OVER_REGULARISED = "over_regularised"
    CORRUPT_BATCHES = "corrupt_batches"
    SAM_TOO_MUCH = "sam_too_much"
    SAM_TOO_LITTLE = "sam_too_little"
    INCONSISTENT_RUNS = "inconsistent_runs"
    # What no loss curve shows
    WEIGHTS_NOT_HELD = "weights_not_held"
    STALE_OPTIMIZER = "stale_optimizer"
    GRADIENTS_NOT_ZEROED = "gradients_not_zeroed"
    ACCUMULATION_NOT_DIVIDED = "accumulation_not_divided"
    MODES_MIXED_UP = "modes_mixed_up"
    DATA_NOT_SHUFFLED = "data_not_shuffled"
    SCHEDULER_OFF = "scheduler_off"
    SOFTMAX_TWICE = "softmax_twice"
    WRONG_REDUCTION = "wrong_reduction"
    SYMMETRIC_WEIGHTS = "symmetric_weights"
    INPUTS_OFF_SCALE = "inputs_off_scale"
    REPLICAS_DRIFT = "replicas_drift"
    # A note, no alarm
    FROZEN_LAYERS = "frozen_layers"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a run.

    Attributes:
        symptom: Its name.
        evidence: What was seen, with figures.
        reading: What that says of the landscape, or of the program.
        fix: What to do, in words.
        action: What to type: a key with its value such as ``optimizer.lr=0.01``, or the name of a policy; empty where
            only the program itself can be changed.
        confidence: Weight of the evidence, from 0 to 1, by which findings are ordered.
        right: Share of the findings of this symptom that were right on runs that the rules were not made on.
        step: Update at which it was found.
        alarm: False for a note, which asks for nothing.

    Example:
        >>> found = Finding(Symptom.GRADIENTS_NOT_ZEROED, "12 of 12 updates began with the last gradient.",
        ...                 "The step is along a sum of old gradients.", "Call optimizer.zero_grad() once per update.")
        >>> print(found.title)
        gradients not zeroed
    """

    symptom: Symptom
    evidence: str
    reading: str
    fix: str
    action: str = ""
    confidence: float = 0.0
    right: float = 0.5
    step: int = 0
    alarm: bool = True

    @property
    def title(self) -> str:
        """The symptom in words."""
        return self.symptom.value.replace("_", " ").replace("sam ", "SAM ")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "symptom": self.symptom.value}

    def __str__(self) -> str:
        action = f" [{self.action}]" if self.action else ""
        return f"{self.title}: {self.evidence} {self.reading} Fix: {self.fix}{action}"
