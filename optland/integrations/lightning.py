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

import warnings
from collections.abc import Callable, Sequence, Sized
from functools import partial
from typing import Any

from torch import Tensor, nn

from optland.integrations.lightning_batches import MicroBatches, arguments, loss_of, unseen
from optland.log import LoggerGroup, into
from optland.log.guest import Guest
from optland.objective import LossFn
from optland.optim.two_pass import TwoPass
from optland.pilot import Pilot, Policy
from optland.pilot.host import Host

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError(
        f"optland.integrations.lightning needs Lightning ({error}): pip install 'optland[lightning]'"
    ) from error

__all__ = ["LightningHost", "PilotCallback", "SAMModule"]


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


class LightningHost(Host):
    """A run of Lightning's trainer, which owns the loader and its batches: the batch size is not to be turned.

    Args:
        trainer: The trainer.
        *args: As for :class:`~optland.pilot.host.Host`.
        **options: Likewise.
    """

    def __init__(self, trainer: Any, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.trainer = trainer

    def can_turn(self, name: str) -> bool:
        """As a plain loop, and the trainer can always be stopped."""
        return name == "stop" or super().can_turn(name)

    def turn(self, name: str, new: float) -> bool:
        """As a plain loop; a stop is the trainer's."""
        done = super().turn(name, new)
        if done and name == "stop":
            self.trainer.should_stop = True
        return done

    def pieces(self, batch: Any) -> list[Any]:
        """The micro-batches of an update; those that are single tensors are marked as several."""
        return list(batch) if isinstance(batch, _Several) else super().pieces(batch)


class _Several(list[Any]):
    """Micro-batches that would be taken for one batch."""


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
        self._clones: dict[int, Any] = {}
        self._batches: list[Any] = []
        self._losses: list[Tensor | None] = []
        self._guests: list[Guest] = []
        self._loss: Any = None
        self._steps = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the pilot, or the one that a checkpoint holds."""
        if self._loss_fn is None and not pl_module.automatic_optimization:
            raise TypeError(
                "training_step of manual optimization steps, so that probes cannot run it; give "
                "PilotCallback(loss_fn=...), called with the module and a batch, and return the loss from training_step"
            )
        options = {"host": partial(LightningHost, trainer), **self._options}
        if options["log"] is None and trainer.is_global_zero:
            self._guests = [into(logger) for logger in trainer.loggers]
            options["log"] = LoggerGroup(self._guests) if self._guests else None
        length = trainer.estimated_stepping_batches
        if 0 < length < float("inf") and not options.keys() & {"total_steps", "total_samples", "open_ended"}:
            options["total_steps"] = length
        dataset = getattr(trainer.train_dataloader, "dataset", None)
        if isinstance(dataset, Sized):
            options.setdefault("dataset_size", len(dataset))
        loss_fn = self._loss_fn or partial(self._training_loss, trainer)
        pilot = self.pilot = Pilot(list(trainer.optimizers), pl_module, loss_fn, **options)
        self._refuse(pilot)
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
        """After the last micro-batch of an update: its batches, and their mean loss, undone by accumulation."""
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
        batches = self._batches[0] if len(self._batches) == 1 else self._several()
        self._batches, self._losses = [], []
        assert self.pilot is not None
        self.pilot.after_step(batches, self._loss)

    def _several(self) -> list[Any]:
        return _Several(self._batches) if isinstance(self._batches[0], Tensor) else list(self._batches)

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
        """Keep the state of a checkpoint until there are optimizers."""
        self._loaded = state_dict or None

    def _training_loss(self, trainer: Any, module: nn.Module, batch: Any) -> Tensor:
        with unseen(module, self._clones), trainer.precision_plugin.train_step_context():
            loss: Tensor = loss_of(module.training_step(*arguments(module, batch, 0)))  # type: ignore[operator]
        return loss

    def _refuse(self, pilot: Pilot) -> None:
        """Say at the start what this host cannot turn."""
        for policy in pilot.controls.policies if pilot.mode == "control" else ():
            if "batch_size" in policy.turns:
                raise TypeError(
                    f"{policy.name} turns the batch size, and in Lightning that belongs to the loader and to "
                    "accumulate_grad_batches; use mode='shadow' for its advice, or a plain loop with pilot.batches()"
                )
