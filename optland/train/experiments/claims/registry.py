"""All claims, in the order of the table."""

from __future__ import annotations

from optland.train.experiments.claims import (
    architectures,
    barriers,
    batch_size,
    connectivity,
    critical,
    edge_of_stability,
    effective_dimension,
    filter_normalisation,
    flat_generalises,
    flatter,
    gaussian,
    initialisation,
    input_shift,
    keskar,
    lottery,
    narrow,
    normalisation,
    overparameterised,
    saddle_speed,
    skips,
    start_sharpness,
    temperature,
    wide_deep,
)
from optland.train.experiments.claims.claim import Claim

__all__ = ["CLAIMS"]

CLAIMS: tuple[Claim, ...] = (
    start_sharpness.CLAIM,
    flat_generalises.CLAIM,
    *barriers.CLAIMS,
    effective_dimension.CLAIM,
    *skips.CLAIMS,
    *batch_size.CLAIMS,
    temperature.CLAIM,
    *normalisation.CLAIMS,
    *wide_deep.CLAIMS,
    *architectures.CLAIMS,
    *connectivity.CLAIMS,
    *narrow.CLAIMS,
    overparameterised.CLAIM,
    *critical.CLAIMS,
    gaussian.CLAIM,
    *flatter.CLAIMS,
    *saddle_speed.CLAIMS,
    input_shift.CLAIM,
    *initialisation.CLAIMS,
    *lottery.CLAIMS,
    filter_normalisation.CLAIM,
    *edge_of_stability.CLAIMS,
    keskar.CLAIM,
)
