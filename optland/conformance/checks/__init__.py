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

__all__ = ["contract", "identities", "model_state", "passes", "scaling", "steps", "weights"]
