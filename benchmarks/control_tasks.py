"""The tasks of ``benchmarks/control.py``: data, net, loss and length of each, for development and for the report.

Constants of the controller are chosen on the development tasks alone; the report tasks are run once they are fixed.
The edge tasks are nets that the rule was not made on: pretrained, partly zero, fifty layers deep. (Tied embeddings are
in the text task, whose transformer ties them.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from control_edges import CHANGES
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import avg_pool2d

from optland.train import (
    DataConfig,
    ModelConfig,
    TextConfig,
    TransformerConfig,
    build_model,
    load_data,
    load_text,
)

__all__ = ["SGD_LRS", "TASKS", "Problem", "Task", "prepare"]

SGD_LRS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2)
ADAMW_LRS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1)
HELD_OUT = 2000  # samples looked at for validation and for test


@dataclass(frozen=True)
class Task:
    """One thing to train.

    Attributes:
        title: As people read it.
        group: ``development``, ``report`` or ``edge``.
        kind: What ``prepare`` makes of it: ``images``, ``text`` or ``quadratic``.
        steps: Steps at the task's own batch; a budget of ``steps * batch`` samples.
        batch: Samples per step.
        settings: Of the data and the net.
        metric: ``acc`` (per cent, higher is better) or ``loss`` (lower is better).
    """

    title: str
    group: str
    kind: str
    steps: int
    batch: int = 128
    settings: dict[str, Any] = field(default_factory=dict)
    metric: str = "acc"

    def lrs(self, optimizer: str) -> tuple[float, ...]:
        """The nine rates that the tuned baseline tries."""
        if self.kind == "quadratic":
            return tuple(round(0.002 * 2**k, 4) for k in range(9))
        return ADAMW_LRS if optimizer == "adamw" else SGD_LRS


@dataclass
class Problem:
    """A task made ready: a fresh net, the training data as tensors, how to score."""

    model: nn.Module
    train: list[Tensor]
    loss_fn: Callable[[nn.Module, Any], Tensor]
    score: Callable[[nn.Module], dict[str, float]]
    trivial: float  # loss of a net that has learnt nothing


def _images(data: dict[str, Any], model: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"data": data, "model": model, **more}


_DIGITS, _MNIST1D = {"name": "digits"}, {"name": "mnist1d"}
TASKS = {
    "digits_cnn": Task("digits, CNN", "development", "images", 500,
                       settings=_images(_DIGITS, {"name": "cnn", "width": 16})),
    "mnist1d_cnn": Task("MNIST-1D, CNN", "development", "images", 1000,
                        settings=_images(_MNIST1D, {"name": "cnn", "width": 16})),
    "mnist1d_mlp": Task("MNIST-1D, MLP", "development", "images", 1000,
                        settings=_images(_MNIST1D, {"name": "mlp", "width": 100, "depth": 3})),
    "digits_resnet": Task("digits, ResNet-8 with BatchNorm", "development", "images", 300,
                          settings=_images(_DIGITS, {"name": "resnet", "depth": 8, "width": 8})),
    "fashion_cnn": Task("Fashion-MNIST 10k at 14 x 14, CNN", "report", "images", 400,
                        settings=_images({"name": "fashion_mnist", "subset": 10_000},
                                         {"name": "cnn", "width": 8}, halved=True)),
    "digits_deep_mlp": Task("digits, MLP of 8 layers", "report", "images", 500,
                            settings=_images(_DIGITS, {"name": "mlp", "width": 64, "depth": 7})),
    "text_gpt": Task("Python source, 2-layer GPT", "report", "text", 300, batch=24, metric="loss",
                     settings={"context": 48, "width": 64, "depth": 2, "heads": 4}),
    "quadratic": Task("noisy quadratic", "report", "quadratic", 500, batch=32, metric="loss",
                      settings={"dimension": 100, "condition": 1000.0, "noise": 1.0}),
    "finetuned": Task("turned digits, pretrained CNN", "edge", "images", 200, batch=64,
                      settings=_images(_DIGITS, {"name": "cnn", "width": 16}, turned=True, change="pretrained")),
    "lora": Task("turned digits, low-rank factors", "edge", "images", 400, batch=64,
                 settings=_images(_DIGITS, {"name": "mlp", "width": 64, "depth": 3}, turned=True, change="lora")),
    "zero_last": Task("MNIST-1D, CNN, last layer zero", "edge", "images", 500, batch=64,
                      settings=_images(_MNIST1D, {"name": "cnn", "width": 16}, change="zero_last")),
    "deep": Task("digits, ResNet-50 with BatchNorm", "edge", "images", 150, batch=64,
                 settings=_images(_DIGITS, {"name": "resnet", "depth": 50, "width": 8})),
}  # fmt: skip


MORE: dict[str, Callable[[Task, int], Problem]] = {}
"""What makes tasks of other modules ready, by their kind."""


@functools.lru_cache(maxsize=8)
def _image_data(
    items: tuple[tuple[str, Any], ...], halved: bool, turned: bool, label_noise: float, noise_seed: int
) -> Any:
    noise: dict[str, Any] = {"label_noise": label_noise, "noise_seed": noise_seed} if label_noise else {}
    data = load_data(DataConfig(**dict(items), **noise))
    images: dict[str, Any] = {
        name: data.normalise(getattr(data, name)) for name in ("train_x", "val_x", "test_x")
    }
    if halved:
        images = {name: avg_pool2d(x, 2) for name, x in images.items()}
    if turned:
        images = {name: torch.rot90(x, 1, (2, 3)).contiguous() for name, x in images.items()}
    return replace(data, **images)


@functools.lru_cache(maxsize=2)
def _text(context: int) -> Any:
    return load_text(TextConfig(context=context, max_bytes=1_000_000))


def prepare(task: Task, *, label_noise: float = 0.0, seed: int = 0) -> Problem:
    """The task with a fresh net from torch's present random state.

    Args:
        task: One of :data:`TASKS`.
        label_noise: Share of random training labels.
        seed: Seed of the label noise, and of the quadratic's samples.
    """
    if label_noise and task.kind != "images":
        raise ValueError(f"label_noise {label_noise} needs labels; {task.title} has none")
    if task.kind in MORE:
        return MORE[task.kind](task, seed)
    makers: dict[str, Callable[[], Problem]] = {
        "images": lambda: _image_problem(task, label_noise, seed),
        "text": lambda: _text_problem(task),
        "quadratic": lambda: _quadratic_problem(task, seed),
    }
    return makers[task.kind]()


def _image_problem(task: Task, label_noise: float, seed: int) -> Problem:
    settings = task.settings
    items = tuple(settings["data"].items())
    halved, turned = settings.get("halved", False), settings.get("turned", False)
    data = _image_data(items, halved, turned, label_noise, seed if label_noise else 0)
    model = build_model(ModelConfig(**settings["model"]), tuple(data.train_x.shape[1:]), data.num_classes)
    if "change" in settings:
        CHANGES[settings["change"]](model, settings["model"])

    def loss_fn(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    def score(net: nn.Module) -> dict[str, float]:
        found = {}
        for split in ("val", "test"):
            x, y = getattr(data, f"{split}_x")[:HELD_OUT], getattr(data, f"{split}_y")[:HELD_OUT]
            out = net(x)
            found[f"{split}_loss"] = float(F.cross_entropy(out, y))
            found[f"{split}_acc"] = 100.0 * float((out.argmax(1) == y).float().mean())
        return found

    return Problem(model, [data.train_x, data.train_y], loss_fn, score, math.log(data.num_classes))


def _text_problem(task: Task) -> Problem:
    s = task.settings
    text = _text(s["context"])
    shape = {name: s[name] for name in ("width", "depth", "heads")}
    model = TransformerConfig(**shape).build(text.vocabulary, s["context"])

    def loss_fn(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]).flatten(0, 1), batch[1].flatten())

    def score(net: nn.Module) -> dict[str, float]:
        found = {}
        for split in ("val", "test"):
            x, y = (part[:512] for part in text.windows(split))
            out = net(x)
            found[f"{split}_loss"] = float(F.cross_entropy(out.flatten(0, 1), y.flatten()))
            found[f"{split}_acc"] = 100.0 * float((out.argmax(-1) == y).float().mean())
        return found

    return Problem(model, list(text.windows("train")), loss_fn, score, math.log(text.vocabulary))


class _Position(nn.Module):
    """Weights as a matrix, so that a relative step has a tensor to be relative to."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start)

    def forward(self) -> Tensor:
        return self.w.flatten()


def _quadratic_problem(task: Task, seed: int) -> Problem:
    """0.5 sum_i h_i (w_i - t_i)^2 with t a sample: Hessian diag(h), gradient covariance noise^2 diag(h)^2."""
    s = task.settings
    d = s["dimension"]
    h = torch.logspace(0, -math.log10(s["condition"]), d)
    generator = torch.Generator().manual_seed(seed)
    targets = s["noise"] * torch.randn(task.steps * task.batch, d, generator=generator)
    model = _Position(10.0 * torch.randn(10, d // 10))

    def loss_fn(net: nn.Module, batch: Any) -> Tensor:
        found: Tensor = 0.5 * ((net() - batch[0]) ** 2 @ h).mean()
        return found

    def score(net: nn.Module) -> dict[str, float]:
        excess = 0.5 * float((net() ** 2) @ h)
        return {"val_loss": excess, "test_loss": excess}  # the known excess over the optimum, not a sample

    trivial = 0.5 * float(100.0 * h.sum())
    return Problem(model, [targets], loss_fn, score, trivial)
