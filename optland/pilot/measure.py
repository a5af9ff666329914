r"""Measurements of an update on the device, without waiting for it: norms, relative length, coherence.

.. math:: R = \sqrt{\sum_l \bigl(\|d_l\| / \max(\|w_l\|, \phi_l)\bigr)^2}, \qquad
          \gamma_k = \frac{\langle g_k, g_{k-1} \rangle}{\|g_k\| \, \|g_{k-1}\|}

R is the relative length of an update d (:func:`relative_speed`), gamma the coherence of two gradients in a row
(:class:`Coherence`).

Everything here stays on the device of the weights; the pilot brings all scalars of an update to the host at once. On
the CPU there is no device to wait for, and what is known as a number there is handed on as one: a dozen operations on
tensors of one entry take longer than the rest of a small net's update.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optland import vectors
from optland.flat import lie_together
from optland.pilot.rows import Moves, Norms

__all__ = [
    "Coherence",
    "Layout",
    "Number",
    "Sizes",
    "WeightsBefore",
    "norms",
    "relative_speed",
    "relative_speed_here",
]

_LOW = (torch.float16, torch.bfloat16)
_PLAIN = (Tensor, torch.nn.Parameter)

FLOOR = 0.1
"""Share of the root-mean-square weight that counts as the size of a tensor with smaller weights."""


Number = Tensor | float


class Layout:
    """Facts about a list of parameters, computed once for as long as the list stays the same.

    Args:
        params: The parameters.
        names: Their names, where somebody asks for them.

    Attributes:
        matrices: Indices of those with two or more dimensions; of all where there are none. Not of empty ones.
        roots: Square root of the number of elements of each.
        root: Square root of the number of elements of all matrices.
        on_host: Whether all of them live on the CPU.
        simple: Whether they share type, device and layout, so that one call serves them all.
    """

    def __init__(self, params: Sequence[Tensor], names: Sequence[str] = ()) -> None:
        self.params = list(params)
        self.names = list(names)
        full = [i for i, p in enumerate(params) if p.numel()]
        self.matrices = [i for i in full if params[i].ndim >= 2] or full
        self.roots = [math.sqrt(p.numel()) for p in params]
        self.root = math.hypot(*(self.roots[i] for i in self.matrices))
        self.on_host = all(p.device.type == "cpu" for p in params)
        self.simple = _alike(params)
        self._on_device: tuple[Tensor, Tensor] | None = None

    def fits(self, params: Sequence[Tensor]) -> bool:
        """Whether it is that of these parameters."""
        return len(params) == len(self.params) and all(map(operator.is_, params, self.params))

    def on(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """``matrices`` and ``roots`` as tensors beside another one."""
        if self._on_device is None or self._on_device[0].device != like.device:
            matrices = torch.tensor(self.matrices, device=like.device)
            self._on_device = matrices, torch.tensor(self.roots, device=like.device, dtype=like.dtype)
        return self._on_device


def _alike(tensors: Sequence[Tensor]) -> bool:
    first = tensors[0] if tensors else None
    return first is not None and all(
        type(t) in _PLAIN
        and t.layout is torch.strided
        and t.dtype == first.dtype
        and t.device == first.device
        for t in tensors
    )


@vectors.no_graph
def norms(tensors: Sequence[Tensor], *, simple: bool = False) -> Tensor:
    """The Euclidean norm of each tensor, in float32 or better, as one vector on the device of the first.

    Sparse gradients give that of their entries, sharded ones that of the whole tensor.

    Args:
        tensors: The tensors.
        simple: They are known to share type, device and layout.

    Returns:
        A vector of as many numbers as tensors; empty for none.

    Example:
        >>> norms([torch.tensor([3.0, 4.0]), torch.ones(2, 2)])
        tensor([5., 2.])
    """
    if not tensors:
        return torch.zeros(0)
    first = tensors[0]
    if simple or _alike(tensors):
        options = {"dtype": torch.float32} if first.dtype in _LOW else {}
        return torch.stack(torch._foreach_norm(list(tensors), 2, **options))
    found = [vectors.norm(vectors.dense([t])).to(device=first.device, dtype=torch.float32) for t in tensors]
    return torch.stack(found)


class Sizes:
    """The norm of each gradient of an update: numbers where they are on the CPU, else tensors that wait there."""

    def __init__(self) -> None:
        self._norms = Norms([])

    @vectors.no_graph
    def __call__(self, gradients: list[Tensor]) -> Tensor | list[float]:
        """The norms, in the order of the gradients."""
        if not lie_together(gradients):
            return norms(gradients)
        if not self._norms.fits(gradients):
            self._norms = Norms(gradients)
        return self._norms(gradients)


@vectors.no_graph
def relative_speed(found: Tensor, layout: Layout) -> tuple[Tensor | float, Tensor | float]:
    r"""Root-sum-square over tensors of |d_l| / max(|w_l|, phi_l), and |d| / |w| over all tensors.

    Only tensors with two or more dimensions count: biases and normalisation gains start at 0 or 1 and say nothing
    about the scale of the net. The floor phi_l = 0.1 rms(w) sqrt(n_l), rms over all elements of those tensors, keeps a
    tensor that starts at zero from stopping the run, also where half of them do (low-rank factors): a median over
    tensors would be that of the ones that have just begun to move.

    Args:
        found: |d_l| of each tensor, then |w_l| of each.
        layout: Of the tensors.

    Returns:
        Numbers where the weights live on the CPU, where a dozen small operations would take longer than the rest;
        else tensors beside them, and nothing waits.
    """
    if layout.on_host:
        listed = found.tolist()
        return relative_speed_here(listed[: len(layout.roots)], listed[len(layout.roots) :], layout)
    update, weights = found[: len(layout.roots)], found[len(layout.roots) :]
    matrices, roots = layout.on(weights)
    d, w, root = update[matrices], weights[matrices], roots[matrices]
    rms = torch.linalg.vector_norm(w) / torch.linalg.vector_norm(root)
    floor = FLOOR * torch.where(rms > 0, rms, 1.0) * root
    speed = torch.linalg.vector_norm(d / torch.maximum(w, floor))
    return speed, torch.linalg.vector_norm(update) / torch.linalg.vector_norm(weights).clamp_min(1e-30)


def relative_speed_here(update: list[float], weights: list[float], layout: Layout) -> tuple[float, float]:
    """The same of numbers.

    Args:
        update: |d_l| of each tensor.
        weights: |w_l| of each.
        layout: Of the tensors.

    Returns:
        R and |d| / |w|.

    Example:
        >>> layout = Layout([torch.zeros(2, 2), torch.zeros(2)])
        >>> relative_speed_here([0.1, 9.0], [2.0, 1.0], layout)[0]  # the vector does not count
        0.05
    """
    chosen, roots = layout.matrices, layout.roots
    sizes = [weights[i] for i in chosen]
    rms = math.hypot(*sizes) / layout.root
    floor = FLOOR * (rms if rms > 0 else 1.0)
    shares = [
        update[i] / (size if size > floor * roots[i] else floor * roots[i])
        for i, size in zip(chosen, sizes, strict=True)
    ]
    return math.hypot(*shares), math.hypot(*update) / max(math.hypot(*weights), 1e-30)


class WeightsBefore:
    """A copy of the trained weights as they were before an update, in memory that is kept from one to the next.

    There is a block of memory for each optimizer, laid out for the parameters that it trains; where a layer is frozen,
    unfrozen or added, the block is laid out anew.

    Attributes:
        params: The parameters that were copied for the present update; empty where none were.
        copies: Their copies, in the same order.
        moves: Copies and moves together, where all parameters are plain ones on the CPU; else empty.
    """

    def __init__(self) -> None:
        self.params: list[Tensor] = []
        self.copies: list[Tensor] = []
        self.moves: list[Moves] = []
        self._blocks: list[tuple[list[Tensor], list[Tensor], Moves | None]] = []
        self._taken: list[list[Tensor]] = []  # the copies of each block, in the present update

    @vectors.no_graph
    def take(self, params: list[Tensor]) -> None:
        """Copy these weights; may be called for one optimizer after another, and again after a closure that raised.

        Args:
            params: Trained parameters of one optimizer.
        """
        if not params:
            return
        for block in self._blocks:
            if len(block[0]) == len(params) and all(map(operator.is_, block[0], params)):
                break
        else:
            block = self._block(params)
        _, copies, moves = block
        if moves is not None:
            moves.take()
        else:
            vectors.copy_(copies, params)
        if any(copies is there for there in self._taken):
            return
        self.moves = [] if moves is None or len(self.moves) < len(self._taken) else [*self.moves, moves]
        self._taken.append(copies)
        self.params, self.copies = self.params + params, self.copies + copies

    def _block(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Moves | None]:
        """Make room for these, in the place of every block that has some of them."""
        known = {id(p): c for block in self._blocks for p, c in zip(block[0], block[1], strict=True)}
        mine = {id(p) for p in params}
        self._blocks = [b for b in self._blocks if not mine & {id(p) for p in b[0]}]
        if lie_together(params):
            moves = Moves(params)
            made: tuple[list[Tensor], list[Tensor], Moves | None] = params, moves.copies, moves
        else:
            made = params, [known[id(p)] if id(p) in known else torch.empty_like(p) for p in params], None
        self._blocks.append(made)
        return made

    def __bool__(self) -> bool:
        return bool(self.params)

    def of(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        """The copies of these parameters; None for one that was not trained in this update.

        Args:
            params: In any order.
        """
        known = {id(p): c for p, c in zip(self.params, self.copies, strict=True)}
        return [known.get(id(p)) for p in params]

    def forget(self) -> None:
        """The update is over."""
        self.params, self.copies, self.moves, self._taken = [], [], [], []

    def release(self) -> None:
        """Give all memory back."""
        self.forget()
        self._blocks = []


def _cosine_here(x: Sequence[Tensor], y: Sequence[Tensor], squares: Sequence[Tensor] | None) -> float:
    """The cosine of plain gradients on the CPU, tensor by tensor while the cache holds it; NaN where one is zero."""
    products, first, second = 0.0, 0.0, 0.0
    for i, (a, b) in enumerate(zip(x, y, strict=True)):
        if squares is not None:
            scale = squares[i].sqrt().add_(1e-8)
            a, b = a / scale, b / scale
        a, b = a.reshape(-1), b.reshape(-1)
        products += torch.dot(a, b).item()
        first, second = first + torch.dot(a, a).item(), second + torch.dot(b, b).item()
    sizes = math.sqrt(first) * math.sqrt(second)
    return products / sizes if sizes > 0 else math.nan


_SECOND_MOMENTS = ("exp_avg_sq", "square_avg")

DENSE, EVERY = 16, 16
"""The coherence is measured at each of the first updates, then at every sixteenth, which stands for those between: it
enters a mean over the run, and costs as much as all the rest that is measured of an update."""


class Coherence:
    r"""The cosine of an update's gradient and the one before it; keeps one copy of the gradients.

    It reads what the step left in ``.grad``: under SAM the gradient at the perturbed weights. A change of the loss
    scale does not matter, since a cosine has no length. Where the optimizer's state has a second moment v (Adam and
    its kin), both gradients are divided by sqrt(v) + 1e-8: the metric in which it makes its steps.

    .. math:: \gamma_k = \frac{\langle g_k, g_{k-1} \rangle}{\|g_k\| \, \|g_{k-1}\|}
    """

    def __init__(self) -> None:
        self._params: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._fresh = False  # whether what is kept is of the update before

    @property
    def last(self) -> dict[Tensor, Tensor]:
        """Gradients of the update before, where the next one is measured against them."""
        return dict(zip(self._params, self._kept, strict=True)) if self._fresh else {}

    @last.setter
    def last(self, gradients: dict[Tensor, Tensor]) -> None:
        self._params, self._kept = list(gradients), list(gradients.values())
        self._fresh = bool(gradients)

    @staticmethod
    def due(step: int) -> bool:
        """Whether the cosine of this update's gradient with that of the one before is measured."""
        return step <= DENSE or step % EVERY == 0

    def concerns(self, step: int) -> bool:
        """Whether something is measured or kept of this update; a gradient that is kept is of use for one update."""
        concerned = self.due(step) or self.due(step + 1)
        self._fresh = self._fresh and concerned
        return concerned

    @vectors.no_graph
    def observe(self, step: int, params: Sequence[Tensor], optimizers: Sequence[Optimizer]) -> Number | None:
        """The cosine over the tensors that both updates have a dense gradient for; None where it is not due.

        Args:
            step: The update, from 0.
            params: Trained parameters; ``.grad`` of each is what the step has left there.
            optimizers: Whose state may hold a second moment of them; the metric is used where all of them have one.

        Returns:
            A number on the CPU, else a 0-d tensor that nobody waits for; NaN where a gradient is zero.
        """
        measure, keep = self._fresh and self.due(step), self.due(step + 1)
        self._fresh = keep
        if not (measure or keep):
            return None
        now = [p for p in params if p.grad is not None and p.grad.layout is torch.strided]
        gradients = [p.grad for p in now if p.grad is not None]
        cosine = self._measured(now, gradients, optimizers) if measure else None
        if keep:
            self._keep(now, gradients)
        return cosine

    def _measured(self, now: list[Tensor], x: list[Tensor], optimizers: Sequence[Optimizer]) -> Number | None:
        """The cosine x'y / |x| |y|; elsewhere than on the CPU from norms alone: |x + y|^2 - |x - y|^2 = 4 x'y."""
        y = self._kept
        if len(now) != len(self._params) or not all(map(operator.is_, now, self._params)):
            known = {id(p): g for p, g in zip(self._params, y, strict=True)}
            both = [(p, g) for p, g in zip(now, x, strict=True) if id(p) in known]
            now, x = [p for p, _ in both], [g for _, g in both]
            y = [known[id(p)] for p in now]
        if not now:
            return None
        squares = [_second_moment(p, optimizers) for p in now]
        adaptive = all(v is not None and v.shape == p.shape for v, p in zip(squares, now, strict=True))
        if lie_together([*x, *y]):
            return _cosine_here(x, y, squares if adaptive else None)
        if adaptive:
            scale = torch._foreach_sqrt(squares)
            torch._foreach_add_(scale, 1e-8)
            x, y = list(torch._foreach_div(x, scale)), list(torch._foreach_div(y, scale))
        together, apart = torch._foreach_add(x, y), torch._foreach_sub(x, y)
        a, b = norms(list(together)).norm(), norms(list(apart)).norm()
        cosine: Tensor = 0.25 * (a * a - b * b) / (norms(x).norm() * norms(y).norm())
        return cosine

    def _keep(self, now: list[Tensor], gradients: list[Tensor]) -> None:
        if len(now) == len(self._params) and all(map(operator.is_, now, self._params)):
            vectors.copy_(self._kept, gradients)
        else:
            self._params, self._kept = now, [g.detach().clone() for g in gradients]

    def forget(self) -> None:
        """After a rewind the next gradient belongs to other weights."""
        self._fresh = False

    def release(self) -> None:
        """Give the memory back."""
        self._params, self._kept, self._fresh = [], [], False


def _second_moment(p: Tensor, optimizers: Sequence[Optimizer]) -> Any:
    for optimizer in optimizers:
        entry = optimizer.state.get(p)
        if entry:
            return next((entry[name] for name in _SECOND_MOMENTS if name in entry), None)
    return None
