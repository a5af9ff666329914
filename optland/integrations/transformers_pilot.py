"""The pilot in the ``Trainer`` of Hugging Face transformers, as a callback.

Length, batches, losses, log and checkpoints are the trainer's. Rows go through ``trainer.log`` under ``optland/``, to
whatever ``report_to`` names, one call each, in the update that they are about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor

from optland.integrations.pilot_file import read_state, write_state
from optland.integrations.trainer_host import TrainerHost
from optland.integrations.transformers_loss import TrainerLoss
from optland.log import into
from optland.pilot import Pilot
from optland.pilot.controls import by_name
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
        ValueError: A policy is not known, or an option is the trainer's.
        TypeError: When training begins, a policy in control turns the batch size, which a trainer has fixed.
    """

    def __init__(self, policies: Sequence[str | Policy] = ("auto_lr",), **options: Any) -> None:
        by_name(policies)  # names are looked up at once
        if taken := sorted(options.keys() & set(OURS)):
            raise ValueError(
                f"{taken[0]}= comes from the trainer: max_steps, report_to, logging_steps; leave it out"
            )
        self.policies, self.options = list(policies), options
        self.pilot: Pilot | None = None
        self.trainer: Any = None
        self._rows: list[dict[str, Any]] = []
        self._loss: Any = None

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
        self._loss = TrainerLoss(self.trainer)
        data, state_dict = (
            self.trainer.train_dataset,
            read_state(self.trainer.resumed_from, args.process_index),
        )
        self.pilot = Pilot(
            kwargs["optimizer"],
            self.trainer.model,
            self._loss,
            policies=deepcopy(self.policies),
            total_steps=state.max_steps if state_dict else state.max_steps - state.global_step,
            log=into(lambda row, step: self._rows.append(dict(row))),
            log_every=state.logging_steps,
            host=TrainerHost,
            dataset_size=len(data) if hasattr(data, "__len__") else None,
            **self.options,
        )
        if state_dict is not None:
            self.pilot.load_state_dict(state_dict)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the pilot of the update, while its gradients are there."""
        assert self.pilot is not None
        parts = [_plain(inputs) for inputs, _, _ in self.trainer.last_update]
        self.pilot.after_step(parts, self._loss.own(parts))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log what the pilot has written, now that the trainer has counted the update; stop where it says so."""
        assert self.pilot is not None
        self._hand_over(control)
        control.should_training_stop |= self.pilot.host.stopped

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the pilot's state into the trainer's checkpoint, each process its own."""
        assert self.pilot is not None
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        write_state(self.pilot, folder, args.process_index)

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


def _plain(inputs: Any) -> Any:
    """A dictionary, which the pilot can count and save, of what a tokenizer returns."""
    return dict(inputs) if isinstance(inputs, Mapping) else inputs
