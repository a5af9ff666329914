"""A tiny training run on made data; everything in it can be compared bit for bit."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.context.rng import load_rng_state, rng_state
from optland.optim import SAM
from optland.pilot.decision import Decision
from optland.pilot.pilot import Pilot

__all__ = ["KINDS", "TinyRun", "bits_of", "differences", "through_a_file"]

BATCH, SAMPLES = 32, 4096

Batch = tuple[Tensor, Tensor]


def _cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Groups with and without decay, in another order than the model's."""
    params = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
        {"params": [p for p in params if p.ndim >= 2]},
    ]
    return torch.optim.AdamW(groups, lr=0.01)


KINDS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "sam": lambda model: SAM(_sgd(model), rho=0.05, model=model),
}
"""Optimizers of the runs, by name."""


class _Loader:
    """Batches made from their number, so that a resumed run goes on anywhere; their size can be turned."""

    def __init__(self) -> None:
        self.number, self.batch_size, self.num_samples = 0, BATCH, SAMPLES

    def set_batch_size(self, size: int) -> None:
        self.batch_size = size

    def __iter__(self) -> Iterator[Batch]:
        while True:
            generator = torch.Generator().manual_seed(self.number)
            self.number += 1
            x = torch.randn(self.batch_size, 6, generator=generator)
            yield x, (x[:, :3] + 0.5 * x[:, 3:]).argmax(1)


class TinyRun:
    """A small classifier with running statistics and dropout.

    Args:
        kind: Its optimizer, a key of :data:`KINDS`.
        policies: Of its pilot; None runs without one.
        updates: Its length.
        **options: Of the pilot.

    Attributes:
        trained: Gradient evaluations of its updates: samples times backward passes.
        looked: Those of the loss function that the pilot has, at least: a third for a call.
    """

    def __init__(
        self, kind: str, *, policies: Sequence[Any] | None = None, updates: int = 40, **options: Any
    ) -> None:
        torch.manual_seed(0)
        self.updates, self.trained, self.looked = updates, 0.0, 0.0
        self.model = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)
        )
        self.optimizers = [KINDS[kind](self.model)]
        self.loader, self.losses = _Loader(), list[float]()
        self._pilot: Pilot | None = None
        batches: Iterable[Batch] = self.loader
        if policies is not None:
            turns = [name for p in policies for name in getattr(p, "turns", ())]
            by_samples = "batch_size" in turns or "noise_batch" in policies
            length: Any = {"total_samples": 4 * updates * BATCH} if by_samples else {"total_steps": updates}
            self._pilot = Pilot(
                self.optimizers[0], self.model, self._seen, policies=policies, dataset_size=SAMPLES, **length, **options
            )  # fmt: skip
            if by_samples and not self.pilot.host.can_turn("batch_size"):
                batches = self.pilot.batches(self.loader)
        self._batches = iter(batches)

    @property
    def pilot(self) -> Pilot:
        """Its pilot."""
        assert self._pilot is not None
        return self._pilot

    @property
    def decisions(self) -> list[Decision]:
        """What was decided."""
        return list(self.pilot.decisions)

    def _seen(self, model: nn.Module, batch: Batch) -> Tensor:
        self.looked += len(batch[0]) / 3
        return _cross_entropy(model, batch)

    def update(self) -> None:
        """One update."""
        batch = next(self._batches)
        (optimizer,) = self.optimizers

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = _cross_entropy(self.model, batch)
            loss.backward()
            self.trained += len(batch[0])
            return loss

        loss: Any = optimizer.step(closure)  # type: ignore[arg-type]
        self.losses.append(float(loss.detach()))
        if self._pilot is not None:
            self._pilot.after_step(batch, loss)

    def train(self, until: int | None = None) -> TinyRun:
        """Go on to an update, or to the end.

        Args:
            until: Number of updates, from the start of the run.
        """
        while len(self.losses) < (self.updates if until is None else until):
            self.update()
        return self

    def bits(self) -> dict[str, Any]:
        """Everything that looking may not change."""
        return bits_of(self.model, self.optimizers) | {"losses": list(self.losses)}

    def saved(self) -> bytes:
        """A checkpoint."""
        file = io.BytesIO()
        loader = [self.loader.number, self.loader.batch_size]
        kept = self.bits() | {"pilot": self.pilot.state_dict(), "loader": loader, "trained": self.trained}
        torch.save(kept, file)
        return file.getvalue()

    def load(self, saved: bytes) -> TinyRun:
        """Go on from a checkpoint, in a run made anew.

        Args:
            saved: What :meth:`saved` gave.
        """
        kept = torch.load(io.BytesIO(saved), weights_only=True)
        self.model.load_state_dict(kept["model"])
        for optimizer, state in zip(self.optimizers, kept["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.loader.number, self.loader.batch_size = kept["loader"]
        self.losses, self.trained = kept["losses"], kept["trained"]
        self.pilot.load_state_dict(kept["pilot"])
        load_rng_state(kept["rng"])
        return self


def bits_of(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """Weights, buffers, gradients, modes, optimizer state and random state, as copies.

    Args:
        model: Its weights, buffers, gradients and modes.
        optimizers: Their state.
    """
    return {
        "model": copy.deepcopy(model.state_dict()),
        "grad": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "training": [m.training for m in model.modules()],
        "optimizers": [copy.deepcopy(o.state_dict()) for o in optimizers],
        "rng": rng_state(),
    }


def through_a_file(state: Any) -> Any:
    """A state as a checkpoint gives it back.

    Args:
        state: What ``weights_only`` loading allows: tensors, numbers, words, lists, tuples and dictionaries.

    Raises:
        UnpicklingError: There is something else in it.
    """
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Where two nested values are not equal bit for bit; a NaN equals a NaN.

    Args:
        a: Dictionaries, lists, tuples, dataclasses, tensors and plain values, nested in any way.
        b: Likewise.
        at: Where they stand in a larger one, for the words.

    Returns:
        A line for each place; empty where they are equal.

    Example:
        >>> differences({"x": [1.0, 2.0]}, {"x": [1.0, 3.0]})
        ["['x'][1]: 2.0 and 3.0"]
    """
    if is_dataclass(a) and is_dataclass(b) and not isinstance(a, type) and not isinstance(b, type):
        return differences(asdict(a), asdict(b), at)
    if isinstance(a, dict) and isinstance(b, dict):
        alone = [f"{at}[{k!r}] is in one only" for k in a.keys() ^ b.keys()]
        return alone + [x for k in a.keys() & b.keys() for x in differences(a[k], b[k], f"{at}[{k!r}]")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{at} has {len(a)} entries and {len(b)}"]
        return [x for i, (p, q) in enumerate(zip(a, b, strict=True)) for x in differences(p, q, f"{at}[{i}]")]
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        equal = a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
    else:
        equal = type(a) is type(b) and bool(a == b or (a != a and b != b))
    return [] if equal else [f"{at}: {str(a)[:60]} and {str(b)[:60]}"]
