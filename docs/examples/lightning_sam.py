"""SAM over AdamW and a pilot in Lightning, on the digits of scikit-learn; some seconds on one core."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torchmetrics
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from optland import SAM
from optland.integrations.lightning import PilotCallback, SAMModule


class Digits(SAMModule, L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
        self.seen = torchmetrics.Accuracy(task="multiclass", num_classes=10)
        self.held = torchmetrics.Accuracy(task="multiclass", num_classes=10)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        outputs = self.net(x)
        self.seen(outputs, y)  # each batch once: the second pass is not counted
        self.log("train/acc", self.seen, on_step=False, on_epoch=True)
        return nn.functional.cross_entropy(outputs, y)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.held(self.net(batch[0]), batch[1])
        self.log("val/acc", self.held, prog_bar=True)

    def configure_optimizers(self) -> Any:
        return SAM(torch.optim.AdamW(self.parameters(), lr=1e-3), rho=0.05, model=self)


def main() -> None:
    L.seed_everything(0, verbose=False)
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    train, val = random_split(TensorDataset(x.float() / 16, y), [1437, 360])
    pilot = PilotCallback(policies=["auto_lr"])  # finds the height of the learning rate
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=8, accumulate_grad_batches=2, callbacks=[pilot], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Digits()
    trainer.fit(module, DataLoader(train, 32, shuffle=True), DataLoader(val, 360))
    print(
        f"{trainer.global_step} updates, validation accuracy {float(trainer.callback_metrics['val/acc']):.3f}"
    )
    print(pilot.pilot)


if __name__ == "__main__":
    main()
