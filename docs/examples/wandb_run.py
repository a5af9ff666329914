"""optland in your own wandb run: a plain loop on scikit-learn's digits, under SAM, with a pilot that sets the rate.

Your rows stay as they are; optland's are beside them under `optland/`, with the axis `optland/step`. Offline here:
leave out `mode="offline"` where you are logged in. To look at it: wandb leet.
To read a number: optland explain edge/ratio.
"""

import os

import torch
import wandb
from sklearn.datasets import load_digits
from torch.nn import functional as F

from optland import SAM, Pilot

EPOCHS, BATCH = 5, 64


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)
train, test = slice(0, 1500), slice(1500, None)

model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.05, model=model)
dataset = torch.utils.data.TensorDataset(x[train], y[train])
loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True)

with wandb.init(project="digits", mode="offline", dir=os.environ.get("WANDB_DIR", ".")) as run:
    # The pilot is closed before the run is: what waits for a row of yours is written then.
    with Pilot(optimizer, model, loss_fn, total_steps=EPOCHS * len(loader), log=run) as pilot:
        for epoch in range(EPOCHS):
            for batch in loader:

                def closure(batch=batch):
                    optimizer.zero_grad()
                    loss = loss_fn(model, batch)
                    loss.backward()
                    return loss

                loss = optimizer.step(closure)
                pilot.after_step(batch, loss)
            with torch.no_grad():
                accuracy = (model(x[test]).argmax(1) == y[test]).float().mean()
            run.log({"accuracy": float(accuracy), "epoch": epoch + 1}, step=epoch + 1)  # however you log
            print(f"epoch {epoch + 1}: accuracy {accuracy:.3f}")
