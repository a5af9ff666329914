"""The checks, one area per file; importing this registers them."""

from optland.conformance.checks import (
    contract,
    identities,
    model_state,
    passes,
    scaling,
    steps,
    weights,
)

AREAS = (contract, identities, model_state, passes, scaling, steps, weights)
"""The files that hold them."""
