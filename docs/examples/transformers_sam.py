"""SAM and a pilot in the Trainer of transformers, on scikit-learn's digits.

Needs ``pip install 'optland[hf]' scikit-learn``; runs in seconds on a processor.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import TrainingArguments

from optland.integrations.transformers import PilotCallback, SAMTrainer


class Classifier(nn.Module):
    """Any model that returns its loss, such as those of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Scores of the ten digits, and the mean loss."""
        logits = self.layers(pixels)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def main(folder: str) -> dict:
    """Train, and say how the loss has changed."""
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    data = [
        {"pixels": torch.tensor(x / 16, dtype=torch.float32), "labels": int(y)}
        for x, y in zip(pixels, labels, strict=True)
    ]
    args = TrainingArguments(
        folder,
        use_cpu=True,
        report_to="none",  # or "wandb", "tensorboard", ...: the pilot's rows go there under optland/
        disable_tqdm=True,
        num_train_epochs=3,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        max_grad_norm=1.0,
        logging_steps=10,
    )
    trainer = SAMTrainer(Classifier(), args, train_dataset=data, rho=0.05)
    trainer.add_callback(PilotCallback(policies=["auto_lr"], mode="monitor"))  # "control" steers the rate
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"first loss": losses[0], "last loss": losses[-1], "updates": trainer.state.global_step}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(main(folder))
