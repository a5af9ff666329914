"""A problem in float64, run by Lightning and by the plain loop that it has to equal."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from optland.integrations.lightning import SAMModule
from optland.optim import ASAM, MSAM, SAM, LookSAM

BATCH = 4


def dataset(num_batches: int = 40, dtype: torch.dtype = torch.float64) -> TensorDataset:
    made = torch.Generator().manual_seed(3)
    x = torch.randn(num_batches * BATCH, 6, generator=made, dtype=torch.float64)
    return TensorDataset(x.to(dtype), torch.randint(3, (num_batches * BATCH,), generator=made))


def loader(num_batches: int = 40, dtype: torch.dtype = torch.float64) -> DataLoader[Any]:
    return DataLoader(dataset(num_batches, dtype), BATCH, shuffle=False)


def net(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), *layers, nn.Tanh(), nn.Linear(8, 3)).double()


def optimizer(name: str, params: Any, **options: Any) -> Any:
    params = list(params)
    sgd = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    match name:
        case "sam":
            return SAM(sgd, rho=0.2, **options)
        case "asam":
            return ASAM(torch.optim.AdamW(params, lr=0.01), rho=0.5, **options)
        case "msam":
            return MSAM(sgd, rho=0.3, **options)
        case "looksam":
            return LookSAM(sgd, rho=0.2, k=5, **options)
    raise AssertionError(name)


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model(x).double(), y)


class Bare(L.LightningModule):
    """As people write it, without the mixin."""

    def __init__(
        self, method: str = "sam", model: nn.Module | None = None, *, guarded: bool = True, gamma: float = 1.0
    ) -> None:
        super().__init__()
        self.net = net() if model is None else model
        self.method, self.guarded, self.gamma = method, guarded, gamma
        self.calls = 0

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.calls += 1
        loss = loss_of(self, batch)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        made = optimizer(self.method, self.parameters(), **({"model": self} if self.guarded else {}))
        schedule = torch.optim.lr_scheduler.ExponentialLR(made, self.gamma)
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Net(SAMModule, Bare):
    """With it."""


class Losses(L.Callback):
    """What Lightning gives out for each batch, and what it has on record after it."""

    def __init__(self) -> None:
        self.outputs: list[float] = []
        self.logged: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        self.outputs.append(float(outputs["loss"]))
        self.logged.append(float(trainer.callback_metrics["train/loss"]))


def trainer(max_steps: int = 20, **options: Any) -> L.Trainer:
    given: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_steps": max_steps, "max_epochs": -1, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return L.Trainer(**{**given, **options})


def half(**options: Any) -> MixedPrecision:
    """Half precision on the processor, which Lightning itself would turn into bfloat16."""
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", **options))


def plain(
    method: str, model: nn.Module, batches: list[Any], *, num_steps: int = 20, accumulation: int = 1,
    clip: Any = None, gamma: float = 1.0, dtype: torch.dtype | None = None, scaler: Any = None, **options: Any,
) -> list[float]:  # fmt: skip
    """The loop that the mixin equals; the loss of each micro-batch at w (of MSAM, at w + eps)."""
    made = optimizer(method, model.parameters(), **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(made, gamma)
    losses = []
    for step in range(num_steps):
        micro = [batches[(step * accumulation + i) % len(batches)] for i in range(accumulation)]
        made.zero_grad()
        scale = None if scaler is None else scaler.get_scale()
        for number in made.passes(loss_scale=scale):
            for batch in micro:
                with torch.autocast(
                    "cpu", dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False
                ):
                    loss = loss_of(model, batch)
                if number == 0:
                    losses.append(loss.item())
                loss = loss / accumulation
                (loss if scaler is None else scaler.scale(loss)).backward()
        made.restore()
        if scaler is not None:
            scaler.unscale_(made)
        if clip is not None:
            clip(list(model.parameters()))
        if scaler is None:
            made.step()
        else:
            scaler.step(made)
            scaler.update()
        schedule.step()
    return losses


def apart(model: nn.Module, other: nn.Module) -> float:
    """The largest difference of two nets."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((p.detach() - q.detach()).abs().max()) for p, q in pairs)
