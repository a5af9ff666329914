"""Fine-tuning on a second task and what is left of the first: configuration, pairs of tasks, interpolated weights.

======================  ===================================================================================
way                     what it does
======================  ===================================================================================
``plain``               nothing for the old task
``replay``              kept samples of the old task in every batch
``l2``                  a penalty ``strength / 2`` times the squared distance to the start
``sam``                 SAM in every step, with half of the steps
``keep_old``            updates shortened to a budget for the old loss (:mod:`.keep_old`)
======================  ===================================================================================

Interpolation needs no way of its own: the weights between start and end of any run are evaluated, and the share that is
best for both tasks on validation data is taken (Wortsman et al. 2022, arXiv:2109.01903).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from optland.train.experiments.bank_run import Splits
from optland.train.loops.evaluate import evaluate
from optland.train.models.low_rank import Scope
from optland.train.runs.settings import OptimizerConfig, PilotConfig, RunConfig

__all__ = ["SHARES", "FinetuneConfig", "Task", "Way", "between", "tasks", "together"]

Task = Literal["turned", "classes"]
Way = Literal["plain", "replay", "l2", "sam", "keep_old"]

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Places between the start (0) and the end (1) that are evaluated."""


@dataclass(frozen=True)
class FinetuneConfig(RunConfig):
    """A fine-tuning: every key of RunConfig, and these.

    Attributes:
        start: Weights of the first task, a safetensors file of a net of this model; null trains them here.
        start_epochs: Passes over the data of the first task, where it is trained here.
        start_lr: Its learning rate.
        task: What the second task is: the images ``turned`` by 90 degrees, or the second half of the ``classes``.
        scope: What is trained: ``all``, ``last`` (the last layer) or ``lora``.
        rank: Of the factors of ``lora``.
        way: ``plain``, ``replay``, ``l2``, ``sam`` or ``keep_old``.
        strength: Factor of ``l2``, radius of ``sam``, or the rise of the old loss that ``keep_old`` allows, as a share
            of it; null takes 0.1, 0.05 and 0.5.
        num_kept: Samples of the first task that are kept, for ``replay`` and ``keep_old``.
        replayed: Of them, those that ``replay`` puts into a batch.

    Raises:
        ValueError: A value that cannot be, or a two-pass method, schedule or pilot, of which it has its own.
    """

    epochs: int = 4
    can_grow = False
    start: str | None = None
    start_epochs: int = 15
    start_lr: float = 0.1
    task: Task = "turned"
    scope: Scope = "all"
    rank: int = 4
    way: Way = "replay"
    strength: float | None = None
    num_kept: int = 128
    replayed: int = 13
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig("sgd", lr=0.03))
    pilot: PilotConfig = field(default_factory=lambda: PilotConfig(mode="off", policies=[]))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("start_epochs", "rank", "num_kept", "replayed"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if not self.start_lr > 0:
            raise ValueError(f"start_lr: {self.start_lr} must be above 0, for example 0.1")
        if self.strength is not None and not self.strength > 0:
            raise ValueError(f"strength: {self.strength} must be above 0, or null for the way's own")
        if self.optimizer.is_method:
            raise ValueError(
                f"optimizer.name: {self.optimizer.name!r} takes two passes; use sgd, and way: sam"
            )
        if self.schedule != "none" or self.pilot.mode != "off":
            raise ValueError(f"schedule: {self.schedule}, pilot.mode: {self.pilot.mode}: use none and off")

    @property
    def amount(self) -> float:
        """The strength, or the way's own.

        0.1 for ``l2``, 0.05 for ``sam``, else 0.5.
        """
        return {"l2": 0.1, "sam": 0.05}.get(self.way, 0.5) if self.strength is None else self.strength


def tasks(splits: Splits, task: Task) -> tuple[Splits, Splits]:
    """The first and the second task on some images, with one head for both.

    Args:
        splits: All data.
        task: ``turned`` or ``classes``, as in the configuration.

    Returns:
        The first and the second task, each with all three splits. Of ``classes`` the labels stay as they are, so each
        task uses its half of the outputs.

    Example:
        >>> x, y = torch.zeros(4, 1, 2, 2), torch.tensor([0, 3, 1, 2])
        >>> old, new = tasks(Splits((x, y), (x, y), (x, y), 4), "classes")
        >>> old.train[1].tolist(), new.train[1].tolist()
        ([0, 1], [3, 2])
    """
    if task == "turned":
        return splits, _each(splits, lambda x, y: (torch.rot90(x, 1, (2, 3)).contiguous(), y))
    half = splits.num_outputs // 2
    first = _each(splits, lambda x, y: (x[y < half], y[y < half]))
    return first, _each(splits, lambda x, y: (x[y >= half], y[y >= half]))


def _each(splits: Splits, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Splits:
    parts: dict[str, Any] = {name: change(*getattr(splits, name)) for name in ("train", "val", "test")}
    return replace(splits, **parts, noisy=None)


@torch.no_grad()
def between(
    model: nn.Module, start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float
) -> nn.Module:
    """Give the net the weights ``start + share (end - start)``; counters of batches are those of the end.

    Args:
        model: The net, which is changed.
        start: Weights and buffers by name.
        end: Likewise.
        share: From 0 to 1.

    Returns:
        The same module.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> start, end = {"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[3.0]])}
        >>> between(net, start, end, 0.25).weight.item()
        1.5
    """
    mixed = {
        name: torch.lerp(start[name], value, share) if value.is_floating_point() else value
        for name, value in end.items()
    }
    model.load_state_dict(mixed)
    return model


def together(model: nn.Module, old: Splits, new: Splits) -> dict[str, float]:
    """Loss and accuracy of both tasks, on validation and on test data.

    Args:
        model: The net.
        old: The first task.
        new: The second.

    Returns:
        ``loss`` in nats and ``acc`` in percent under ``val/old_``, ``test/old_``, ``val/new_`` and ``test/new_``.
    """
    row: dict[str, float] = {}
    for task, splits in (("old", old), ("new", new)):
        for split in ("val", "test"):
            found = evaluate(model, *getattr(splits, split))
            row |= {f"{split}/{task}_{name}": value for name, value in found.items()}
    return row
