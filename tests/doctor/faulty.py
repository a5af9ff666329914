"""Small training loops with one silent fault each, made in two ways, for the doctor to find."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from optland.doctor import watch
from optland.doctor.watching import Watch

Loss = Callable[[nn.Module, Any], Tensor]


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@dataclass
class Loop:
    """A training loop of 50 updates on three blobs; each field is a place where a fault can be.

    Attributes:
        parts: Micro-batches of an update.
        divide: Whether their losses are divided.
        zero: Called before the backward passes of an update.
        per_update: Steps of the schedule per update.
        train_again: Whether the model goes back to train mode after an evaluation.
        eval_mode: Whether it is evaluated in eval mode.
    """

    inputs: Callable[[Tensor], Tensor] = lambda x: x
    change_model: Callable[[nn.Sequential], object] = lambda model: None
    held: Callable[[nn.Sequential], list[nn.Parameter]] = lambda model: list(model.parameters())
    after_optimizer: Callable[[nn.Sequential], object] = lambda model: None
    loss_fn: Loss = cross_entropy
    parts: int = 1
    divide: bool = True
    zero: bool = True
    per_update: int = 1
    train_again: bool = True
    eval_mode: bool = True
    loader: str = "shuffled"
    optimizer: str = "SGD"
    steps: int = 50

    def run(self) -> Watch:
        torch.manual_seed(0)
        y = torch.arange(960) % 3
        x = self.inputs(torch.randn(960, 8) + 2 * F.one_hot(y, 8))
        model = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 16), nn.ReLU(),
            nn.Linear(16, 3),
        )  # fmt: skip
        self.change_model(model)
        held = self.held(model)
        optimizer = torch.optim.SGD(held, 0.05) if self.optimizer == "SGD" else torch.optim.AdamW(held, 1e-3)
        self.after_optimizer(model)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        loader = self._loader(x, y)
        with watch(model, optimizer, loader, scheduler=scheduler, total_steps=self.steps) as doctor:
            while doctor.step < self.steps:
                for batch in loader:
                    if self.zero:
                        optimizer.zero_grad()
                    parts = list(zip(*(t.chunk(self.parts) for t in batch), strict=True))
                    losses = [
                        self.loss_fn(model, part) / (self.parts if self.divide else 1) for part in parts
                    ]
                    for loss in losses:
                        loss.backward()
                    optimizer.step()
                    for _ in range(self.per_update):
                        scheduler.step()
                    doctor.after_step(batch, sum(losses))
                    if doctor.step % 10 == 0:
                        self._evaluate(model, x)
                    if doctor.step == self.steps:
                        break
        return doctor

    def _loader(self, x: Tensor, y: Tensor) -> Any:
        order = y.argsort()
        if self.loader == "sorted":
            return DataLoader(TensorDataset(x[order], y[order]), 32)
        if self.loader == "list":
            return list(zip(x[order].split(32), y[order].split(32), strict=True))
        return DataLoader(TensorDataset(x, y), 32, shuffle=True, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, x: Tensor) -> None:
        if self.eval_mode:
            model.eval()
        model(x[:100])
        if self.train_again:
            model.train()


def _constant(model: nn.Sequential) -> None:
    model[1] = nn.Identity()
    model[3] = nn.Identity()
    for p in model.parameters():
        nn.init.constant_(p, 0.1)


def _zeros(model: nn.Sequential) -> None:
    for p in model.parameters():
        nn.init.zeros_(p)


def _without_last(model: nn.Sequential) -> list[nn.Parameter]:
    return list(model[:-1].parameters())


def _without_middle(model: nn.Sequential) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if not name.startswith("4")]


def _copies(model: nn.Sequential) -> list[nn.Parameter]:
    return list(copy.deepcopy(model).parameters())


def _new_head(model: nn.Sequential) -> None:
    model[-1] = nn.Linear(16, 3)


def _add_softmax(model: nn.Sequential) -> None:
    model.append(nn.Softmax(-1))


def _softmax_in_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]).softmax(-1), batch[1])


def _sum(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def _divided_twice(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1]) / len(batch[1])


FAULTS: dict[str, tuple[Loop, Loop]] = {
    "weights_not_held": (Loop(held=_without_last), Loop(held=_without_middle, optimizer="AdamW")),
    "stale_optimizer": (Loop(held=_copies), Loop(after_optimizer=_new_head)),
    "gradients_not_zeroed": (Loop(zero=False), Loop(zero=False, optimizer="AdamW")),
    "accumulation_not_divided": (Loop(parts=2, divide=False), Loop(parts=4, divide=False, optimizer="AdamW")),
    "modes_mixed_up": (Loop(train_again=False), Loop(eval_mode=False)),
    "data_not_shuffled": (Loop(loader="sorted"), Loop(loader="list")),
    "scheduler_off": (Loop(per_update=2), Loop(per_update=0)),
    "softmax_twice": (Loop(change_model=_add_softmax), Loop(loss_fn=_softmax_in_loss)),
    "wrong_reduction": (Loop(loss_fn=_sum), Loop(loss_fn=_divided_twice, optimizer="AdamW")),
    "symmetric_weights": (Loop(change_model=_zeros), Loop(change_model=_constant)),
    "inputs_off_scale": (Loop(inputs=lambda x: 255 * x), Loop(inputs=lambda x: x / 300)),
}
"""Each silent fault in two ways."""
