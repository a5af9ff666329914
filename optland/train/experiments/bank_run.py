"""What decides a run of the bank, in words that a file can keep, and the data that it is trained and measured on."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.optim.cards import CARDS
from optland.train.data import DataConfig, load_data
from optland.train.data.text import TextConfig, load_text
from optland.train.loops.schedule import ScheduleName, check_schedule
from optland.train.models import ModelConfig, build_model
from optland.train.models.transformer import TransformerConfig
from optland.train.runs.settings import OptimizerConfig

__all__ = ["BankRun", "Splits", "cross_entropy", "load_splits"]

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class BankRun:
    """One run: everything that its numbers follow from.

    Attributes:
        budget: Gradient evaluations of the whole run, one per sample (per window of a text) and pass. Methods that
            take two passes get half of the steps.
        seed: Seed of the initial weights, of the order of the data and of a method's own random numbers.
        batch_size: Samples per step.
        schedule: Shape of the learning rate over the run, with the warm-up of
            :mod:`optland.train.loops.schedule`.
        data: Images; ``text`` takes their place.
        net: Net for images.
        text: Text; null for images.
        transformer: Net for text.
        halved: Whether images are averaged over 2 x 2 pixels, which leaves a quarter of the cost.
        turned: Whether images are turned by 90 degrees, and signals mirrored: another task of the same kind.
        optimizer: Optimizer with its rates.
        method: Name of an optimizer in the caller's own table, made instead of what ``optimizer.name`` says; empty
            for none.
        strength: The number that such an optimizer takes, a radius or the size of its noise.
        passes: Gradient evaluations per sample and step, on average. Null takes the method's declared one; a gate and a
            method of the caller's own have to be told.
        clip: Largest norm of the gradient; null for none.
        averages: Decays of running averages of the weights, each measured beside the weights.

    Raises:
        ValueError: A value that cannot be.

    Example:
        >>> from dataclasses import replace
        >>> run = BankRun(budget=1000, optimizer=OptimizerConfig("sam", lr=0.1, rho=0.05))
        >>> run.steps(num_samples=100), run.key == replace(run, seed=1).key
        (10, False)
    """

    budget: int
    seed: int = 0
    batch_size: int = 64
    schedule: ScheduleName = "cosine"
    data: DataConfig = field(default_factory=DataConfig)
    net: ModelConfig = field(default_factory=ModelConfig)
    text: TextConfig | None = None
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    halved: bool = False
    turned: bool = False
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig("sgd"))
    method: str = ""
    strength: float | None = None
    passes: float | None = None
    clip: float | None = None
    averages: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("budget", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.passes is not None and not self.passes >= 1:
            raise ValueError(f"passes: {self.passes} per step are too few; use 1, or 2 for SAM")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip: {self.clip} must be above 0, for example 1.0")
        if self.text is not None and (self.halved or self.turned):
            raise ValueError("halved, turned: a text has no pixels; leave both out")
        if self.data.augment != "none":
            raise ValueError(f"data.augment: {self.data.augment} is not done in runs of the bank; use none")
        check_schedule(self.schedule)
        untold = self.method or "gate" in self.optimizer.options
        if self.passes is None and untold:
            what = f"method: {self.method!r}" if self.method else f"gate: {self.optimizer.options['gate']!r}"
            raise ValueError(
                f"passes: the cost per step of {what} is not known here; give it, for example 1.2"
            )

    @property
    def cost(self) -> float:
        """Gradient evaluations per sample and step.

        One for a base; 2 for SAM; by the method's card. A gate is not known to it, hence ``passes``.
        """
        if self.passes is not None:
            return self.passes
        return next((float(card.gradients) for card in CARDS if card.name == self.optimizer.name), 1.0)

    @property
    def samples(self) -> int:
        """Samples of all batches, repeats counted: the budget over the passes."""
        return max(self.batch_size, round(self.budget / self.cost))

    def steps(self, num_samples: int) -> int:
        """Updates of the run on a training set of this size, whose last batch of an epoch may be smaller.

        Args:
            num_samples: Size of the training set.

        Returns:
            Optimizer steps. A run may end inside an epoch; the rest of it is cut into batches as a whole epoch is.
        """
        whole, rest = divmod(self.samples, num_samples)
        return whole * -(-num_samples // self.batch_size) + -(-rest // self.batch_size)

    def given(self) -> dict[str, Any]:
        """All that is not at its default, nested: what a line of the bank says of the run.

        Returns:
            Plain values, for JSON. A part with a name, such as the net, has it beside what differs.
        """
        return _given(self)

    @property
    def key(self) -> str:
        """By which the run is found again: it depends on what is not at its default, and on nothing else.

        A setting that comes later, with a default that changes nothing, leaves the keys of older runs as they are.

        Returns:
            16 hexadecimal digits of the SHA-256 of :meth:`given`.
        """
        return hashlib.sha256(json.dumps(self.given(), sort_keys=True).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """The run in a few words, for the console."""
        o = self.optimizer
        data = f"{self.data.name} {self.net.name}" if self.text is None else "text transformer"
        radius = "" if (r := self.strength if self.method else o.rho) is None else f" {r:g}"
        return f"{data}, {self.method or o.name}{radius}, lr {o.lr:g}, seed {self.seed}, {self.budget:,} GE"


def _given(config: Any) -> dict[str, Any]:
    """What of a dataclass differs from the defaults of its class."""
    found: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            if inner := {"name": value.name, **_given(value)} if hasattr(value, "name") else _given(value):
                found[f.name] = inner
        elif value != f.default:
            found[f.name] = list(value) if isinstance(value, tuple) else value
    return {name: value for name, value in found.items() if value not in ({}, [])}


@dataclass(frozen=True)
class Splits:
    """The data of a run, ready for its net: pairs of inputs and targets.

    Inputs are float32 images ``(n, c, h, w)``, standardised, or int64 windows ``(n, context)``; targets int64 classes
    ``(n,)``, or the windows one token later. All lie on the CPU, and nothing is augmented.

    Attributes:
        train: All training data.
        val: Validation data; never trained on.
        test: Test data.
        num_outputs: Classes, or tokens of the vocabulary.
        noisy: Mask of the training samples whose label was redrawn; None for a text.
    """

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    num_outputs: int
    noisy: Tensor | None = None

    def batches(
        self, split: SplitName, batch_size: int = 256, num: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the first ``num`` samples of a split (all by default), in their order.

        Args:
            split: ``train``, ``val`` or ``test``.
            batch_size: Samples at a time; memory alone depends on it.
            num: Samples from the split's beginning; None for all.
        """
        x, y = (t[:num] for t in getattr(self, split))
        yield from zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)

    def build(self, run: BankRun) -> nn.Module:
        """A fresh net for these data from torch's present random state.

        Args:
            run: Says which net.

        Returns:
            The net on the CPU, in training mode.

        Raises:
            ConfigError: The images do not fit the net.
        """
        x = self.train[0]
        if run.text is not None:
            return run.transformer.build(self.num_outputs, x.shape[1])
        c, h, w = x.shape[1:]
        return build_model(run.net, (c, h, w), self.num_outputs)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of a batch of images, or of the tokens of windows of a text.

    Args:
        model: Maps inputs to logits ``(n, classes)``, or ``(n, context, vocabulary)``.
        batch: Inputs and targets.

    Returns:
        A scalar in nats.

    Example:
        >>> logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
        >>> round(float(cross_entropy(nn.Identity(), (logits, torch.tensor([0])))), 4)  # -log(0.5)
        0.6931
    """
    logits = model(batch[0])
    return F.cross_entropy(logits.flatten(0, -2), batch[1].flatten())


def load_splits(run: BankRun) -> Splits:
    """The data of a run; those of the last few are kept, since the next run mostly has the same.

    Args:
        run: Its ``data`` or ``text``, ``halved`` and ``turned`` decide.

    Returns:
        Shared by all runs on these data: its tensors must not be changed.

    Raises:
        UserError: The data are not there.
    """
    if run.text is not None:
        return _text(json.dumps(_given(run.text)))
    return _images(json.dumps(_given(run.data) | {"name": run.data.name}), run.halved, run.turned)


@functools.lru_cache(maxsize=3)
def _text(given: str) -> Splits:
    data = load_text(TextConfig(**json.loads(given)))
    return Splits(data.windows("train"), data.windows("val"), data.windows("test"), data.vocabulary)


@functools.lru_cache(maxsize=3)
def _images(given: str, halved: bool, turned: bool) -> Splits:
    data = load_data(DataConfig(**json.loads(given)))

    def ready(x: Tensor) -> Tensor:
        x = data.normalise(x)
        x = F.avg_pool2d(x, 2) if halved else x
        if not turned:
            return x
        return (x.flip(3) if x.shape[2] == 1 else torch.rot90(x, 1, (2, 3))).contiguous()

    parts = {
        name: (ready(getattr(data, f"{name}_x")), getattr(data, f"{name}_y"))
        for name in ("train", "val", "test")
    }
    return Splits(**parts, num_outputs=data.num_classes, noisy=data.noisy)
