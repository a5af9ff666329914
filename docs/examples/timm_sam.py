"""SAM around timm's AdamW with timm's schedule, average and decay groups, on scikit-learn's digits.

Needs ``pip install 'optland[timm]' scikit-learn``; runs in seconds on a processor.
"""

import torch
from sklearn.datasets import load_digits
from timm.models.mlp_mixer import MlpMixer
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from optland.integrations.timm import NativeScaler, create_optimizer_v2


def main(epochs: int = 4) -> dict:
    """Train, and say how the loss has changed."""
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    model = MlpMixer(img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, num_blocks=2)
    average = ModelEmaV3(model, decay=0.9)
    optimizer = create_optimizer_v2(model, "sam_adamw", lr=1e-2, weight_decay=0.05, rho=0.05)
    loss_scaler = NativeScaler(device="cpu")
    updates = epochs * -(-len(x) // 64)
    scheduler = CosineLRScheduler(optimizer, t_initial=updates, t_in_epochs=False)

    losses = []
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):

            def forward(rows=rows):
                return nn.functional.cross_entropy(model(x[rows]), y[rows])

            loss = forward()
            loss_scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters(), second=forward)
            optimizer.zero_grad()
            losses.append(loss.item())
            scheduler.step_update(len(losses))
            average.update(model)
    return {"first loss": losses[0], "last loss": losses[-1], "updates": len(losses)}


if __name__ == "__main__":
    print(main())
