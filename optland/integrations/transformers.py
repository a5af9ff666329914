"""Two-pass optimizers and the pilot in the ``Trainer`` of Hugging Face transformers.

::

    trainer = SAMTrainer(model, args, train_dataset=data, rho=0.05)            # SAM around the optimizer of ``args``
    trainer.add_callback(PilotCallback(policies=["auto_lr"]))
    trainer.train()

    class Mine(SAMTrainer, Seq2SeqTrainer): ...                                # any other trainer

Everything else is the trainer's: accumulation with ``num_items_in_batch``, ``max_grad_norm`` (the gradient that the
base receives is clipped, and its norm is the ``grad_norm`` of the log), bf16, fp16, DDP, checkpoints. The loss of the
log is that of pass one.

**How.** ``training_step`` keeps the micro-batches of an update; after the last one the weights go to w + eps and the
same micro-batches are gone through again, with their dropout masks. What ``compute_loss`` does besides happens in each
pass. ``optimizers=`` and ``optimizer_cls_and_kwargs=`` may give a two-pass optimizer of one's own, which is left as it
is, or any other, which is wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optland.integrations.replay import begin_passes, called_off, finish_passes
from optland.integrations.transformers_pilot import PilotCallback, Update
from optland.optim import TwoPass, wrap
from optland.pilot.host import unwrapped

try:
    from transformers import Trainer
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise ImportError(
        f"optland.integrations.transformers needs transformers and accelerate ({error}); pip install 'optland[hf]'"
    ) from error

__all__ = ["PilotCallback", "SAMTrainer"]


class SAMTrainer(Trainer):  # type: ignore[misc]  # transformers is not there where types are checked
    """A ``Trainer`` whose optimizer takes two passes; also a mixin before another trainer.

    Args:
        *args: Those of the trainer.
        method: A name of :func:`optland.optim.wrap`; or ``method(base, model=model)``, which makes the two-pass
            optimizer; or None for an optimizer of one pass, for a pilot alone. SAM by default, as the method that
            most know.
        rho: Radius of the perturbation; None is the method's default.
        method_options: Further options of the method, such as ``{"gate": "every(2)"}``.
        **kwargs: Those of the trainer.

    Raises:
        ValueError: A method or an option is not known or not possible, or is given beside a two-pass optimizer.

    Example:
        >>> from transformers import TrainingArguments
        >>> trainer = SAMTrainer(
        ...     torch.nn.Linear(2, 1), TrainingArguments("out", use_cpu=True, report_to="none"), rho=0.1
        ... )
        >>> type(trainer.create_optimizer()).__name__
        'SAM'
    """

    optimizer: Any

    def __init__(
        self,
        *args: Any,
        method: str | Callable[..., TwoPass] | None = "sam",
        rho: float | None = None,
        method_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        options = {**(method_options or {}), **({} if rho is None else {"rho": rho})}
        self._around = _maker(method, options)
        self._parts: Update = []
        self._passes: Iterator[int] = iter(())
        self.last_update: Update = []
        self.resumed_from: str | None = None
        super().__init__(*args, **kwargs)
        if options and isinstance(unwrapped(self.optimizer), TwoPass):
            raise ValueError(
                f"optimizers= holds a {type(unwrapped(self.optimizer)).__name__}, which has its own options; "
                f"give {sorted(options)} to that one"
            )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """The trainer's optimizer, within the method.

        Raises:
            RuntimeError: The parameters are kept by DeepSpeed or FSDP1.
        """
        if self.is_deepspeed_enabled or (self.is_fsdp_enabled and not self.accelerator.is_fsdp2):
            raise RuntimeError(
                "SAMTrainer takes its passes over the parameters that the optimizer holds, and DeepSpeed and FSDP1 "
                "keep others; use DDP or FSDP2 (fsdp_version 2)"
            )
        super().create_optimizer(*args, **kwargs)
        optimizer: Optimizer = self.optimizer
        if self._around is not None and not isinstance(unwrapped(optimizer), TwoPass):
            model = args[0] if args else kwargs.get("model") or self.model
            self.optimizer = optimizer = self._around(unwrapped(optimizer), model=model)
        self._parts = []
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, PilotCallback):
                callback.trainer = self
        return optimizer

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the trainer does; a pilot goes on from the same checkpoint.

        Args:
            resume_from_checkpoint: A folder; True for the last one of ``output_dir``.
            *args: As for the trainer.
            **kwargs: As for the trainer.

        Returns:
            What the trainer returns.
        """
        last = resume_from_checkpoint is True
        self.resumed_from = (
            get_last_checkpoint(self.args.output_dir) if last else str(resume_from_checkpoint or "") or None
        )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of a micro-batch; after the last one of an update, of all of them at w + eps.

        Args:
            model: The model, as the trainer has wrapped it.
            inputs: A micro-batch; it is kept until the update is made.
            num_items_in_batch: Items (tokens) of the whole update; None where the trainer does not count them.

        Returns:
            The loss of pass one, detached, as the trainer divides it.
        """
        optimizer = unwrapped(self.optimizer)
        kept = copy(inputs)  # what is done to the dictionary is not done to the one that comes again
        if not isinstance(optimizer, TwoPass):
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        else:
            if not self._parts:
                scaler = self.accelerator.scaler
                self._passes = begin_passes(
                    optimizer, loss_scale=None if scaler is None else scaler.get_scale()
                )
            with called_off(optimizer):
                loss = super().training_step(model, inputs, num_items_in_batch)
        self._parts.append((kept, num_items_in_batch, loss))
        if self.accelerator.sync_gradients:
            self.last_update, self._parts = self._parts, []
            if isinstance(optimizer, TwoPass):
                finish_passes(optimizer, lambda: self._again(model), passes=self._passes)
        return loss

    def _again(self, model: nn.Module) -> None:
        """The micro-batches of the update once more; processes synchronise in the last one."""
        each = self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        for k, (inputs, items, _) in enumerate(self.last_update, 1):
            with nullcontext() if each or k == len(self.last_update) else self.accelerator.no_sync(model):
                super().training_step(model, copy(inputs), items)


def _maker(method: str | Callable[..., TwoPass] | None, options: dict[str, Any]) -> Callable[..., Any] | None:
    """The function that puts the method around an optimizer; a name is tried here, before anything is loaded."""
    if isinstance(method, str):
        name = method
        wrap(name, torch.optim.AdamW([nn.Parameter(torch.zeros(1))]), **options)
        return lambda base, model: wrap(name, base, model=model, **options)
    if options:
        raise ValueError(
            f"{sorted(options)} belong to a method by name, and method={method!r}; give them to that"
        )
    return method
