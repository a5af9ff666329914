"""SAM under Accelerate, with accumulation, clipping and a schedule, on scikit-learn's digits.

Needs ``pip install 'optland[hf]' scikit-learn``; also ``accelerate launch --num_processes 2 --cpu accelerate_sam.py``.
"""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from optland import SAM
from optland.integrations.accelerate import micro_batches, passes


def main(epochs: int = 4) -> dict:
    """Train, and say how the loss has changed."""
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
    loader = DataLoader(data, batch_size=16, shuffle=True)

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = SAM(torch.optim.AdamW(model.parameters(), lr=3e-3), rho=0.05, model=model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(loader) // 4))
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

    losses = []
    for _ in range(epochs):
        for batches in micro_batches(loader, accelerator, model):  # the four of one update
            found = []
            for _ in passes(accelerator, optimizer):
                for x, y in batches:
                    loss = nn.functional.cross_entropy(model(x), y)
                    accelerator.backward(loss)  # divides by the number of micro-batches
                    found.append(loss.item())
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(sum(found[: len(batches)]) / len(batches))  # those of pass one
    return {"first loss": losses[0], "last loss": losses[-1], "updates": len(losses)}


if __name__ == "__main__":
    print(main())
