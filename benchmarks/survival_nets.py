"""The five nets of ``benchmarks/survival.py``: data, size, length, rates that are tried, and the second task of each.

The budget is that of the tuned base; SAM makes half of its steps. Sizes are such that all runs of the table take at
most three and a half hours on one core. The loss at which a second task ends was set on seed 0 of the base.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from survival_measures import SecondTask
from torch import nn
from torch.optim import Optimizer

from optland.train import DataConfig, ModelConfig, OptimizerConfig, TextConfig, TransformerConfig, load_text
from optland.train.experiments.bank_run import BankRun, Splits, load_splits

__all__ = ["NETS", "Net"]


@dataclass(frozen=True)
class Net:
    """One net of the table.

    Attributes:
        title: As people read it.
        run: The tuned base; its rate is replaced by those of ``lrs``.
        lrs: Rates that are tried, from low to high.
        second: Its second task.
    """

    title: str
    run: BankRun
    lrs: tuple[float, ...]
    second: SecondTask


SGD = OptimizerConfig("sgd", weight_decay=5e-4)
ADAMW = OptimizerConfig("adamw", weight_decay=0.05)
SGD_LRS, ADAMW_LRS = (0.02, 0.05, 0.1, 0.2, 0.4), (0.001, 0.002, 0.004, 0.008)
FASHION = DataConfig("fashion_mnist", subset=10_000)


def sgd(lr: float) -> Callable[[nn.Module], Optimizer]:
    return lambda model: torch.optim.SGD(model.parameters(), lr, momentum=0.9)


def adamw(lr: float) -> Callable[[nn.Module], Optimizer]:
    return lambda model: torch.optim.AdamW(model.parameters(), lr, weight_decay=0.0)


def turned(run: BankRun) -> Callable[[], Splits]:
    """The same images turned by 90 degrees, signals mirrored."""
    return lambda: load_splits(replace(run, turned=True))


@functools.lru_cache(maxsize=1)
def headers() -> Splits:
    """C++, in bytes: some of the headers that come with PyTorch."""
    folder = Path(torch.__file__).parent / "include" / "ATen" / "core"
    data = load_text(replace(TEXT, paths=[str(folder / "*.h")]))
    return Splits(data.windows("train"), data.windows("val"), data.windows("test"), data.vocabulary)


TEXT = TextConfig(tokens="bytes", context=64, max_bytes=2_000_000)
DIGITS = BankRun(48_000, net=ModelConfig("cnn", width=16), optimizer=SGD)
MNIST1D = BankRun(144_000, data=DataConfig("mnist1d"), net=ModelConfig("cnn", width=16), optimizer=SGD)
RESNET = BankRun(
    160_000, data=FASHION, halved=True, net=ModelConfig("resnet", depth=8, width=8), optimizer=SGD
)
VIT = BankRun(120_000, data=FASHION, halved=True, net=ModelConfig("vit", depth=2, width=32), optimizer=ADAMW)
GPT = BankRun(
    24_000,
    batch_size=8,
    text=TEXT,
    transformer=TransformerConfig(depth=4, width=64, heads=4),
    optimizer=ADAMW,
)

NETS = {
    "digits": Net("digits, CNN", DIGITS, SGD_LRS, SecondTask(turned(DIGITS), sgd(0.01), 0.3)),
    "mnist1d": Net("MNIST-1D, CNN", MNIST1D, SGD_LRS, SecondTask(turned(MNIST1D), sgd(0.01), 0.6)),
    "resnet": Net(
        "Fashion 10k at 14 x 14, ResNet-8", RESNET, SGD_LRS, SecondTask(turned(RESNET), sgd(0.01), 0.7)
    ),
    "vit": Net("Fashion 10k at 14 x 14, ViT", VIT, ADAMW_LRS, SecondTask(turned(VIT), adamw(0.0005), 1.1)),
    "gpt": Net("Python sources, GPT", GPT, ADAMW_LRS, SecondTask(headers, adamw(0.0005), 2.4, batch_size=8)),
}
