"""The pilot in the ``Trainer`` of Hugging Face transformers, as a callback.

Length, batches, losses, log and checkpoints are the trainer's. Rows go through ``trainer.log`` under ``optland/``, to
whatever ``report_to`` names, one call each, in the update that they are about.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optland.context import preserve_buffers, preserve_rng
from optland.files import write_whole
from optland.log import into
from optland.pilot import Pilot
from optland.pilot.controls import by_name
from optland.pilot.host import Host, unwrapped
from optland.pilot.policies.base import Policy

try:
    from transformers import TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:
    raise ImportError(
        f"optland.integrations.transformers needs transformers and accelerate ({error}); pip install 'optland[hf]'"
    ) from error

__all__ = ["PilotCallback", "Update"]

Update = list[tuple[Any, Any, Tensor]]
"""The micro-batches of an update: inputs, ``num_items_in_batch``, loss."""

OURS = ("total_steps", "total_samples", "open_ended", "log", "log_every", "host", "dataset_size")


class PilotCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not there where types are checked
    """Watches and steers the run of a ``SAMTrainer``.

    Args:
        policies: As for :class:`~optland.pilot.Pilot`.
        **options: Further options of the pilot: ``mode``, ``budget``, ``seed``, ``probes``, ``num_samples``,
            ``split``. What the trainer knows (length, log) comes from there.

    Attributes:
        pilot: The pilot of the run; None before it.
        trainer: The ``SAMTrainer``, which puts itself here.

    Raises:
        ValueError: A policy turns the batch size, which a trainer has fixed before its first update; or an option that
            is the trainer's.
    """

    def __init__(self, policies: Sequence[str | Policy] = ("auto_lr",), **options: Any) -> None:
        turning = [p.name for p in by_name(policies) if "batch_size" in p.turns]
        if turning and options.get("mode", "control") == "control":
            raise ValueError(
                f"{turning[0]} turns the batch size, which the Trainer fixes before its first update; use "
                "mode='shadow' for its advice in the log, or leave it out"
            )
        if taken := sorted(options.keys() & set(OURS)):
            raise ValueError(
                f"{taken[0]}= comes from the trainer: max_steps, report_to, logging_steps; leave it out"
            )
        self.policies, self.options = list(policies), options
        self.pilot: Pilot | None = None
        self.trainer: Any = None
        self._rows: list[dict[str, Any]] = []
        self._counts: bool | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the pilot on the optimizer, and go on where a checkpoint was taken.

        Raises:
            RuntimeError: The trainer is none that hands over batches.
        """
        if self.trainer is None:
            raise RuntimeError(
                "PilotCallback needs the batches and losses of each update, which Trainer does not hand over; use "
                "SAMTrainer of optland.integrations.transformers, with method=None for an optimizer of one pass"
            )
        if self.pilot is not None:
            self.pilot.close()
        self._counts = None
        data, saved = self.trainer.train_dataset, self._saved(args)
        self.pilot = Pilot(
            kwargs["optimizer"],
            self.trainer.model,
            self.loss,
            policies=deepcopy(self.policies),
            total_steps=state.max_steps if saved else state.max_steps - state.global_step,
            log=into(lambda row, step: self._rows.append(dict(row))),
            log_every=state.logging_steps,
            host=TrainerHost,
            dataset_size=len(data) if hasattr(data, "__len__") else None,
            **self.options,
        )
        if saved is not None:
            self.pilot.load_state_dict(torch.load(saved, weights_only=True))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the pilot of the update, while its gradients are there."""
        assert self.pilot is not None
        parts = [_plain(inputs) for inputs, _, _ in self.trainer.last_update]
        self.pilot.after_step(parts, self._own_loss(parts))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log what the pilot has written, now that the trainer has counted the update; stop where it says so."""
        assert self.pilot is not None
        self._hand_over(control)
        control.should_training_stop |= self.pilot.host.stopped

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the pilot's state into the trainer's checkpoint, each process its own."""
        assert self.pilot is not None
        content = BytesIO()
        torch.save(self.pilot.state_dict(), content)
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        try:
            write_whole(folder / _name(args), content.getbuffer())
        except OSError as error:
            _warn(f"the pilot's state is not in checkpoint {state.global_step}: {error}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the pilot off the optimizer."""
        assert self.pilot is not None
        self.pilot.close()
        self._hand_over(control)

    def _hand_over(self, control: Any) -> None:
        """Rows go where ``report_to`` says."""
        asked = control.should_log
        rows, self._rows = self._rows, []
        for row in rows:
            self.trainer.log(row)
        control.should_log = asked  # trainer.log() has taken the trainer's own turn for done

    def loss(self, model: nn.Module, inputs: Any) -> Any:
        """The training loss of a micro-batch: its mean, or sum and count where the model counts items (tokens)."""
        with _alone(self.trainer.args):
            items = self._items(inputs)
            mean = self.trainer.compute_loss(model, copy(inputs), num_items_in_batch=items)
        return (mean * items, items) if items is not None and self._counts else mean

    def _items(self, inputs: Any) -> Any:
        return self.trainer.get_batch_samples(iter([inputs]), 1, self.trainer.args.device)[1]

    def _own_loss(self, parts: list[Any]) -> Tensor:
        """The mean over this process's part of the update, whatever the trainer divides by."""
        args, items = self.trainer.args, self.trainer.last_update[0][1]
        total: Tensor = torch.stack([loss for _, _, loss in self.trainer.last_update]).sum()
        if items is None:
            return total
        with _alone(args):
            own = [self._items(inputs) for inputs in parts]
            if self._counts is None:
                self._counts = self._divides(parts[0], own[0])
        together = self.trainer.accelerator.num_processes if args.average_tokens_across_devices else 1
        if not self._counts:  # the trainer adds up means
            return total / (len(parts) * together)
        mean: Tensor = total * items / (sum(own) * together)
        return mean

    def _divides(self, inputs: Any, items: Any) -> bool:
        """Whether the loss is divided by the number of items: many models take it and make nothing of it."""
        model = unwrapped(self.trainer.model)
        with torch.no_grad(), preserve_buffers(model):
            found = []
            for count in (items, 2 * items):
                with preserve_rng():
                    found.append(self.trainer.compute_loss(model, copy(inputs), num_items_in_batch=count))
        return not torch.equal(*found)

    def _saved(self, args: Any) -> Path | None:
        """The file of a pilot's state in the checkpoint that the trainer goes on from."""
        if self.trainer.resumed_from is None:
            return None
        file = Path(self.trainer.resumed_from) / _name(args)
        if not file.is_file():
            _warn(
                f"{file} is not there, so the pilot begins anew; weights and optimizer go on from the checkpoint"
            )
            return None
        return file


class TrainerHost(Host):
    """A trainer: the batch size is fixed, and stopping is its own."""

    def can_turn(self, name: str) -> bool:
        """Whether a trainer lets this be turned."""
        return name == "stop" or (name != "batch_size" and super().can_turn(name))


@contextmanager
def _alone(args: Any) -> Iterator[None]:
    """Count the items of this process alone: one process measures, and the others do not wait for it."""
    together, args.average_tokens_across_devices = args.average_tokens_across_devices, False
    try:
        yield
    finally:
        args.average_tokens_across_devices = together


def _name(args: Any) -> str:
    return f"pilot_{args.process_index}.pt"


def _plain(inputs: Any) -> Any:
    """A dictionary, which the pilot can count and save, of what a tokenizer returns."""
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)
