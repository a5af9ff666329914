"""A finding: what a run shows, with figures, how the landscape explains it, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

__all__ = ["Finding", "Symptom"]


class Symptom(StrEnum):
    """Everything that the doctor can find.

    Each is found from signals of a run, and a rule whose signals are missing says nothing. What each rule looks at,
    with the limits from which on it speaks (L is the loss of knowing nothing, such as log 10 for ten classes):

    ==========================  ====================================================================================
    symptom                     found from
    ==========================  ====================================================================================
    not_finite                  a training loss that is not finite
    rate_above_edge             a loss that rose above 1.3 L, units that died, edge ratio above 1, or a rate that
                                no healthy run needs (0.04 with Adam, 1.5 with SGD)
    rate_below_edge             less than a quarter of the loss gone, and updates below 3e-5 of the weights or an edge
                                ratio below 0.0025
    vanishing_gradients         first layer's gradient below 0.02 of the last one's, over at least 6 layers
    exploding_gradients         a first loss above 4 L
    dead_units                  over half of a layer's units without a gradient, or none at the start
    saddle_plateau              the same ratio in a net of fewer layers, or next to no gradient: weights near zero
    plateau                     less than 6 % of L gone after 30 updates, and no other rule that explains it
    stale_momentum              a momentum that averages over 50 updates or more
    ill_conditioned             edge ratio within 0.3 and 1, and yet less than 60 % of L gone
    noise_floor                 a loss that fell by less than a tenth over the last half and changes by 40 % per update
    batch_below_noise           at most 8 samples per update
    batch_above_noise           256 samples or more in a run of few updates, or 4 times the noise scale
    poor_generalisation         validation loss above 1.7 times that of training, or accuracy 9 points below
    wrong_labels                training samples fitted less well than clean ones that were not seen
    over_regularised            decay times rate above 0.002, or a dropout above 0.6 (0.3 where it costs loss)
    corrupt_batches             inputs 12 times the usual, or single losses over 4 times those before, and back again
    sam_too_much                a rise above half of the loss at w + eps, or both gradients at a cosine below 0.7
    sam_too_little              a rise below 0.1 % and a cosine above 0.9999
    inconsistent_runs           ends of several runs that are far apart
    weights_not_held            trainable weights that no optimizer holds
    stale_optimizer             tensors of the optimizer that are not in the model
    gradients_not_zeroed        updates that begin with the gradient of the one before, four of five
    accumulation_not_divided    micro-batches each with the weight of a whole batch
    modes_mixed_up              updates in eval mode, or evaluations in train mode, of a model to which that matters
    data_not_shuffled           fewer than 0.6 of the labels per batch that shuffled data would have
    scheduler_off               a schedule stepped more than 1.5 times per update, or never
    softmax_twice               probabilities given to a loss that takes a softmax itself
    wrong_reduction             gradients at the outputs that are not those of a mean, or shapes that broadcast
    symmetric_weights           layers whose units are all equal in weights and gradients
    inputs_off_scale            root mean square below 0.05 or above 15, or features a factor of 40 apart
    replicas_drift              weights of processes that differ by more than 1e-6 of their norm
    frozen_layers               tensors that require no gradient: a note
    ==========================  ====================================================================================
    """

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
        """Plain values, for JSON.

        Returns:
            One entry for each field; the symptom as its text.
        """
        return {**asdict(self), "symptom": self.symptom.value}

    def __str__(self) -> str:
        action = f" [{self.action}]" if self.action else ""
        return f"{self.title}: {self.evidence} {self.reading} Fix: {self.fix}{action}"
