"""Small training runs with everything in reach: any form of loop, scripted trouble, a way through a checkpoint."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.context.rng import load_rng_state, rng_state
from optland.optim.two_pass import TwoPass
from optland.pilot import Pilot
from optland.train import BatchLoader

__all__ = [
    "Loop", "Recorder", "adamw", "assert_same", "classify", "data", "fed", "mlp", "relative_length", "same", "sgd",
    "through_a_file",
]  # fmt: skip

Optimizers = Any
"""What a loop trains with: one optimizer, or a list of them."""


class Recorder:
    """A logger that keeps what it gets."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []

    def log(self, row: Any) -> None:
        self.rows.append(dict(row))

    def event(self, event: Any) -> None:
        self.events.append(dict(event))

    def image(self, name: str, path: Any) -> None: ...

    def table(self, name: str, columns: Any, rows: Any) -> None: ...

    def finish(self, summary: Any, exit_code: int = 0) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def fed(pilot: Pilot, optimizer: Any, model: nn.Module, loss_fn: Any, batches: Iterator[Tensor]) -> Pilot:
    """The pilot after an update of the plain loop on each batch."""
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        pilot.after_step(batch, loss)
    return pilot


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.01, weight_decay=0.1)


def mlp(width: int = 8, dropout: float = 0.2) -> nn.Module:
    """With running statistics and dropout, which looking could disturb."""
    return nn.Sequential(
        nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 3)
    )


def data(n: int = 128) -> list[Tensor]:
    """Three classes that a linear map tells apart, with noise."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=draw)
    y = (x @ torch.randn(6, 3, generator=draw) + 0.5 * torch.randn(n, 3, generator=draw)).argmax(1)
    return [x, y]


def classify(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Loop:
    """A training loop under a pilot.

    Args:
        make: Makes the optimizer from the parameters, or several from the model where ``several``.
        model: Makes the model.
        tensors: The data.
        loss_fn: The loss.
        batch: Samples of a batch.
        epochs: Passes over the data.
        form: ``closure``, ``phases`` or ``scaler`` (phases under a GradScaler that is made to overflow by a bad batch).
        bad: Numbers of the calls of ``step``, from 1, whose batch holds a NaN.
        without: Numbers of the calls that are left out, though their batch is drawn.
        told: Losses that are told to the pilot in place of the real ones, by the number of the call.
        schedule: Makes a scheduler from the optimizer.
        seed: Of weights, loader and pilot.
        several: Whether ``make`` takes the model and gives a list.
        **pilot: Options of the pilot.

    Attributes:
        calls: Calls of ``step`` so far.
        applied: Learning rate inside each of them.
        losses: Their losses.
        norms: Norms of the gradients that each has left.
        evaluations: How often each has evaluated the loss with gradients.
        sizes: Samples of each.
    """

    def __init__(
        self,
        make: Callable[[Any], Any] = sgd,
        *,
        model: Callable[[], nn.Module] = mlp,
        tensors: list[Tensor] | None = None,
        loss_fn: Callable[[nn.Module, Any], Tensor] = classify,
        batch: int = 16,
        epochs: int = 5,
        form: str = "closure",
        bad: Collection[int] = (),
        without: Collection[int] = (),
        told: Mapping[int, float] | None = None,
        schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
        seed: int = 0,
        several: bool = False,
        **pilot: Any,
    ) -> None:
        torch.manual_seed(seed)
        self.model, self.loss_fn, self.form = model(), loss_fn, form
        made = make(self.model if several else self.model.parameters())
        self.optimizers: list[Any] = made if isinstance(made, list) else [made]
        self.optimizer = self.optimizers[0]
        self.loader = BatchLoader(tensors or data(), batch, epochs=epochs, seed=seed)
        self.scheduler = None if schedule is None else schedule(self.optimizer)
        self.log = Recorder()
        options = {"policies": [], "budget": 0.0, "log": self.log, "log_every": 1, "seed": seed}
        self.pilot = Pilot(made, self.model, loss_fn, **(options | pilot))
        self.bad, self.without, self.told = set(bad), set(without), dict(told or {})
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=form == "scaler")
        self.calls = 0
        self.applied: list[float] = []
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.evaluations: list[int] = []
        self.sizes: list[int] = []
        self._batches: Iterator[Any] | None = None
        self._note_rates(innermost(self.optimizer))

    def _note_rates(self, base: Any) -> None:
        """PyTorch's optimizers read a group once they have its gradients: the rate is then that of the update."""
        read = getattr(base, "_init_group", None)

        def noted(group: Any, *rest: Any) -> Any:
            self._inside = float(base.param_groups[0]["lr"])
            return read(group, *rest)

        if read is not None:
            base._init_group = noted

    # ------------------------------------------------------------------ the loop

    def run(self, calls: int | None = None) -> Loop:
        """Go on until so many calls have been made, or to the end."""
        if self._batches is None:
            self._batches = self.pilot.batches(self.loader)
        while calls is None or self.calls < calls:
            batch = next(self._batches, None)
            if batch is None:
                break
            self.calls += 1
            if self.calls in self.without:
                continue
            if self.calls in self.bad:
                batch = spoilt(batch)
            loss = self._step(batch)
            self.sizes.append(len(batch[0]))
            self.losses.append(float(loss.detach()))
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            self.norms.append(float(torch.cat([g.flatten() for g in grads]).norm()) if grads else 0.0)
            if self.scheduler is not None:
                self.scheduler.step()
            self.pilot.after_step(batch, self.told.get(self.calls, loss))
        return self

    def _step(self, batch: Any) -> Tensor:
        step = {"closure": self._by_closure, "phases": self._by_phases, "scaler": self._by_scaler}[self.form]
        self._evaluated, self._inside = 0, math.nan
        loss = step(batch)
        self.applied.append(self._inside)
        self.evaluations.append(self._evaluated)
        return loss

    def _loss(self, batch: Any) -> Tensor:
        self._evaluated += 1
        return self.loss_fn(self.model, batch)

    def _by_closure(self, batch: Any) -> Tensor:
        def closure() -> Tensor:
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss = self._loss(batch)
            loss.backward()
            return loss

        losses = [optimizer.step(closure) for optimizer in self.optimizers]
        return losses[0]

    def _by_phases(self, batch: Any) -> Tensor:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        first = None
        passes = self.optimizer.passes(loss_scale=1.0) if isinstance(self.optimizer, TwoPass) else [0]
        for _ in passes:
            loss = self._loss(batch)
            loss.backward()
            first = loss if first is None else first
        for optimizer in self.optimizers:
            optimizer.step()
        assert first is not None
        return first

    def _by_scaler(self, batch: Any) -> Tensor:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = self._loss(batch)
        self.scaler.scale(loss).backward()
        if isinstance(self.optimizer, TwoPass):
            self.optimizer.perturb(loss_scale=self.scaler.get_scale())
            self.scaler.scale(self._loss(batch)).backward()
            self.optimizer.restore()
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        return loss

    # ------------------------------------------------------------------ what there is

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def bits(self) -> dict[str, Any]:
        """Everything that looking may not change."""
        return {
            "model": copy.deepcopy(self.model.state_dict()),
            "optimizers": copy.deepcopy([o.state_dict() for o in self.optimizers]),
            "grad": [None if p.grad is None else p.grad.clone() for p in self.model.parameters()],
            "modes": [m.training for m in self.model.modules()],
            "rng": rng_state(),
            "losses": list(self.losses),
            "loader": self.loader.state_dict(),
        }

    def trained(self) -> dict[str, Any]:
        """Weights, buffers and the optimizers' state, where the number of batches seen may differ."""
        model = {k: v for k, v in self.model.state_dict().items() if not k.endswith("num_batches_tracked")}
        return copy.deepcopy({"model": model, "state": [o.state_dict()["state"] for o in self.optimizers]})

    def decided(self, what: str) -> list[Any]:
        """Decisions about one thing."""
        return [d for d in self.pilot.decisions if d.actuator == what]

    # ------------------------------------------------------------------ through a checkpoint

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, as it comes out of a file."""
        parts: dict[str, Any] = {
            "model": self.model,
            "loader": self.loader,
            "pilot": self.pilot,
            "scaler": self.scaler,
        }
        if self.scheduler is not None:
            parts["scheduler"] = self.scheduler
        held = {name: part.state_dict() for name, part in parts.items()}
        optimizers = [o.state_dict() for o in self.optimizers]
        return through_a_file({**held, "optimizers": optimizers, "rng": rng_state(), "calls": self.calls})

    def load(self, state: dict[str, Any]) -> Loop:
        """Go on from there."""
        parts: dict[str, Any] = {
            "model": self.model,
            "loader": self.loader,
            "pilot": self.pilot,
            "scaler": self.scaler,
        }
        if self.scheduler is not None:
            parts["scheduler"] = self.scheduler
        for optimizer, held in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(held)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        self.calls = state["calls"]
        load_rng_state(state["rng"])
        return self


def through_a_file(state: Any) -> Any:
    """Saved, and loaded by the reader that runs no code."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def spoilt(batch: Any) -> Any:
    """The batch with a NaN in its first sample."""
    x = batch[0].clone()
    x[0] = math.nan
    return [x, *batch[1:]] if isinstance(batch, list) else (x, *batch[1:])


def innermost(optimizer: Any) -> Any:
    while hasattr(optimizer, "base"):
        optimizer = optimizer.base
    return optimizer


def relative_length(before: list[Tensor], after: list[Tensor]) -> float:
    """Root-sum-square over the matrices of |d| / |w|, with a tenth of the root-mean-square weight as the least |w|."""
    pairs = [(w.double(), v.double()) for w, v in zip(before, after, strict=True) if w.ndim >= 2]
    mean = math.sqrt(sum(float(w.square().sum()) for w, _ in pairs) / sum(w.numel() for w, _ in pairs))
    return math.hypot(
        *(float((v - w).norm()) / max(float(w.norm()), 0.1 * mean * math.sqrt(w.numel())) for w, v in pairs)
    )


def same(a: Any, b: Any) -> bool:
    """Whether two nested values are equal bit for bit; NaN equals NaN."""
    return not list(_apart(a, b, ""))


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Two nested values are equal bit for bit; NaN equals NaN."""
    assert not (found := list(_apart(a, b, where))), found[:5]


def _apart(a: Any, b: Any, where: str) -> Iterator[str]:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)):
            yield where
    elif isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            yield f"{where}: keys {a.keys() ^ b.keys()}"
        for key in a.keys() & b.keys():
            yield from _apart(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            yield f"{where}: {len(a)} and {len(b)}"
        for k, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from _apart(x, y, f"{where}[{k}]")
    elif not (a == b or (a != a and b != b)):
        yield f"{where}: {a!r} and {b!r}"
