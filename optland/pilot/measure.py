"""What is measured of an update on the device, without waiting for it: norms, relative length, coherence.

Everything here stays on the device of the weights; the pilot brings all scalars of an update to the host at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optland import vectors

__all__ = ["Coherence", "WeightsBefore", "norms", "relative_speed"]

_LOW = (torch.float16, torch.bfloat16)
_PLAIN = (Tensor, torch.nn.Parameter)


@vectors.no_graph
def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of each tensor, in float32 or better, as one vector on the device of the first.

    Sparse gradients give that of their entries, sharded ones that of the whole tensor.
    """
    if not tensors:
        return torch.zeros(0)
    first = tensors[0]
    if all(
        type(t) in _PLAIN
        and t.layout is torch.strided
        and t.dtype == first.dtype
        and t.device == first.device
        for t in tensors
    ):
        options = {"dtype": torch.float32} if first.dtype in _LOW else {}
        return torch.stack(torch._foreach_norm(list(tensors), 2, **options))
    found = [vectors.norm(vectors.dense([t])).to(device=first.device, dtype=torch.float32) for t in tensors]
    return torch.stack(found)


@vectors.no_graph
def relative_speed(update: Tensor, weights: Tensor, sizes: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    r"""Root-sum-square over tensors of |d_l| / max(|w_l|, phi_l), and |d| / |w| over all tensors.

    Only tensors with two or more dimensions count: biases and normalisation gains start at 0 or 1 and say nothing
    about the scale of the net. The floor phi_l = 0.1 rms(w) sqrt(n_l), rms over all elements of those tensors, keeps a
    tensor that starts at zero from stopping the run, also where half of them do (low-rank factors): a median over
    tensors would be that of the ones that have just begun to move.

    Args:
        update: |d_l| of each tensor.
        weights: |w_l| of each tensor.
        sizes: Square root of its number of elements.
        matrices: Indices of the tensors that count.
    """
    d, w, root = update[matrices], weights[matrices], sizes[matrices]
    rms = torch.linalg.vector_norm(w) / torch.linalg.vector_norm(root)
    floor = 0.1 * torch.where(rms > 0, rms, 1.0) * root
    speed = torch.linalg.vector_norm(d / torch.maximum(w, floor))
    return speed, torch.linalg.vector_norm(update) / torch.linalg.vector_norm(weights).clamp_min(1e-30)


class WeightsBefore:
    """A copy of the trained weights as they were before an update, in memory that is kept from one to the next."""

    def __init__(self) -> None:
        self.params: list[Tensor] = []
        self._copies: dict[Tensor, Tensor] = {}
        self._memory: dict[Tensor, Tensor] = {}

    @vectors.no_graph
    def take(self, params: Sequence[Tensor]) -> None:
        """Copy these weights; may be called for one optimizer after another."""
        known = [p for p in params if p in self._memory]
        if known:
            torch._foreach_copy_([self._memory[p] for p in known], known)
        for p in params:
            if p not in self._memory:
                self._memory[p] = p.detach().clone()
            self._copies[p] = self._memory[p]
        self.params = [*self.params, *params]

    def __bool__(self) -> bool:
        return bool(self.params)

    def of(self, p: Tensor) -> Tensor | None:
        """The copy of one parameter; None where it was not trained in this update."""
        return self._copies.get(p)

    @property
    def copies(self) -> list[Tensor]:
        """The copies, in the order of ``params``."""
        return [self._copies[p] for p in self.params]

    def forget(self) -> None:
        """The update is over; memory of what is no longer trained is given back."""
        if len(self._memory) > len(self._copies):
            self._memory = dict(self._copies)
        self.params, self._copies = [], {}

    def release(self) -> None:
        """Give all memory back."""
        self.params, self._copies, self._memory = [], {}, {}


_SECOND_MOMENTS = ("exp_avg_sq", "square_avg")

DENSE, EVERY = 64, 8
"""The coherence is measured at each of the first updates, then at every eighth: it enters a mean over the run."""


class Coherence:
    """The cosine of an update's gradient and the one before it; keeps one copy of the gradients.

    It reads what the step left in ``.grad``: under SAM the gradient at the perturbed weights. A change of the loss
    scale does not matter, since a cosine has no length. Where the optimizer's state has a second moment v (Adam and
    its kin), both gradients are divided by sqrt(v) + 1e-8: the metric in which it makes its steps.
    """

    def __init__(self) -> None:
        self.last: dict[Tensor, Tensor] = {}

    @staticmethod
    def due(step: int) -> bool:
        """Whether the cosine of this update's gradient with that of the one before is measured."""
        return step <= DENSE or step % EVERY == 0

    @vectors.no_graph
    def observe(self, step: int, params: Sequence[Tensor], optimizers: Sequence[Optimizer]) -> Tensor | None:
        """The cosine over the tensors that both updates have a dense gradient for; None where it is not due."""
        now = {p: p.grad for p in params if p.grad is not None and p.grad.layout is torch.strided}
        cosine = None
        if self.due(step) and (both := [p for p in now if p in self.last and self.last[p].shape == p.shape]):
            x, y = [now[p] for p in both], [self.last[p] for p in both]
            if all((v := _second_moment(p, optimizers)) is not None and v.shape == p.shape for p in both):
                scale = torch._foreach_sqrt([_second_moment(p, optimizers) for p in both])
                torch._foreach_add_(scale, 1e-8)
                x, y = list(torch._foreach_div(x, scale)), list(torch._foreach_div(y, scale))
            product = torch.stack([vectors.dot(x, y).float()])
            lengths = torch.stack([norms(x).norm(), norms(y).norm()]).to(product.device)
            cosine = product.squeeze() / (lengths[0] * lengths[1])
        if self.due(step + 1):
            self._keep(now)
        else:
            self.last = {}
        return cosine

    def _keep(self, now: dict[Tensor, Tensor]) -> None:
        old = {
            p: m
            for p, m in self.last.items()
            if p in now and m.shape == now[p].shape and m.dtype == now[p].dtype
        }
        if old:
            torch._foreach_copy_(list(old.values()), [now[p] for p in old])
        self.last = old | {p: g.detach().clone() for p, g in now.items() if p not in old}

    def forget(self) -> None:
        """After a rewind the next gradient belongs to other weights."""
        self.last = {}


def _second_moment(p: Tensor, optimizers: Sequence[Optimizer]) -> Any:
    for optimizer in optimizers:
        entry = optimizer.state.get(p)
        if entry:
            return next((entry[name] for name in _SECOND_MOMENTS if name in entry), None)
    return None
