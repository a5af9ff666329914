"""A small model and data for trainers of transformers, and the plain loop over the same updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from integrations.plain import plain_updates
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from optland.integrations.transformers import SAMTrainer
from optland.optim import wrap

SIZE = 4
NUM = 88


class Net(nn.Module):
    """Three labels per sample; counts items as language models of transformers do."""

    def __init__(self, *, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 9)
        self.to(dtype)

    def forward(self, x: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        items = kwargs.get("num_items_in_batch")
        scores = self.head(self.norm(self.body(x))).unflatten(-1, (3, 3))
        mean = items is None
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        loss = nn.functional.cross_entropy(
            scores.flatten(0, 1), labels.flatten(), reduction="mean" if mean else "sum"
        )
        return {"loss": loss if mean else loss / items, "logits": scores}


class MeanNet(Net):
    """Always the mean of a micro-batch; the trainer divides by their number."""

    accepts_loss_kwargs = False


def data(num: int = NUM, dtype: torch.dtype = torch.float64) -> list[dict[str, Tensor]]:
    """Samples; a third of the labels is not counted."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(num, 4, generator=g, dtype=torch.float64).to(dtype)
    labels = torch.randint(3, (num, 3), generator=g)
    labels[torch.rand(num, 3, generator=g) < 0.3] = -100
    labels[:, 0] = labels[:, 0].clamp(min=0)  # no sample without any
    return [{"x": a, "labels": b} for a, b in zip(x, labels, strict=True)]


def arguments(folder: Path, **given: Any) -> TrainingArguments:
    """Ours where a test says nothing: no log, no checkpoint, samples in order."""
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "per_device_train_batch_size": SIZE,
        "optim": "adamw_torch",  # the fused one rounds otherwise
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 0.0,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "logging_first_step": True,
        "train_sampling_strategy": "sequential",
        "seed": 3,
    }
    return TrainingArguments(**{**defaults, **given})


def trainer(
    folder: Path, net: nn.Module, *, num: int = NUM, cls: type = SAMTrainer, samples=None, **given: Any
) -> Trainer:
    """A trainer; what is no option of the trainer goes to its arguments."""
    own = ("method", "rho", "method_options", "optimizers", "optimizer_cls_and_kwargs", "callbacks")
    options = {k: given.pop(k) for k in own if k in given}
    return cls(net, arguments(folder, **given), train_dataset=samples or data(num), **options)


def stacked(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A micro-batch."""
    return {k: torch.stack([s[k] for s in samples]) for k in samples[0]}


def groups(net: Net) -> list[dict[str, Any]]:
    """Decay for matrices alone, as the trainer has it."""
    decayed = [p for n, p in net.named_parameters() if n.endswith("weight") and "norm" not in n]
    others = [p for n, p in net.named_parameters() if not (n.endswith("weight") and "norm" not in n)]
    return [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]


def plain(
    net: Net, method: str, *, whole: int, counted: bool, clip: float | None = None, epochs: int = 1, rho: float = 0.1,
    samples: list[dict[str, Tensor]] | None = None, micro: int = SIZE, **options: Any,
):  # fmt: skip
    """The updates of the trainer over ``whole`` samples each, in one piece where items are counted.

    Otherwise each is the mean of means over ``micro`` samples.
    """
    samples = samples or data()
    chunks = [samples[i : i + whole] for i in range(0, len(samples), whole)] * epochs
    updates = []
    for chunk in chunks:
        parts = [chunk] if counted else [chunk[i : i + micro] for i in range(0, len(chunk), micro)]
        updates.append([(len(parts), stacked(part)) for part in parts])
    base = torch.optim.AdamW(groups(net), lr=1e-2)
    optimizer = wrap(method, base, model=net, rho=rho, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(base, lambda k: 1 - k / len(updates))
    net.train()
    return plain_updates(
        optimizer, updates, lambda part: net(**part[1])["loss"] / part[0], clip=clip, after=schedule.step
    )
