"""Everything that a measurement of the loss needs of a model, put back when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from optland.context.modules import every_module, preserve_buffers, preserve_modes, reshard, set_modes
from optland.context.parameters import preserve_parameters
from optland.context.precision import exact_precision
from optland.context.rng import preserve_rng


@contextmanager
def probe_context(
    model: nn.Module, mode: str, seed: int, standing: dict[int, Tensor] | None = None
) -> Iterator[None]:
    """Everything a measurement of the loss needs, and nothing of it left behind.

    Args:
        model: The user's module; its modes, buffers and parameters are as they were on exit.
        mode: ``"eval"`` or ``"train"``; in train mode BatchNorm uses the batch's statistics and dropout is
            on.
        seed: Seeds the random state inside, so that a loss with dropout is the same function at every
            evaluation.
        standing: Stand-ins for parameters that a graph of an earlier block was built with.
    """
    with ExitStack() as stack:
        stack.enter_context(preserve_rng(seed))
        stack.enter_context(preserve_modes(model))
        stack.enter_context(preserve_buffers(model))
        stack.enter_context(exact_precision())
        # Which weights stand in a module is FSDP2's to say; shards are read anew at the end.
        if reshard(model):
            stack.callback(reshard, model)
        else:
            stack.enter_context(preserve_parameters(model, every_module(model), mode, standing))
        set_modes(model, training=mode == "train")
        yield
