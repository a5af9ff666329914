"""What carries decisions out: the learning rate of one step, the length of the step just made, a rewind.

The learning rate is set in the optimizer's pre-hook and the user's value put back in its post-hook, because many
schedulers read ``lr`` back and would otherwise compound it.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optland import vectors

__all__ = ["GradientCoherence", "HeldLearningRates", "SnapshotRing", "StepRecord", "relative_speed"]


class HeldLearningRates:
    """The user's learning rates, held while a step runs at others."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._saved: list[float | Tensor] | None = None

    @property
    def user(self) -> float:
        """The user's largest learning rate over the groups, as scheduled now."""
        if self._saved is not None:
            return max(float(lr) for lr in self._saved)
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def shape(self) -> float | None:
        """Scheduled over peak learning rate where a scheduler is attached; None without one."""
        groups = self.optimizer.param_groups
        if not any("initial_lr" in group for group in groups):
            return None
        peak = max(float(group.get("max_lr", group.get("initial_lr", group["lr"]))) for group in groups)
        return self.user / peak if peak > 0 else 0.0

    def apply(self, lr: float) -> None:
        """Give the groups ``lr`` times their share of the user's largest rate."""
        largest = self.user
        self._saved = [
            group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"]
            for group in self.optimizer.param_groups
        ]
        for group in self.optimizer.param_groups:
            share = float(group["lr"]) / largest if largest > 0 else 1.0
            _write_lr(group, lr * share)

    def release(self) -> None:
        """Put the user's learning rates back; does nothing when none are held."""
        if self._saved is None:
            return
        for group, lr in zip(self.optimizer.param_groups, self._saved, strict=True):
            _write_lr(group, lr)
        self._saved = None


def _write_lr(group: dict[str, Any], lr: float | Tensor) -> None:
    """A tensor learning rate (capturable optimizers) is filled in place: replacing it would recompile."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


class StepRecord:
    """Weights before a step, and the realised update after it."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params = params
        self.before: list[Tensor] | None = None
        self._buffer: list[Tensor] | None = None

    def start(self) -> None:
        """Copy the weights (into memory kept from the last step)."""
        if self._buffer is None:
            self._buffer = vectors.clone(self.params)
        else:
            vectors.copy_(self._buffer, self.params)
        self.before = self._buffer

    def update(self) -> list[Tensor]:
        """The realised update w_after - w_before."""
        if self.before is None:
            raise RuntimeError("no step has been started")
        return vectors.subtract([p.detach() for p in self.params], self.before)

    @torch.no_grad()
    def rescale(self, update: list[Tensor], factor: float) -> None:
        """Make the step ``factor`` times as long: w <- w_before + factor (w_after - w_before).

        Exact for every optimizer whose move is linear in the learning rate (SGD, Adam, AdamW, SAM on them). A
        factor of 0 takes the step back bit for bit, also when the update holds NaN.
        """
        if self.before is None:
            raise RuntimeError("no step has been started")
        vectors.copy_(self.params, self.before)
        if factor != 0.0:
            vectors.axpy_(factor, update, self.params)

    def drop(self) -> None:
        """Forget the step; the memory is kept for the next."""
        self.before = None


_SECOND_MOMENTS = ("exp_avg_sq", "square_avg")


class GradientCoherence:
    """The cosine of a step's gradient and the one before it; keeps one copy of the gradients.

    It reads what the step left in ``.grad``: under SAM the gradient at the perturbed weights. A change of the loss
    scale does not matter, since a cosine has no length. Where the optimizer's state has a second moment v (Adam and
    its kin), both gradients are divided by sqrt(v) + 1e-8: the metric in which it makes its steps.
    """

    def __init__(self, params: list[Tensor], optimizer: torch.optim.Optimizer | None = None) -> None:
        self.params = params
        self.optimizer = optimizer
        self.last: list[Tensor | None] | None = None

    @torch.no_grad()
    def measure(self) -> float:
        """The cosine over the tensors that both steps have a dense gradient for; NaN where there is none."""
        now = [p.grad if p.grad is not None and not p.grad.is_sparse else None for p in self.params]
        before = self.last or [None] * len(now)
        both = [
            i for i, (a, b) in enumerate(zip(now, before, strict=True)) if a is not None and b is not None
        ]
        cosine = math.nan
        if both:
            x, y = (self._scaled(both, gradients) for gradients in (now, before))
            product, x_norm, y_norm = torch.stack(
                [vectors.dot(x, y), vectors.norm(x), vectors.norm(y)]
            ).tolist()
            cosine = product / (x_norm * y_norm) if x_norm * y_norm > 0 else math.nan
        self.last = [None if g is None else g.detach().clone() for g in now]
        return cosine

    def _scaled(self, both: list[int], gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """The gradients at these places, over sqrt(v) where there is one."""
        found = []
        for i in both:
            g = gradients[i]
            assert g is not None
            state = {} if self.optimizer is None else self.optimizer.state.get(self.params[i], {})
            v = next((state[name] for name in _SECOND_MOMENTS if name in state), None)
            found.append(g if v is None or v.shape != g.shape else g / (v.sqrt() + 1e-8))
        return found

    def forget(self) -> None:
        """After a rewind the next gradient belongs to other weights."""
        self.last = None


@torch.no_grad()
def relative_speed(update: list[Tensor], weights: list[Tensor]) -> tuple[float, float]:
    r"""Root-sum-square over tensors of |d_l| / max(|w_l|, phi_l), and |d| / |w| over all tensors.

    Only tensors with two or more dimensions count: biases and normalisation gains start at 0 or 1 and say nothing
    about the scale of the net. The floor phi_l = 0.1 rms(w) sqrt(n_l), rms over all elements of those tensors, keeps a
    tensor that starts at zero from stopping the run, also where half of them do (low-rank factors): a median over
    tensors would be that of the ones that have just begun to move.
    """
    pairs = [(d, w) for d, w in zip(update, weights, strict=True) if w.ndim >= 2]
    pairs = pairs or list(zip(update, weights, strict=True))
    d_norms = torch.stack([vectors.norm([d]) for d, _ in pairs])
    w_norms = torch.stack([vectors.norm([w]) for _, w in pairs])
    sizes = torch.tensor([float(w.numel()) for _, w in pairs], device=w_norms.device, dtype=w_norms.dtype)
    rms = torch.linalg.vector_norm(w_norms) / sizes.sum().sqrt()
    floor = 0.1 * torch.where(rms > 0, rms, torch.ones_like(rms)) * sizes.sqrt()
    speed = torch.linalg.vector_norm(d_norms / torch.maximum(w_norms, floor))
    overall = torch.linalg.vector_norm(d_norms) / torch.linalg.vector_norm(w_norms).clamp_min(1e-30)
    both = torch.stack([speed, overall]).tolist()  # one transfer to the host for both numbers
    return both[0], both[1]


class SnapshotRing:
    """The first and the last few snapshots of weights, buffers and optimizer state.

    The first one is kept for ever: a short ring can hold only damaged snapshots, and then halving the pace cannot
    help. A rewind restores the weights and the optimizer, not the data: training goes on with the next batch.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int = 3) -> None:
        self.model = model
        self.optimizer = optimizer
        self.first: dict[str, Any] | None = None
        self.recent: deque[dict[str, Any]] = deque(maxlen=keep)

    def take(self, step: int, mark: dict[str, float]) -> None:
        """Store the present state with the guard's loss record that belongs to it."""
        snapshot = {
            "step": step,
            "mark": dict(mark),
            "model": {k: v.detach().clone() for k, v in self.model.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()["state"]),
        }
        if self.first is None:
            self.first = snapshot
        else:
            self.recent.append(snapshot)

    def drop_since(self, step: int) -> None:
        """Drop the snapshots taken after ``step``, when the net was already broken; the first one stays."""
        while self.recent and self.recent[-1]["step"] > step:
            self.recent.pop()

    def rewind(self) -> dict[str, Any]:
        """Drop the newest snapshot if an older one is left, restore the newest remaining one and return it.

        The learning rates and other options in the parameter groups stay as they are: they belong to the schedule,
        and the schedule does not go back.
        """
        if len(self.recent) > 0:
            self.recent.pop()
        snapshot = self.recent[-1] if self.recent else self.first
        if snapshot is None:
            raise RuntimeError("there is no snapshot to rewind to")
        self.model.load_state_dict(snapshot["model"])
        state = self.optimizer.state_dict()
        state["state"] = copy.deepcopy(snapshot["optimizer"])
        self.optimizer.load_state_dict(state)
        return snapshot

    def state_dict(self) -> dict[str, Any]:
        """The snapshots themselves: after a resume a rewind must find the same ones."""
        return {"first": self.first, "recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.first = state["first"]
        self.recent.clear()
        self.recent.extend(state["recent"])
