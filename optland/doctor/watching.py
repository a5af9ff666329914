"""A light watch on a training loop: what no loss curve shows, from hooks on model and optimizer, without another pass.

    with watch(model, optimizer, loader, scheduler=scheduler) as doctor:
        for batch in loader:
            ...                                  # the loop as it is
            doctor.after_step(batch, loss)       # once per update
    print(doctor.diagnosis)                      # at most three findings, each with its fix

It reads what is there anyway: gradients, weights, modes, the outputs and their gradient, the batch, the loader's
sampler, the scheduler's count. Weights, optimizer state, random state, buffers and gradients are bit-identical to a run
without it, and nothing it does can end the run: a look that fails is one warning, and the watch is off.

Cost: on the CPU the largest input of every update; of the first ten updates and of every 25th, norms, a comparison of
rows of the gradients, and a look at the outputs.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from optland.context.modules import BATCH_NORMS
from optland.doctor.diagnose import Diagnosis, diagnose
from optland.doctor.histories import Histories
from optland.doctor.looks import (
    Dead,
    Labels,
    facts_of_inputs,
    facts_of_weights,
    gradient_matrices,
    is_sequential,
    norms_of,
    replicas_apart,
    symmetric,
)
from optland.doctor.order import Order
from optland.doctor.outputs import Behind, behind_classes, behind_numbers, scores_of

__all__ = ["Watch", "watch"]

FIRST, EVERY = 10, 25
"""Updates that are looked at: all of the first ones, then one in so many."""

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_MODES = (*BATCH_NORMS, *_DROPOUTS)
_LOSS_SCALE = 1024.0
"""Powers of two from here on are the loss scale of mixed precision, and no wrong reduction."""


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    loader: Any = None,
    *,
    scheduler: Any = None,
    total_steps: int | None = None,
    replicas: bool = False,
) -> Watch:
    """Watch a training loop for faults that no loss curve shows, and for those that one does.

    Args:
        model: The module that is trained, wrapped as the loop calls it.
        optimizer: Its optimizer, or several that step once each per update.
        loader: What gives the batches; its sampler and its length are read.
        scheduler: The learning rate's schedule; how often it is stepped is counted.
        total_steps: Updates of the whole run, where known.
        replicas: Whether several processes hold copies of one model, each with a watch: their weights are then compared
            at the updates that are looked at, which takes one small exchange that all of them have to make.

    Returns:
        A context manager: ``after_step(batch, loss)`` once per update, ``diagnosis`` at any time. Its hooks are gone
        at the end of the block.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> x, y = torch.randn(32, 4), torch.arange(32) % 3
        >>> with watch(model, optimizer) as doctor:
        ...     for _ in range(12):  # the gradients are never zeroed
        ...         loss = nn.functional.cross_entropy(model(x), y)
        ...         loss.backward()
        ...         optimizer.step()
        ...         doctor.after_step((x, y), loss)
        >>> doctor.diagnosis.findings[0].title
        'gradients not zeroed'
    """
    return Watch(model, optimizer, loader, scheduler=scheduler, total_steps=total_steps, replicas=replicas)


class Watch:
    """What :func:`watch` returns; see there.

    Args:
        model: As for :func:`watch`, and so are the others.
        optimizer: Its optimizer, or several.
        loader: What gives the batches.
        scheduler: The learning rate's schedule.
        total_steps: Updates of the whole run.
        replicas: Whether weights are compared between processes; without a process group nothing is.

    Attributes:
        histories: What was seen.
        on: False while it is paused, and for good after a look that failed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        loader: Any = None,
        *,
        scheduler: Any = None,
        total_steps: int | None = None,
        replicas: bool = False,
    ) -> None:
        self.model = model
        self.optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        self.scheduler, self.loader = scheduler, loader
        self.histories = Histories()
        self.on = True
        self._replicas = replicas and dist.is_initialized() and dist.get_world_size() > 1
        self._labels, self._order, self._dead = Labels(), Order(), Dead()
        self._stepped = 0
        self._calls: list[tuple[Tensor, Tensor]] = []  # outputs and their gradients, of the present update
        self._clear: list[bool] = []
        self._eval_forward = False
        self._largest = 0.0
        self._looked: dict[str, float] | None = None
        self._scheduled_from: tuple[int, int] | None = None
        self._has_modes = any(isinstance(m, _MODES) for m in model.modules())
        self._counts = {"looked": 0, "kept": 0, "trained_in_eval": 0, "tested_in_train": 0, "tested": 0}
        self._facts_at_start(total_steps)
        self._handles = [model.register_forward_hook(_Hook(self), with_kwargs=True)]
        self._handles += [o.register_step_post_hook(self._step) for o in self.optimizers]

    def _facts_at_start(self, total_steps: int | None) -> None:
        facts, groups = self.histories.facts, [g for o in self.optimizers for g in o.param_groups]
        facts |= facts_of_weights(self.model, self._held())
        facts["optimizer"] = type(self.optimizers[0]).__name__
        facts["momentum"] = max(_momentum_of(g) for g in groups)
        facts["weight_decay"] = max(float(g.get("weight_decay", 0.0)) for g in groups)
        facts["has_modes"] = self._has_modes
        facts["dropout"] = max((m.p for m in self.model.modules() if isinstance(m, _DROPOUTS)), default=0.0)
        facts["sequential"] = is_sequential(self.loader)
        if total_steps is not None:
            facts["total_steps"] = total_steps
        if hasattr(self.loader, "__len__"):
            facts["batches_per_epoch"] = len(self.loader)
        length = getattr(self.scheduler, "T_max", getattr(self.scheduler, "total_steps", None))
        if isinstance(length, int):
            facts["schedule_steps"] = length

    def _held(self) -> list[Tensor]:
        return [p for o in self.optimizers for g in o.param_groups for p in g["params"]]

    # ------------------------------------------------------------------ the loop's calls

    def after_step(self, batch: Any = None, loss: float | Tensor | None = None, **values: float) -> None:
        """Take in an update: after ``optimizer.step()``, with its batch and its loss.

        Args:
            batch: Of the update; a list of micro-batches where several were accumulated.
            loss: Its loss.
            **values: Further values under their metric keys, with ``__`` for the slash: ``train__acc=91.0``.
        """
        if self.on:
            self._safely(lambda: self._take_in(batch, loss, values))

    def evaluated(self, **values: float) -> None:
        """Take in an evaluation: ``evaluated(val__loss=0.3, val__acc=91.0)``, accuracies in percent."""
        self.histories.put(self.step, {name.replace("__", "/"): value for name, value in values.items()})

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look at nothing inside: forward passes that are not the run's own."""
        on, self.on = self.on, False
        try:
            yield
        finally:
            self.on = on

    @property
    def step(self) -> int:
        """Updates seen."""
        return self._stepped // len(self.optimizers)

    @property
    def diagnosis(self) -> Diagnosis:
        """What the rules find in what was seen so far."""
        return diagnose(self.histories)

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._calls = [], []

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return str(self.diagnosis)

    # ------------------------------------------------------------------ hooks

    @property
    def _looking(self) -> bool:
        """Whether the update in progress is one that is looked at."""
        return self.step < FIRST or (self.step + 1) % EVERY == 0

    def _safely(self, look: Any) -> None:
        try:
            look()
        # Any failure at all, in whatever model: a look is no reason to stop training.
        except Exception as error:
            self.on = False
            message = (
                f"the doctor's watch failed and is off; training goes on: {type(error).__name__}: {error}"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=3)

    def _forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self.on:
            return
        if not torch.is_grad_enabled():
            self._counts["tested"] += 1
            self._counts["tested_in_train"] += bool(module.training and self._has_modes)
        else:
            self._eval_forward = not module.training
            self._safely(lambda: self._look_at_inputs([*args, *kwargs.values()]))
            if self._looking:
                self._safely(lambda: self._look_at_call([*args, *kwargs.values()], output))

    def _look_at_inputs(self, inputs: Sequence[Any]) -> None:
        """The largest input, on the CPU alone: on another device each look would wait for it."""
        x = inputs[0] if inputs else None
        if isinstance(x, Tensor) and x.is_floating_point() and x.device.type == "cpu" and x.numel():
            self._largest = max(self._largest, float(x.detach().abs().max()))

    def _look_at_call(self, inputs: Sequence[Any], output: Any) -> None:
        scores = scores_of(output)
        if scores is None:
            return
        scores.register_hook(lambda gradient: self._backward(scores.detach(), gradient))
        if self.step < 3 and inputs:
            self.histories.facts |= facts_of_inputs(inputs[0])

    def _backward(self, scores: Tensor, gradient: Tensor) -> None:
        """The backward pass begins: no gradient of it has reached the weights yet."""
        if self.on:
            self._calls.append((scores, gradient.detach()))
            sample = [p for o in self.optimizers for g in o.param_groups for p in g["params"][-1:]]
            self._clear.append(all(p.grad is None or not bool(p.grad.any()) for p in sample))

    @torch.no_grad()
    def _step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        looking = self.on and self._looking
        self._stepped += 1
        if self._stepped % len(self.optimizers) == 0 and looking:
            self._safely(self._look)

    def _look(self) -> None:
        """Gradients are still there, and nothing of the next update is."""
        counts = self._counts
        counts["looked"] += 1
        counts["trained_in_eval"] += bool(self._eval_forward and self._has_modes)
        counts["kept"] += bool(self._clear) and self.step > 1 and not any(self._clear)
        matrices = gradient_matrices(self.model)
        samples = sum(len(z) for z, _ in self._calls) or 1
        self._looked = norms_of(matrices) | self._dead.look(matrices, samples)
        dense = [p.grad for p in self._held() if p.grad is not None and p.grad.layout is torch.strided]
        if dense:
            self._looked["update/grad_norm"] = float(torch.stack(torch._foreach_norm(dense)).norm())
        if self.step in (FIRST // 2, FIRST, 2 * EVERY):
            self.histories.facts["symmetric"] = symmetric(matrices)
        if self._replicas:
            apart = replicas_apart(self.model)
            self.histories.facts["replicas_apart"] = max(apart, self.histories.fact("replicas_apart", 0.0))
        if self.step % EVERY == 0:  # layers may have been added, replaced or frozen since
            self.histories.facts |= facts_of_weights(self.model, self._held())

    # ------------------------------------------------------------------ what was seen

    @torch.no_grad()
    def _take_in(self, batch: Any, loss: float | Tensor | None, values: dict[str, float]) -> None:
        row = {name.replace("__", "/"): float(value) for name, value in values.items()}
        if self._largest > 0:
            row["data/input_max"], self._largest = self._largest, 0.0
        if loss is not None:
            row["train/loss"] = float(loss)
        if self._looked is not None:
            row = self._looked | row
            self._look_behind(batch)
        if self.step <= 4 * EVERY:
            self._labels.look(batch)
            self._order.look(batch)
        self.histories.put(self.step, row)
        self.histories.facts |= self._counts | self._schedule()
        if self.step <= 4 * EVERY and self.step % 5 == 0:
            self.histories.facts |= self._labels.facts() | self._order.facts()
        self._looked, self._calls, self._clear = None, [], []

    def _schedule(self) -> dict[str, float]:
        """Steps of the schedule per update, from its own count."""
        count = getattr(self.scheduler, "last_epoch", None)
        if not isinstance(count, int):
            return {}
        if self._scheduled_from is None:
            self._scheduled_from = self.step, count
        updates = self.step - self._scheduled_from[0]
        if updates < 1:
            return {}
        return {"scheduled_updates": updates, "scheduled": (count - self._scheduled_from[1]) / updates}

    def _look_behind(self, batch: Any) -> None:
        """The loss behind the outputs, from their gradient: how it was reduced, and whether a softmax came twice."""
        if not self._calls:
            return
        passes = max(1, round(getattr(self.optimizers[0], "last_evaluations", 1) or 1))
        per_pass = max(1, len(self._calls) // passes)
        found = [self._behind(i, batch) for i in range(per_pass)]
        known = [b for b in found if b is not None]
        if len(known) < len(found):
            return
        facts, share = self.histories.facts, sum(b.share for b in known)
        if _is_loss_scale(share, known[0].rows):
            return
        facts["twice"] = facts.get("twice", 0) + any(b.twice for b in known)
        facts["broadcast"] = facts.get("broadcast", 0) + any(b.broadcast for b in known)
        if (
            "loss_share" in facts
        ):  # how a loss is reduced stays; outputs that run away later say nothing of it
            return
        facts["calls"], facts["loss_share"], facts["rows"] = per_pass, share, sum(b.rows for b in known)
        facts["chance"] = known[0].chance

    def _behind(self, index: int, batch: Any) -> Behind | None:
        scores, gradient = self._calls[index]
        classes = behind_classes(scores, gradient)
        if classes is not None:
            return classes
        targets = _targets_of(batch, scores, index, sum(len(z) for z, _ in self._calls[:index]))
        return None if targets is None else behind_numbers(scores, gradient, targets)


class _Hook:
    """The hook on the model: it keeps nothing alive, and a model that is copied or saved takes an empty one along."""

    def __init__(self, watching: Watch | None = None) -> None:
        self._watching = None if watching is None else weakref.ref(watching)

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        watching = None if self._watching is None else self._watching()
        if watching is not None:
            watching._forward(module, args, kwargs, output)

    def __deepcopy__(self, memo: Any) -> _Hook:
        return _Hook()

    def __reduce__(self) -> Any:
        return _Hook, ()


def _momentum_of(group: dict[str, Any]) -> float:
    betas = group.get("betas")
    return float(betas[0]) if betas else float(group.get("momentum", 0.0) or 0.0)


def _is_loss_scale(share: float, rows: int) -> bool:
    mantissa = torch.frexp(torch.tensor(share, dtype=torch.float64)).mantissa
    return share >= _LOSS_SCALE and abs(float(mantissa) - 0.5) < 1e-3 and abs(share / rows - 1) > 1e-3


def _targets_of(batch: Any, outputs: Tensor, index: int, before: int) -> Tensor | None:
    """The last tensor of real numbers in a batch that has as many as the outputs: of a micro-batch, its part."""
    if not isinstance(batch, (list, tuple)) or not batch:
        return None
    if isinstance(batch[0], (list, tuple)):
        return _targets_of(batch[index], outputs, 0, 0) if index < len(batch) else None
    parts = [
        t[before : before + len(outputs)]
        for t in batch[1:]
        if isinstance(t, Tensor) and t.is_floating_point()
    ]
    fitting = [t for t in parts if t.numel() == outputs.numel()]
    return fitting[-1] if fitting else None
