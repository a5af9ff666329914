"""Keep the micro-batches of an update of Lightning, and make all passes over them."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

from optland.context.modules import preserve_buffers
from optland.context.rng import RandomSnapshot, preserve_rng
from optland.integrations.lightning_unseen import Callback, arguments, loss_of, unseen
from optland.integrations.replay import begin_anew, come_home, finish_passes
from optland.optim import MSAM
from optland.optim.two_pass import TwoPass

__all__ = ["MicroBatches"]


class MicroBatches(Callback):  # type: ignore[misc,unused-ignore]  # Any, where Lightning is not installed
    """Keeps the micro-batches of an update with the random state before each, and makes all passes over them.

    MSAM goes to w + eps before its only pass. It does so for each micro-batch, and the eps of all is the same; between
    them the weights are at w, for validation and checkpoints.

    Attributes:
        kept: Arguments of ``training_step`` for each micro-batch of the update, and the random state before it.
        clones: Stand-ins for the module's metrics in further passes.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[tuple[Any, ...], RandomSnapshot]] = []
        self.clones: dict[int, Any] = {}
        self._losses = 0  # micro-batches of this update that had one

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot be run again.

        Raises:
            ValueError: Manual optimization, a ``training_step`` that takes its batches itself, or a strategy that steps
                by itself.
        """
        name = type(pl_module).__name__
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"SAMModule makes the passes of automatic optimization, and {name}.automatic_optimization is False; "
                "leave the mixin out, and write manual_backward(loss), opt.perturb(), manual_backward(loss), "
                "opt.restore(), opt.step()"
            )
        if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
            raise ValueError(
                f"{name}.training_step(dataloader_iter) takes its batches itself, and SAMModule has to run them "
                "twice; use training_step(batch, batch_idx)"
            )
        if trainer.strategy.handles_gradient_accumulation:
            raise ValueError(
                f"{type(trainer.strategy).__name__} accumulates and steps by itself, and leaves no room for a second "
                "pass; use strategy='ddp', or ModelParallelStrategy for FSDP2"
            )
        with unseen(pl_module, self.clones):
            pass  # metrics are copied now, before they hold anything

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A micro-batch begins, and with the first one an update."""
        optimizer = trainer.optimizers[0]
        if not isinstance(optimizer, TwoPass):
            return
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.kept, self._losses = [], 0
            begin_anew(optimizer)
        self.kept.append((arguments(pl_module, batch, batch_idx), RandomSnapshot()))
        if isinstance(optimizer, MSAM):
            optimizer.perturb(loss_scale=_scale(trainer), share=1 / trainer.accumulate_grad_batches)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A micro-batch of MSAM that was not the last is over."""
        self._over(trainer.optimizers[0], loss_of(outputs))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """An epoch that was ended by a hook before its batch was run."""
        come_home(trainer.optimizers[0])

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Whatever is saved now is w."""
        come_home(*trainer.optimizers)

    def all_passes(self, trainer: Any, module: Any, closure: Any) -> Any:
        """Finish pass one and make the others.

        Args:
            trainer: Whose strategy runs them.
            module: The LightningModule.
            closure: Pass one of the last micro-batch.

        Returns:
            What it returned; ``.grad`` is what the base receives.
        """
        optimizer, loss = trainer.optimizers[0], closure()
        self._over(optimizer, loss)
        if not self._losses:  # every training step of this update was skipped
            return loss
        if isinstance(optimizer, MSAM):
            optimizer.restore()
        else:
            finish_passes(optimizer, lambda: self._again(trainer, module), loss_scale=_scale(trainer))
        return loss

    def _over(self, optimizer: Any, loss: Any) -> None:
        """Pass one of a micro-batch is over."""
        if loss is not None:
            self._losses += 1
            if isinstance(optimizer, MSAM) and optimizer.is_perturbed:
                optimizer.accumulate()
        come_home(optimizer)

    def _again(self, trainer: Any, module: Any) -> None:
        """Forward and backward over all of them, synchronised at the last one as in pass one."""
        strategy, optimizer = trainer.strategy, trainer.optimizers[0]
        apart = getattr(strategy, "block_backward_sync", nullcontext)
        module.in_second_pass = True
        try:
            with preserve_rng(), preserve_buffers(module), unseen(module, self.clones):
                for number, (given, random) in enumerate(self.kept, 1):
                    random.restore()
                    with nullcontext() if number == len(self.kept) else apart():
                        loss = loss_of(strategy.training_step(*given))
                        if loss is not None:
                            strategy.backward(loss / trainer.accumulate_grad_batches, optimizer)
        finally:
            module.in_second_pass = False


def _scale(trainer: Any) -> Any:
    """What a GradScaler multiplies losses by."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else scaler.get_scale()
