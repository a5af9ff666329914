"""Tiny runs of every kind, and what is counted of them from outside: optimizers, forms of the loop, pilots.

Batches are made from their number, so that a resumed run goes on anywhere without a loader's state.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.context.rng import load_rng_state, rng_state
from optland.optim import MSAM, SAM, LookSAM
from optland.optim.gates import Every
from optland.optim.saddle import NegativeCurvature
from optland.pilot import Pilot
from optland.pilot.contract.tiny import bits_of, differences

__all__ = [
    "BATCH",
    "FORMS",
    "OPTIMIZERS",
    "Net",
    "Run",
    "batch_number",
    "can_run",
    "cross_entropy",
    "differences",
]

FORMS = ("plain", "accumulated", "scaled")
BATCH = 32
SAMPLES = 4096
"""Size of the made data set, as the pilot is told."""

Batch = tuple[Tensor, Tensor]


class Net(nn.Sequential):
    """With everything that looking could disturb: running statistics and dropout masks."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)
        )  # fmt: skip


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def batch_number(number: int, size: int = BATCH) -> Batch:
    """Three classes with one label in ten wrong; every seventh batch is smaller, as at the end of an epoch."""
    generator = torch.Generator().manual_seed(1000 + number)
    size = size - 3 if number % 7 == 6 else size
    x = torch.randn(size, 6, generator=generator)
    y = (x[:, :3] + 0.5 * x[:, 3:]).argmax(1)
    wrong = torch.rand(size, generator=generator) < 0.1
    return x, torch.where(wrong, (y + 1) % 3, y)


class Loader:
    """Batches by number, of a size that can be turned."""

    def __init__(self) -> None:
        self.number, self.batch_size, self.num_samples = 0, BATCH, SAMPLES

    def set_batch_size(self, size: int) -> None:
        self.batch_size = size

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.number += 1
            yield batch_number(self.number - 1, self.batch_size)


# ------------------------------------------------------------------ optimizers


def sgd(model: nn.Module) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def adamw(model: nn.Module) -> Any:
    """Decay and no decay, in another order than the model's."""
    params = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
            {"params": [p for p in params if p.ndim >= 2], "weight_decay": 0.1},
        ],
        lr=0.01,
    )


def muon(model: nn.Module) -> Any:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip(f"torch {torch.__version__} has no Muon")
    hidden = [p for p in model.parameters() if p.ndim == 2][1:]
    rest = [p for p in model.parameters() if all(p is not q for q in hidden)]
    return [torch.optim.Muon(hidden, lr=0.02), torch.optim.AdamW(rest, lr=0.01)]


OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "sgd": sgd,
    "adamw": adamw,
    "muon": muon,
    "sam": lambda m: SAM(sgd(m), rho=0.05, model=m),
    "sam_every": lambda m: SAM(sgd(m), rho=0.05, gate=Every(5), model=m),
    "looksam": lambda m: LookSAM(sgd(m), rho=0.05, k=4, model=m),
    "msam": lambda m: MSAM(sgd(m), rho=0.05, model=m),
    "negative_curvature": lambda m: NegativeCurvature(SAM(sgd(m), rho=0.05, model=m), model=m),
}


def can_run(optimizer: str, form: str) -> bool:
    """An optimizer that needs a closure has one form."""
    return form == "plain" or optimizer != "negative_curvature"


class Meter:
    """The pilot's loss function, with what its calls cost at least: a forward pass a third, a backward pass two."""

    def __init__(self) -> None:
        self.evaluations = 0.0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        count = len(batch[0])
        self.evaluations += count / 3
        loss = cross_entropy(model, batch)
        if loss.requires_grad:
            once: list[bool] = []

            def seen(gradient: Tensor) -> None:
                if not once:
                    once.append(True)
                    self.evaluations += 2 * count / 3

            loss.register_hook(seen)
        return loss


class Run:
    """One training run, an update at a time.

    Args:
        optimizer: A key of :data:`OPTIMIZERS`.
        form: One of :data:`FORMS`.
        policies: For the pilot; None runs without one.
        poisoned: Updates whose gradient gets an infinite entry, in the ``scaled`` form.
        updates: Length of the run.
        **options: Of the pilot.

    Attributes:
        trained: Samples times backward passes, counted here.
        losses: Of the updates.
        sizes: Of their batches.
    """

    def __init__(
        self,
        optimizer: str,
        form: str = "plain",
        *,
        policies: Sequence[Any] | None = None,
        updates: int = 60,
        poisoned: Sequence[int] = (7, 8, 30),
        net: Callable[[], nn.Module] = Net,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.form, self.updates, self.poisoned = form, updates, poisoned
        self.model = net()
        self.kind = optimizer
        self.optimizers = self._optimizers()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=16.0, enabled=form == "scaled")
        self.loader = Loader()
        self.trained, self.losses, self.sizes = 0.0, list[float](), list[int]()
        self.meter = Meter()
        self.pilot: Pilot | None = None
        if policies is not None:
            turns_batch = any(p == "noise_batch" or "batch_size" in getattr(p, "turns", ()) for p in policies)
            length = {"total_samples": 2 * updates * BATCH} if turns_batch else {"total_steps": updates}
            self.pilot = Pilot(
                self.optimizers,
                self.model,
                self.meter,
                policies=policies,
                dataset_size=SAMPLES,
                **length,
                **options,
            )
        self.batches = iter(self.loader if self.pilot is None else self.pilot.batches(self.loader))

    def _optimizers(self) -> list[Any]:
        made = OPTIMIZERS[self.kind](self.model)
        return made if isinstance(made, list) else [made]

    def gradient(self, pieces: Sequence[Batch]) -> Tensor:
        """Backward passes over the pieces of a batch; returns the mean loss of all of them."""
        total = sum(len(x) for x, _ in pieces)
        mean = torch.zeros(())
        for piece in pieces:
            loss = cross_entropy(self.model, piece) * (len(piece[0]) / total)
            self.scaler.scale(loss).backward()
            self.trained += len(piece[0])
            mean = mean + loss.detach()
        return mean

    def update(self) -> None:
        """One update, in the form of this run."""
        batch = next(self.batches)
        self.sizes.append(len(batch[0]))
        half = len(batch[0]) // 2
        pieces = [batch]
        if self.form == "accumulated":
            pieces = [(batch[0][:half], batch[1][:half]), (batch[0][half:], batch[1][half:])]
        loss = self._closure(pieces) if self._takes_closure else self._phases(pieces)
        self.losses.append(float(loss))
        if self.pilot is not None:
            self.pilot.after_step(pieces if len(pieces) > 1 else batch, loss)

    @property
    def _takes_closure(self) -> bool:
        return self.form == "plain" and len(self.optimizers) == 1

    def _closure(self, pieces: Sequence[Batch]) -> Tensor:
        (optimizer,) = self.optimizers

        def closure() -> Tensor:
            optimizer.zero_grad()
            return self.gradient(pieces)

        loss = optimizer.step(closure)
        assert isinstance(loss, Tensor)
        return loss

    def _phases(self, pieces: Sequence[Batch]) -> Tensor:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        (first, *_) = self.optimizers
        loss = torch.zeros(())
        if hasattr(first, "passes"):
            for number in first.passes(
                loss_scale=self.scaler.get_scale() if self.scaler.is_enabled() else None
            ):
                found = self.gradient(pieces)
                loss = found if number == 0 else loss
            self._poison()
            if self.scaler.is_enabled():
                first.restore()
        else:
            loss = self.gradient(pieces)
            self._poison()
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        return loss

    def _poison(self) -> None:
        if self.form == "scaled" and len(self.losses) + 1 in self.poisoned:
            for optimizer in self.optimizers:
                p = optimizer.param_groups[0]["params"][0]
                p.grad.view(-1)[0] = torch.inf

    def train(self, until: int | None = None) -> Run:
        """Go on to an update, or to the end."""
        while len(self.losses) < (self.updates if until is None else until):
            self.update()
        return self

    # -------------------------------------------------------------- what is compared

    def bits(self) -> dict[str, Any]:
        """Everything that looking may not change."""
        return bits_of(self.model, self.optimizers) | {
            "requires_grad": [p.requires_grad for p in self.model.parameters()],
            "scaler": self.scaler.state_dict(),
            "losses": list(self.losses),
            "batch": self.loader.batch_size,
        }

    def saved(self) -> bytes:
        """A checkpoint."""
        assert self.pilot is not None
        kept = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "rng": rng_state(),
            "pilot": self.pilot.state_dict(),
            "losses": self.losses,
            "trained": self.trained,
            "loader": (self.loader.number, self.loader.batch_size),
        }
        file = io.BytesIO()
        torch.save(kept, file)
        return file.getvalue()

    def load(self, saved: bytes) -> Run:
        """Go on from a checkpoint, in a run made anew."""
        assert self.pilot is not None
        kept = torch.load(io.BytesIO(saved), weights_only=True)
        self.model.load_state_dict(kept["model"])
        for optimizer, state in zip(self.optimizers, kept["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.scaler.load_state_dict(kept["scaler"])
        self.losses, self.trained = kept["losses"], kept["trained"]
        self.loader.number, size = kept["loader"]
        self.loader.batch_size = size
        self.pilot.load_state_dict(kept["pilot"])
        load_rng_state(kept["rng"])
        return self
