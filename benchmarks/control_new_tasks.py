"""Four more tasks for benchmarks/control.py, which nothing was chosen on: named here before their first run.

============  =================================================================================================
task          what is new about it
============  =================================================================================================
cancer        small tabular data: 30 measurements of 569 tumours (scikit-learn), an MLP, 300 steps of 32
deep_mlp      73 weight matrices in 150 steps: a residual MLP of 36 blocks with LayerNorm on digits
autoencoder   no labels: digits through eight numbers and back, mean squared error
char_lstm     a recurrent net: the next character of Python source, one LSTM layer
============  =================================================================================================
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from control_tasks import MORE, TASKS, Problem, Task
from torch import Tensor, nn
from torch.nn import functional as F

from optland.train import DataConfig, TextConfig, load_data, load_text

__all__ = ["MAKERS", "NEW_TASKS"]

NEW_TASKS = {
    "cancer": Task("breast cancer, MLP", "new", "cancer", 300, batch=32),
    "deep_mlp": Task("digits, residual MLP of 73 layers", "new", "deep_mlp", 150, batch=64),
    "autoencoder": Task("digits, autoencoder", "new", "autoencoder", 500, batch=128, metric="loss"),
    "char_lstm": Task("Python source, LSTM", "new", "char_lstm", 250, batch=32, metric="loss"),
}

Splits = dict[str, tuple[Tensor, Tensor]]


def cancer(task: Task, seed: int) -> Problem:
    """Standardised by the training part; a fifth each for validation and test."""
    parts = _cancer()
    model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    return _classified(model, parts, math.log(2))


@functools.lru_cache(maxsize=1)
def _cancer() -> Splits:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order], torch.tensor(y, dtype=torch.long)[order]
    fifth = len(x) // 5
    train = slice(2 * fifth, None)
    x = (x - x[train].mean(0)) / x[train].std(0)
    return {
        "val": (x[:fifth], y[:fifth]),
        "test": (x[fifth : 2 * fifth], y[fifth : 2 * fifth]),
        "train": (x[train], y[train]),
    }


@functools.lru_cache(maxsize=1)
def _digits() -> Splits:
    data = load_data(DataConfig(name="digits"))
    flat = {name: data.normalise(getattr(data, f"{name}_x")).flatten(1) for name in ("train", "val", "test")}
    return {name: (x, getattr(data, f"{name}_y")) for name, x in flat.items()}


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.down(F.relu(self.up(self.norm(x))))
        return x + added


def deep_mlp(task: Task, seed: int) -> Problem:
    """As deep nets are built: normalised before each block, added to its input."""
    blocks = [_Block(32) for _ in range(36)]
    model = nn.Sequential(nn.Linear(64, 32), *blocks, nn.LayerNorm(32), nn.Linear(32, 10))
    return _classified(model, _digits(), math.log(10))


def autoencoder(task: Task, seed: int) -> Problem:
    """Eight numbers in the middle; the loss of knowing nothing is the variance of the data."""
    parts = {name: x for name, (x, _) in _digits().items()}
    model = nn.Sequential(
        nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 8), nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 64)
    )

    def loss_fn(net: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(net(batch[0]), batch[0])

    def score(net: nn.Module) -> dict[str, float]:
        return {f"{name}_loss": float(loss_fn(net, [parts[name]])) for name in ("val", "test")}

    return Problem(model, [parts["train"]], loss_fn, score, float(parts["train"].var(0).mean()))


class _CharLSTM(nn.Module):
    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.lstm(self.embedding(x))[0])
        return scores


@functools.lru_cache(maxsize=1)
def _text() -> Any:
    return load_text(TextConfig(context=32, max_bytes=1_000_000))


def char_lstm(task: Task, seed: int) -> Problem:
    """Width 64, 32 characters of context."""
    text = _text()
    model = _CharLSTM(text.vocabulary, 64)

    def loss_fn(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]).flatten(0, 1), batch[1].flatten())

    def score(net: nn.Module) -> dict[str, float]:
        windows = {name: [part[:512] for part in text.windows(name)] for name in ("val", "test")}
        return {f"{name}_loss": float(loss_fn(net, batch)) for name, batch in windows.items()}

    return Problem(model, list(text.windows("train")), loss_fn, score, math.log(text.vocabulary))


def _classified(model: nn.Module, parts: Splits, trivial: float) -> Problem:
    def loss_fn(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    def score(net: nn.Module) -> dict[str, float]:
        found = {}
        for name in ("val", "test"):
            x, y = parts[name]
            out = net(x)
            found[f"{name}_loss"] = float(F.cross_entropy(out, y))
            found[f"{name}_acc"] = 100.0 * float((out.argmax(1) == y).float().mean())
        return found

    return Problem(model, list(parts["train"]), loss_fn, score, trivial)


MAKERS = {"cancer": cancer, "deep_mlp": deep_mlp, "autoencoder": autoencoder, "char_lstm": char_lstm}
"""What makes a task ready, by its kind."""

TASKS.update(NEW_TASKS)
MORE.update(MAKERS)
