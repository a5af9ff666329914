"""One run of ``benchmarks/doctor.py``: train with a fault, under a watch and a pilot that only look."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from doctor_faults import Spec
from doctor_tasks import Task, build, changed, task_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from optland.doctor import watch
from optland.doctor.watching import Watch
from optland.log import NullLogger
from optland.optim import SAM
from optland.pilot import Pilot

__all__ = ["Run", "run"]

CHECKS, BUDGET = 10, 0.2
"""Evaluations of a run; share of the cost that its probes may take."""


class _Rows(NullLogger):
    """Keeps the rows that a pilot logs."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, row: Any) -> None:
        self.rows.append(dict(row))


class Run:
    """A training run with the fault of its spec.

    The loop is a plain one. Faults of the program are where they would be: in the loop, the loader, the loss.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.task = changed(task_of_cell(spec), spec)
        self.model = build(spec, self.task)
        self.loader = self._loader()
        self.optimizer = self._optimizer()
        self.scheduler = CosineAnnealingLR(self._base, spec.steps) if spec.schedule == "cosine" else None
        self.log = _Rows()

    # ------------------------------------------------------------------ what the loop is made of

    def fault(self, kind: str, way: int | None = None) -> bool:
        return self.spec.kind == kind and not self.spec.mended and (way is None or self.spec.way == way)

    def loss_fn(self, model: nn.Module, batch: Any) -> Any:
        x, y = batch
        z = model(x)
        if self.task.classes == 0:
            return F.mse_loss(z, y)
        if self.fault("softmax_twice", 1):
            z = z.softmax(-1)
        return F.cross_entropy(z.flatten(0, -2), y.flatten())

    def trained_loss(self, model: nn.Module, batch: Any) -> Any:
        """The loss that is trained on, with the faults of its reduction."""
        if not self.fault("reduction"):
            return self.loss_fn(model, batch)
        if self.task.classes == 0 and self.spec.way == 0:
            return ((model(batch[0]) - batch[1].flatten()) ** 2).mean()  # (B, 1) against (B,)
        loss, rows = self.loss_fn(model, batch), batch[1].numel()
        return loss * rows if self.spec.way == 0 else loss / rows

    def _loader(self) -> Any:
        task, spec = self.task, self.spec
        size = spec.batch // spec.accumulation if self.fault("accumulation", 1) else spec.batch
        made = torch.Generator().manual_seed(spec.seed)
        if self.fault("unshuffled"):
            # By label; of a text as a file of sorted lines is, and numbers by their size.
            order = (task.x[:, 0] if task.text else task.y.flatten()).argsort(stable=True)
            data = TensorDataset(task.x[order], task.y[order])
            if spec.way:
                return [(data.tensors[0][i : i + size], data.tensors[1][i : i + size])
                        for i in range(0, len(order), size)]  # fmt: skip
            return DataLoader(data, size)
        size = min(size, len(task.x))
        last = len(task.x) % size == 1 and size > 1  # BatchNorm takes no single sample
        return DataLoader(TensorDataset(task.x, task.y), size, shuffle=True, generator=made, drop_last=last)

    def _optimizer(self) -> Any:
        spec, model = self.spec, self.model
        held = list(model.parameters())
        names = [n for n, _ in model.named_parameters()]
        if self.fault("unheld"):
            held = [
                p
                for n, p in model.named_parameters()
                if (not n.startswith("head") if spec.way == 0 else "0" not in n)
            ]
            held = held if len(held) < len(names) else held[2:]
        if self.fault("stale", 0):
            held = list(copy.deepcopy(model).parameters())
        held = [p for p in held if p.requires_grad]
        if spec.optimizer == "adamw":
            make: Any = lambda p: torch.optim.AdamW(  # noqa: E731
                p, spec.lr, betas=(spec.momentum, 0.999), weight_decay=spec.weight_decay
            )
        else:
            make = lambda p: torch.optim.SGD(  # noqa: E731
                p, spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay
            )
        self._base = make(held)
        if self.fault("stale", 1):
            head: Any = model.head
            model.head = nn.Linear(head.in_features, head.out_features)
        if self.fault("softmax_twice", 0):
            head = model.head
            model.head = nn.Sequential(head, nn.Softmax(-1))
        return SAM(self._base, rho=spec.rho, model=model) if spec.rho else self._base

    # ------------------------------------------------------------------ the loop

    def _batches(self) -> Iterator[Any]:
        while True:
            yield from self.loader

    def _updates(self) -> Iterator[list[Any]]:
        """The micro-batches of each update."""
        spec, stream = self.spec, self._batches()
        made = torch.Generator().manual_seed(spec.seed + 1)
        bad = set((30 + torch.randperm(max(1, spec.steps - 60), generator=made)[: spec.corrupt]).tolist())
        for step in range(1, spec.steps + 1):
            if self.fault("accumulation", 1):
                yield list(itertools.islice(stream, spec.accumulation))
                continue
            x, y = next(stream)
            if step in bad and not spec.mended:
                x = x * 1000 if spec.way else x + 50 * torch.randn(x.shape, generator=made)
            parts = max(1, min(spec.accumulation, len(x) // 2))
            yield list(zip(x.chunk(parts), y.chunk(parts), strict=True))

    def _backward(self, parts: list[Any]) -> Tensor:
        divisor = 1 if self.fault("accumulation") else len(parts)
        total = torch.zeros(())
        for part in parts:
            loss = self.trained_loss(self.model, part) / divisor
            loss.backward()
            total = total + loss.detach() * divisor / len(parts)
        return total

    def update(self, parts: list[Any]) -> Any:
        def closure() -> Tensor:
            if not self.fault("not_zeroed"):
                self.optimizer.zero_grad()
            elif self.spec.way:
                copy.copy(self.model)  # somebody else's gradients are zeroed
                for p in copy.deepcopy(self.model).parameters():
                    p.grad = None
            return self._backward(parts)

        if self.spec.rho:
            loss = self.optimizer.step(closure)
        else:
            loss = closure()
            if self.spec.clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.clip)
            self.optimizer.step()
        if self.scheduler is not None and not self.fault("scheduler", 1):
            self.scheduler.step()
            if self.fault("scheduler", 0):
                self.scheduler.step()
        return loss

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Losses and accuracies of both splits, in the mode that the loop evaluates in."""
        model, found = self.model, {}
        if not self.fault("modes", 1):
            model.eval()
        for split, x, y in (("train", self.task.x, self.task.y), ("val", self.task.val_x, self.task.val_y)):
            x, y = x[:400], y[:400]
            z = model(x)
            if self.task.classes == 0:
                found[f"{split}/eval"] = float(F.mse_loss(z, y))
                continue
            if self.fault("softmax_twice", 1):
                z = z.softmax(-1)
            found[f"{split}/eval"] = float(F.cross_entropy(z.flatten(0, -2), y.flatten()))
            found[f"{split}/acc"] = 100 * float((z.argmax(-1) == y).double().mean())
        if not self.fault("modes", 0):
            model.train()
        return found

    def true_loss(self) -> float:
        """The mean loss of the whole training set at the end, in eval mode, without the fault of the loss."""
        self.model.eval()
        with torch.no_grad():
            z = self.model(self.task.x)
            if self.task.classes == 0:
                return float(F.mse_loss(z, self.task.y))
            return float(F.cross_entropy(z.flatten(0, -2), self.task.y.flatten()))


def task_of_cell(spec: Spec) -> Task:
    from doctor_faults import CELLS

    return task_of(CELLS[spec.cell]["task"])


def run(
    spec: Spec, listen: Callable[[Watch, int], None] | None = None, *, pilot: bool = True
) -> dict[str, Any]:
    """Train, and return what was seen: the state of the histories, the final loss, the time."""
    torch.manual_seed(spec.seed)
    begun = time.perf_counter()
    made = Run(spec)
    every = max(1, spec.steps // CHECKS)
    probes = _pilot(made, spec) if pilot else None
    with watch(
        made.model, made.optimizer, made.loader, scheduler=made.scheduler, total_steps=spec.steps
    ) as doctor:
        doctor.histories.facts |= {"batch": spec.batch, "lr": spec.lr, "rho": spec.rho}
        died = None
        for step, parts in enumerate(made._updates(), start=1):
            loss = made.update(parts)
            doctor.after_step(parts, loss)
            if probes is not None:
                with doctor.paused():
                    died = _probe(probes, parts, loss)
                if died:
                    probes.close()
                    probes = None
                else:
                    seen, made.log.rows = made.log.rows, []
                    for row in seen:
                        doctor.histories.put(step, {k: v for k, v in row.items() if k.split("/")[0] in _KEPT})
            if step % every == 0:
                doctor.evaluated(**{k.replace("/", "__"): v for k, v in made.evaluate().items()})
            if listen is not None:
                listen(doctor, step)
            if step > 60 and not math.isfinite(float(loss)):
                break
        failed = not doctor.on
    if probes is not None:
        probes.close()
    final = made.true_loss()
    return {
        "final": final if math.isfinite(final) else None, "seconds": time.perf_counter() - begun,
        "histories": doctor.histories.state_dict(), "off": failed, "pilot": died,
    }  # fmt: skip


_KEPT = ("edge", "noise", "curv", "update", "sam", "lr")


def _pilot(made: Run, spec: Spec) -> Pilot | None:
    """A pilot that looks; None where it refuses the optimizer, which is no finding of the doctor's."""
    try:
        return Pilot(made.optimizer, made.model, made.trained_loss, policies=[], mode="monitor", budget=BUDGET,
                     total_steps=spec.steps, log=made.log, log_every=5)  # fmt: skip
    except ValueError:
        return None


def _probe(pilot: Pilot, parts: list[Any], loss: Tensor) -> str | None:
    try:
        pilot.after_step(parts if len(parts) > 1 else parts[0], loss)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return None
