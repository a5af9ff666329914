"""Two-pass optimizers with Hugging Face Accelerate: the passes of one update, over its micro-batches.

::

    accelerator = Accelerator(gradient_accumulation_steps=4)
    optimizer = SAM(torch.optim.AdamW(model.parameters(), lr=1e-3), model=model)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    for batches in micro_batches(loader, accelerator, model):   # the four of one update
        for _ in passes(accelerator, optimizer):
            for batch in batches:
                accelerator.backward(loss_fn(model, batch))     # divides by the number of micro-batches
        accelerator.clip_grad_norm_(model.parameters(), 1.0)    # once, the gradient that the base gets
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

It takes the place of ``accelerator.accumulate(model)``, which calls ``step()`` for the last micro-batch alone. Without
accumulation ``for batch in loader`` and ``passes`` are enough.

**Numbers.** Those of the whole batch in one process, with one eps for all micro-batches and processes. The scale of a
GradScaler is told and taken off; clip after the passes, as above.

Neither function imports Accelerate: they work on what the loop hands over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.optim import Optimizer

from optland.integrations.replay import back_at_w
from optland.optim import TwoPass
from optland.pilot.host import unwrapped

__all__ = ["MicroBatches", "micro_batches", "passes"]

_ENGINES = ("DEEPSPEED", "MEGATRON_LM")


def passes(accelerator: Any, optimizer: Optimizer) -> Iterator[int]:
    """Go through the passes of one update; afterwards ``.grad`` is what the base optimizer receives.

    An optimizer of one pass has one, so that a loop serves any.

    Args:
        accelerator: The ``Accelerator`` that has prepared it.
        optimizer: A two-pass optimizer, as ``prepare`` has returned it.

    Yields:
        The number of the pass, from 0; run forward and backward of all micro-batches in each.

    Raises:
        TypeError: ``accelerator`` is none.
        RuntimeError: Called within ``accelerator.accumulate(model)``, for a micro-batch that is not the last of its
            update; or parameters are kept by an engine (DeepSpeed, Megatron, FSDP1).
    """
    _require_accelerator(accelerator)
    if not accelerator.sync_gradients:
        raise RuntimeError(
            "passes() within accelerator.accumulate(model) would make an update of one micro-batch of "
            f"{accelerator.gradient_accumulation_steps}; leave accumulate() out and write: for batches in "
            "micro_batches(loader, accelerator, model): for _ in passes(accelerator, optimizer): ..."
        )
    inner = unwrapped(optimizer)
    if not isinstance(inner, TwoPass):
        yield 0
        return
    scaler = accelerator.scaler
    with back_at_w(inner):
        yield from inner.passes(loss_scale=None if scaler is None else scaler.get_scale())
        inner.restore()


def micro_batches(loader: Iterable[Any], accelerator: Any, *models: nn.Module) -> Iterator[MicroBatches]:
    """Go through a loader by updates: ``gradient_accumulation_steps`` batches each, what is left in the last one.

    For its time Accelerate divides the loss by the number of micro-batches that an update has, also in the last one,
    so that each is the mean of its micro-batches.

    Args:
        loader: What gives the batches, as ``prepare`` has returned it.
        accelerator: The ``Accelerator``.
        *models: Prepared models, as for ``accelerator.accumulate``: their gradients are synchronised in the last
            micro-batch of each pass alone. Without them each micro-batch is, with the same numbers.

    Yields:
        The micro-batches of one update, to go through in each pass.

    Raises:
        TypeError: ``accelerator`` is none.
    """
    _require_accelerator(accelerator)
    most = accelerator.gradient_accumulation_steps
    group: list[Any] = []
    try:
        for batch in loader:
            group.append(batch)
            if len(group) == most:
                yield MicroBatches(group, accelerator, models)
                group = []
        if group:
            accelerator.gradient_accumulation_steps = len(group)
            yield MicroBatches(group, accelerator, models)
    finally:
        accelerator.gradient_accumulation_steps = most


class MicroBatches:
    """The batches of one update, any number of times; processes synchronise in the last one.

    Args:
        batches: Of the update.
        accelerator: The ``Accelerator``.
        models: Those whose gradients are synchronised.
    """

    def __init__(self, batches: list[Any], accelerator: Any, models: tuple[nn.Module, ...]) -> None:
        self._batches, self._accelerator = batches, accelerator
        each = accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        self._models = () if each else models
        accelerator.sync_gradients = True  # an accumulate() that was left in the middle says no

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches[:-1]:
            with ExitStack() as stack:
                for model in self._models:
                    stack.enter_context(self._accelerator.no_sync(model))
                yield batch
        yield self._batches[-1]


def _require_accelerator(accelerator: Any) -> None:
    """Refuse swapped arguments, and engines that own the step."""
    if not hasattr(accelerator, "gradient_state"):
        raise TypeError(
            f"accelerator is a {type(accelerator).__name__}; write passes(accelerator, optimizer) and "
            "micro_batches(loader, accelerator, model)"
        )
    engine = accelerator.distributed_type.name
    if engine in _ENGINES or (engine == "FSDP" and not accelerator.is_fsdp2):
        raise RuntimeError(
            f"under {engine} the parameters of an optimizer are not those that the passes go through; use DDP or FSDP2"
        )
