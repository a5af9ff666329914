"""The tasks and nets of ``benchmarks/doctor.py``, small enough for 300 steps in a few seconds."""

from __future__ import annotations

import argparse
import functools
import math
import pydoc_data.topics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from doctor_faults import CELLS, Spec
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from optland.train import DataConfig, load_data

__all__ = ["Task", "build", "changed", "knowing_nothing", "task_of"]

CONTEXT, ALPHABET = 16, 48


@dataclass(frozen=True)
class Task:
    """Tensors of a task; ``classes`` is 0 for a regression."""

    x: Tensor
    y: Tensor
    val_x: Tensor
    val_y: Tensor
    classes: int
    text: bool = False


@functools.cache
def task_of(name: str) -> Task:
    """The data of a task, normalised."""
    if name in ("code", "topics"):
        return _text(
            Path(str((argparse if name == "code" else pydoc_data.topics).__file__)).read_text(
                encoding="utf-8"
            )
        )
    if name == "digits":
        images, labels = load_digits(return_X_y=True)
        x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)
        return _split((x - x.mean()) / x.std(), torch.tensor(labels), 10, 400)
    if name == "mnist1d":
        data = load_data(DataConfig(name="mnist1d"))
        x = torch.cat([data.normalise(data.train_x), data.normalise(data.val_x)]).reshape(-1, 1, 40)
        return _split(x, torch.cat([data.train_y, data.val_y]), 10, 600)
    if name == "cancer":
        table, labels = load_breast_cancer(return_X_y=True)
        x = torch.tensor(table, dtype=torch.float32)
        return _split((x - x.mean(0)) / x.std(0), torch.tensor(labels), 2, 120)
    made = torch.Generator().manual_seed({"teacher": 1, "tabular": 2, "regression": 3, "friedman": 4}[name])
    x = torch.randn(4800, 20, generator=made)
    if name == "friedman":  # Friedman (1991): ten inputs of which five count
        x = torch.rand(4800, 10, generator=made)
        y = (
            10 * torch.sin(math.pi * x[:, 0] * x[:, 1])
            + 20 * (x[:, 2] - 0.5) ** 2
            + 10 * x[:, 3]
            + 5 * x[:, 4]
        )
        y = y + torch.randn(4800, generator=made)
        return _split((x - 0.5) * math.sqrt(12), ((y - y.mean()) / y.std())[:, None], 0, 800)
    if name == "teacher":
        hidden = torch.tanh(x @ torch.randn(20, 32, generator=made) / 3)
        return _split(x, (hidden @ torch.randn(32, 5, generator=made)).argmax(1), 5, 800)
    if name == "tabular":
        score = torch.stack(
            [x[:, 0] * x[:, 1] + x[:, 2], x[:, 3].abs() - x[:, 4], torch.sin(2 * x[:, 5]) + 0.5], 1
        )
        return _split(x, (score + 0.2 * torch.randn(4800, 3, generator=made)).argmax(1), 3, 800)
    y = torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.5 * x[:, 3] + 0.1 * torch.randn(4800, generator=made)
    return _split(x, ((y - y.mean()) / y.std())[:, None], 0, 800)


def _split(x: Tensor, y: Tensor, classes: int, held_out: int) -> Task:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return Task(x[held_out:], y[held_out:], x[:held_out], y[:held_out], classes)


def _text(text: str) -> Task:
    common = {c: i + 1 for i, (c, _) in enumerate(Counter(text).most_common(ALPHABET - 1))}
    tokens = torch.tensor([common.get(c, 0) for c in text[:40_000]])
    windows = tokens[: len(tokens) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1)
    x, y, cut = windows[:, :-1], windows[:, 1:], len(windows) * 9 // 10
    return Task(x[:cut], y[:cut], x[cut:], y[cut:], ALPHABET, text=True)


def knowing_nothing(task: Task) -> float:
    """The loss of a net that says the same of every sample: ln of the number of classes, or the variance."""
    return math.log(task.classes) if task.classes else float(task.y.var())


def changed(task: Task, spec: Spec) -> Task:
    """The task with the faults of its data: fewer samples, wrong labels, inputs of another scale."""
    made = torch.Generator().manual_seed(spec.seed)
    x, y, val_x = task.x, task.y, task.val_x
    if spec.samples:
        few = torch.randperm(len(x), generator=made)[: spec.samples]
        x, y = x[few], y[few]
    if spec.labels:
        wrong = torch.rand(len(y), generator=made) < spec.labels
        y = torch.where(wrong, torch.randint(task.classes, y.shape, generator=made), y)
    if spec.inputs == "spread":
        scale = spec.strength ** (torch.rand(x.shape[1:], generator=made) * 2 - 1)
        x, val_x = x * scale, val_x * scale
    elif spec.inputs:
        factor = spec.strength if spec.inputs == "large" else 1 / spec.strength
        x, val_x = x * factor, val_x * factor
    return Task(x, y, val_x, task.val_y, task.classes, task.text)


_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}


class _Block(nn.Module):
    def __init__(self, layer: nn.Module, width: int, spec: Spec, *, conv: int = 0) -> None:
        super().__init__()
        norms = {"batch": (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[conv], "layer": nn.LayerNorm}
        self.layer = layer
        self.norm = norms[spec.norm](width) if spec.norm in norms else nn.Identity()
        self.activation, self.dropout = _ACTIVATIONS[spec.activation](), nn.Dropout(spec.dropout)
        self.skip = spec.skips

    def forward(self, x: Tensor) -> Any:
        y = self.dropout(self.activation(self.norm(self.layer(x))))
        return x + y if self.skip else y


class _Stack(nn.Module):
    """A stem, blocks of one kind, and a linear head."""

    def __init__(self, inputs: int, outputs: int, spec: Spec, conv: int) -> None:
        super().__init__()
        w, self.conv = spec.width, conv
        make: Any = (nn.Linear, nn.Conv1d, nn.Conv2d)[conv]
        options: dict[str, Any] = {"kernel_size": 3, "padding": 1} if conv else {}
        halved = {"stride": 2} if conv == 1 else {}
        self.stem = _Block(make(inputs, w, **options, **halved), w, _without_skips(spec), conv=conv)
        self.blocks = nn.Sequential(
            *(_Block(make(w, w, **options), w, spec, conv=conv) for _ in range(spec.depth - 1))
        )
        self.head = nn.Linear(4 * w if conv else w, outputs)

    def forward(self, x: Tensor) -> Any:
        if not self.conv:
            return self.head(self.blocks(self.stem(x.flatten(1))))
        pool = F.adaptive_avg_pool1d if self.conv == 1 else F.adaptive_avg_pool2d
        return self.head(pool(self.blocks(self.stem(x)), 4 if self.conv == 1 else 2).flatten(1))


def _without_skips(spec: Spec) -> Spec:
    return Spec(**{**spec.__dict__, "skips": False})


class _Recurrent(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ALPHABET, spec.width)
        self.dropout = nn.Dropout(spec.dropout)
        self.gru = nn.GRU(spec.width, spec.width, batch_first=True)
        self.head = nn.Linear(spec.width, ALPHABET)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.dropout(self.gru(self.dropout(self.embedding(x)))[0]))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Any:
        b, t, w = x.shape
        q, k, v = (m.reshape(b, t, self.heads, -1).transpose(1, 2) for m in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(w / self.heads)
        hidden = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -math.inf).softmax(-1) @ v
        return self.out(hidden.transpose(1, 2).reshape(b, t, w))


class _Transformer(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        w = spec.width
        self.embedding, self.position = (
            nn.Embedding(ALPHABET, w),
            nn.Parameter(0.02 * torch.randn(CONTEXT, w)),
        )
        self.dropout = nn.Dropout(spec.dropout)
        self.attention = nn.ModuleList(_Attention(w, 2) for _ in range(spec.depth))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(w, 2 * w), nn.GELU(), nn.Linear(2 * w, w)) for _ in range(spec.depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(w) for _ in range(2 * spec.depth + 1))
        self.head = nn.Linear(w, ALPHABET)

    def forward(self, x: Tensor) -> Any:
        h = self.dropout(self.embedding(x) + self.position)
        for i, (attention, feed) in enumerate(zip(self.attention, self.feed, strict=True)):
            h = h + self.dropout(attention(self.norms[2 * i](h)))
            h = h + self.dropout(feed(self.norms[2 * i + 1](h)))
        return self.head(self.norms[-1](h))


def build(spec: Spec, task: Task) -> nn.Module:
    """The net of a run, with the faults of its initialisation."""
    torch.manual_seed(spec.seed)
    net = CELLS[spec.cell]["net"]
    if net == "transformer":
        model: nn.Module = _Transformer(spec)
    elif net == "gru":
        model = _Recurrent(spec)
    else:
        conv = {"conv1d": 1, "resnet1d": 1, "conv2d": 2}.get(net, 0)
        inputs = 1 if conv else task.x[0].numel()
        model = _Stack(inputs, max(1, task.classes), spec, conv)
    _initialise(model, spec)
    if spec.frozen and isinstance(model, _Stack):
        model.stem.requires_grad_(False)
    return model


def _initialise(model: nn.Module, spec: Spec) -> None:
    layers: list[Any] = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    with torch.no_grad():
        for layer in layers:
            if spec.init == "kaiming":
                nn.init.kaiming_normal_(layer.weight)
                layer.bias.zero_()
            elif spec.init != "default":
                layer.weight.fill_(spec.strength)
                layer.bias.zero_()
            layer.weight.mul_(spec.gain)
            if spec.gain < 1:
                layer.bias.mul_(0)
        for layer in layers[:-1] if spec.bias else []:
            layer.bias.fill_(spec.bias)
