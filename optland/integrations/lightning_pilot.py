"""The pilot in Lightning, as a callback of its trainer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence, Sized
from typing import Any

from torch import Tensor

from optland.integrations.lightning_unseen import Callback, UnseenLoss, loss_of
from optland.integrations.trainer_host import TrainerHost, together
from optland.log import into
from optland.log.guest import Guest
from optland.log.logger import LoggerGroup
from optland.objective import LossFn
from optland.pilot import Pilot, Policy

__all__ = ["PilotCallback"]


class PilotCallback(Callback):  # type: ignore[misc,unused-ignore]  # Any, where Lightning is not installed
    """A :class:`~optland.pilot.pilot.Pilot` for a run of Lightning.

    The trainer gives its length, its loggers, the batches of an update and their loss; the loss for the probes is
    ``training_step``, unlogged. Its state is in the trainer's checkpoints, and a run resumes bit for bit. The rate that
    ``auto_lr`` applies is ``optland/lr/applied``; LearningRateMonitor shows the schedule's.

    Args:
        policies: As for the pilot.
        loss_fn: ``loss_fn(module, batch)``; None for ``training_step``.
        log: As for the pilot; None for the trainer's loggers (:func:`optland.log.into`).
        **options: Further options of the pilot, such as ``mode``, ``budget``, ``total_steps``.

    Attributes:
        pilot: The pilot, once training has begun.

    Raises:
        TypeError: A policy in control turns the batch size, which belongs to the trainer's loader; or manual
            optimization without ``loss_fn``.

    Example:
        >>> callback = PilotCallback(policies=["auto_lr"], mode="shadow")
        >>> callback.pilot is None  # it is made where the trainer has its optimizers
        True
    """

    def __init__(
        self,
        policies: Sequence[str | Policy] = ("auto_lr",),
        *,
        loss_fn: LossFn | None = None,
        log: Any = None,
        **options: Any,
    ) -> None:
        self.pilot: Pilot | None = None
        self._options = {"policies": policies, "log": log, **options}
        self._loss_fn = loss_fn
        self._loaded: dict[str, Any] | None = None
        self._ended: dict[str, Any] | None = None
        self._batches: list[Any] = []
        self._losses: list[Tensor | None] = []
        self._guests: list[Guest] = []
        self._loss: Any = None
        self._steps = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the pilot, or the one that a checkpoint holds.

        Raises:
            TypeError: Manual optimization without ``loss_fn``, or a policy in control that turns the batch size.
        """
        if self._loss_fn is None and not pl_module.automatic_optimization:
            raise TypeError(
                "training_step of manual optimization steps, so that probes cannot run it; give "
                "PilotCallback(loss_fn=...), called with the module and a batch, and return the loss from training_step"
            )
        options = {"host": TrainerHost, **self._options}
        if options["log"] is None and trainer.is_global_zero:
            self._guests = [into(logger) for logger in trainer.loggers]
            options["log"] = LoggerGroup(self._guests) if self._guests else None
        length = trainer.estimated_stepping_batches
        if 0 < length < float("inf") and not options.keys() & {"total_steps", "total_samples", "open_ended"}:
            options["total_steps"] = length
        dataset = getattr(trainer.train_dataloader, "dataset", None)
        if isinstance(dataset, Sized):
            options.setdefault("dataset_size", len(dataset))
        loss_fn = self._loss_fn or UnseenLoss(trainer)
        pilot = self.pilot = Pilot(list(trainer.optimizers), pl_module, loss_fn, **options)
        if (state := self._loaded or (self._ended if trainer.global_step else None)) is not None:
            pilot.load_state_dict(state)  # of a checkpoint, or of an earlier fit() that is gone on with
        self._loaded = self._ended = None
        self._steps = trainer.global_step

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Micro-batches of an update that the last epoch has not made are gone."""
        self._batches, self._losses = [], []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last micro-batch of an update: its batches, and their mean loss, undone by accumulation.

        Raises:
            ValueError: ``training_step`` has returned no loss for the first update.
        """
        self._batches.append(batch)
        self._losses.append(loss_of(outputs))
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        if losses := [x for x in self._losses if x is not None]:
            accumulated = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            self._loss = sum(losses) * accumulated / len(losses)
        elif self._loss is None:
            raise ValueError(
                f"{type(pl_module).__name__}.training_step has returned no loss for the first update; return it"
            )
        batch = together(self._batches)
        self._batches, self._losses = [], []
        assert self.pilot is not None
        self.pilot.after_step(batch, self._loss)
        trainer.should_stop = trainer.should_stop or self.pilot.host.stopped

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the pilot off the optimizer; a checkpoint of the trainer may still be asked for."""
        if self.pilot is not None and self._ended is None:
            self._ended = self.state_dict()
            self.pilot.close()
            for guest in self._guests:
                guest.close()

    def state_dict(self) -> dict[str, Any]:
        """The pilot's state, in the trainer's checkpoint; none, and a warning, where training broke off in a step."""
        if self._ended is not None or self.pilot is None:
            return self._ended or {}
        try:
            return self.pilot.state_dict()
        except RuntimeError as error:
            warnings.warn(f"the checkpoint has no state of the pilot: {error}", RuntimeWarning, stacklevel=2)
            return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until there are optimizers.

        Args:
            state_dict: From :meth:`state_dict`; an empty one lets the pilot begin anew.
        """
        self._loaded = state_dict or None
