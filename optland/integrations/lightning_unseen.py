"""Run a training step of Lightning again: what it was given, in silence, at other weights.

The loop of Lightning runs each micro-batch once. Pass two of an update, and the pilot's probes, run it again, and
nothing that counts or logs may see that.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

try:
    from lightning.pytorch import Callback
    from torchmetrics import Metric, MetricCollection
except ImportError as error:
    raise ImportError(
        f"optland.integrations.lightning needs Lightning ({error}): pip install 'optland[lightning]'"
    ) from error

__all__ = ["Callback", "UnseenLoss", "arguments", "loss_of", "unseen"]


def loss_of(output: Any) -> Any:
    """The loss of what a training step returned: itself, or what stands under ``loss``; None for a skipped one.

    Args:
        output: A tensor, a dictionary, or None.
    """
    return output.get("loss") if isinstance(output, Mapping) else output


def arguments(module: Any, batch: Any, batch_idx: int) -> tuple[Any, ...]:
    """What Lightning gives to ``training_step``: the batch, and its number where it is asked for.

    Args:
        module: A LightningModule.
        batch: The batch.
        batch_idx: Its number.
    """
    found = inspect.signature(module.training_step).parameters.values()
    return (
        (batch, batch_idx) if len(found) > 1 or any(p.kind is p.VAR_POSITIONAL for p in found) else (batch,)
    )


@contextmanager
def unseen(module: Any, clones: dict[int, Any]) -> Iterator[None]:
    """Run training steps that are part of no log and no metric.

    Args:
        module: A LightningModule.
        clones: Stand-ins for its metrics, by the identity of those; kept from one call to the next, since copying a
            metric copies all that it holds.
    """
    own: dict[str, Any] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        inside = any(name.startswith(f"{outer}.") for outer in own)
        if isinstance(part, Metric | MetricCollection) and not inside:
            own[name] = part
    for name, part in own.items():
        if id(part) not in clones:
            clones[id(part)] = part.clone()
        clones[id(part)].reset()
        module.set_submodule(name, clones[id(part)])
    before = {name: value for name, value in vars(module).items() if name == "log"}
    vars(module)["log"] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del vars(module)["log"]
        vars(module).update(before)
        for name, part in own.items():
            module.set_submodule(name, part)


class UnseenLoss:
    """``training_step`` as the loss function of probes: in no log and no metric, in the trainer's precision.

    Args:
        trainer: Of Lightning.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._clones: dict[int, Any] = {}

    def __call__(self, module: Any, batch: Any) -> Tensor:
        """The loss of a micro-batch."""
        with unseen(module, self._clones), self.trainer.precision_plugin.train_step_context():
            loss: Tensor = loss_of(module.training_step(*arguments(module, batch, 0)))
        return loss
