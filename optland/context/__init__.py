"""Guards that put things back: random state, module modes, buffers, numerical precision.

Looking changes nothing: every probe runs inside :func:`probe_context`, and what it finds on entry is there
again, bit for bit, on exit, also when the probe raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from optland.context.modules import (
    BATCH_NORMS,
    BufferSnapshot,
    preserve_buffers,
    preserve_modes,
    set_modes,
)
from optland.context.precision import exact_arithmetic, exact_precision
from optland.context.rng import RandomSnapshot, load_rng_state, preserve_rng, rng_state

__all__ = [
    "BATCH_NORMS",
    "BufferSnapshot",
    "RandomSnapshot",
    "exact_arithmetic",
    "exact_precision",
    "load_rng_state",
    "preserve_buffers",
    "preserve_modes",
    "preserve_rng",
    "probe_context",
    "rng_state",
    "set_modes",
]


@contextmanager
def probe_context(model: nn.Module, mode: str, seed: int) -> Iterator[None]:
    """Everything a measurement of the loss needs, and nothing of it left behind.

    Args:
        model: The user's module; its modes and buffers are restored on exit.
        mode: ``"eval"`` or ``"train"``; in train mode BatchNorm uses the batch's statistics and dropout is
            on.
        seed: Seeds the random state inside, so that a loss with dropout is the same function at every
            evaluation.
    """
    with ExitStack() as stack:
        stack.enter_context(preserve_rng(seed))
        stack.enter_context(preserve_modes(model))
        stack.enter_context(preserve_buffers(model))
        stack.enter_context(exact_precision())
        set_modes(model, training=mode == "train")
        yield
