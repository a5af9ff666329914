"""Two-pass steps and the pilot in Lightning: a mixin for the module, a callback for the trainer.

::

    class Net(SAMModule, L.LightningModule):                         # nothing else changes
        def configure_optimizers(self):
            return SAM(torch.optim.AdamW(self.parameters(), lr=1e-3), model=self)

    trainer = L.Trainer(callbacks=[PilotCallback(policies=["auto_lr"])], accumulate_grad_batches=4)

Without the mixin a two-pass optimizer works in automatic optimization as far as a closure goes: Lightning logs and
counts both passes of a batch and clips in each, and accumulation and ``16-mixed`` are refused. With it

- pass two runs over all micro-batches of the update, under DDP synchronised at the last one, as pass one;
- clipping and ``on_before_optimizer_step`` see one gradient per update, the one that the base receives;
- ``self.log`` and metrics see pass one alone: a loss is that of w, and each batch counts once;
- buffers keep what pass one left in them, and pass two repeats its random numbers, with or without ``model=``.

**Cost.** As in a plain loop; an update keeps its micro-batches until it is made.

**Caveats.** ``on_before_backward`` and ``on_after_backward`` belong to a backward pass, of which there are two. What
goes to a logger otherwise than by ``self.log`` has to ask ``self.in_second_pass``. MSAM, whose only pass is at w +
eps, logs the loss there, and under accumulation the gradient norm of its telemetry is the last micro-batch's. Random
numbers that the module draws in its ``on_train_batch_start`` count as the batch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from optland.integrations.lightning_batches import MicroBatches
from optland.integrations.lightning_pilot import PilotCallback
from optland.optim.two_pass import TwoPass

__all__ = ["PilotCallback", "SAMModule"]


class SAMModule:
    """Makes all passes of a two-pass optimizer in a LightningModule; stands before ``L.LightningModule`` in the bases.

    Equal to the plain loop, :meth:`optland.optim.two_pass.TwoPass.passes` over the micro-batches, then clipping, then
    ``step()``. A hook of the module's own that the mixin has too (``configure_callbacks``, ``optimizer_step``,
    ``optimizer_zero_grad``) calls its ``super()``. An optimizer that takes one pass is left as it is.

    Attributes:
        in_second_pass: Whether ``training_step`` runs for pass two.

    Example:
        >>> import lightning as L, torch
        >>> from optland import SAM
        >>> class Net(SAMModule, L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(2, 1)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         return self.layer(batch).square().mean()
        ...
        ...     def configure_optimizers(self):
        ...         return SAM(torch.optim.SGD(self.parameters(), lr=0.1), rho=0.05, model=self)
    """

    in_second_pass: bool = False

    def configure_callbacks(self) -> Any:
        """The module's callbacks, and the one that keeps the micro-batches of an update."""
        given: Any = super().configure_callbacks()  # type: ignore[misc]
        return [*(given if isinstance(given, Sequence) else [given]), MicroBatches()]

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Zero the gradients; Lightning does so after the forward pass, which stays part of its update."""
        of = optimizer.base if isinstance(optimizer, TwoPass) else optimizer
        super().optimizer_zero_grad(epoch, batch_idx, of)  # type: ignore[misc]

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Make all passes, and hand Lightning a closure that has nothing left to do.

        Args:
            epoch: As Lightning has it.
            batch_idx: As Lightning has it.
            optimizer: The module's optimizer, wrapped by Lightning.
            optimizer_closure: Lightning's forward and backward of the last micro-batch.

        Raises:
            RuntimeError: ``configure_callbacks`` of the module leaves out that of the mixin.
        """
        trainer: Any = self.trainer  # type: ignore[attr-defined]
        if isinstance(trainer.optimizers[0], TwoPass) and optimizer_closure is not None:
            keeper = next((c for c in trainer.callbacks if isinstance(c, MicroBatches)), None)
            if keeper is None:
                raise RuntimeError(
                    f"{type(self).__name__}.configure_callbacks() leaves out the callback of SAMModule, which keeps "
                    "the batches for the second pass; return [*super().configure_callbacks(), ...]"
                )
            loss = keeper.all_passes(trainer, self, optimizer_closure)
            optimizer_closure = partial(_told, loss)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)  # type: ignore[misc]


def _told(loss: Any) -> Any:
    return loss
