"""The checks, one area per file; importing this registers them.

A check's docstring says what its figure is, in which unit. Sections that it names are those of this project's notes on
the optimizers, which list each identity with its source.
"""

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
