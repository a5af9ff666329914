r"""Split a loss into a model and a function of its outputs, as Gauss-Newton and Fisher matrices need.

.. math:: L(\theta) = \frac{1}{C} \sum_b f_b\big(z_b(\theta)\big)

**How.** Where the user says nothing, a forward hook on the model of the objective replaces what it returns by
detached tensors: the loss is then a function of these alone, whatever the batch type, the reduction or the
weights of its terms. What would make the split wrong is noticed and refused: a loss that does not call the
model or calls it twice, that uses the weights beside the outputs (a penalty), or that the model has computed
itself. ``split=(outputs, loss)`` says it explicitly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from optland.batches import BatchKind, map_tensors
from optland.curvature.operators.products import primal
from optland.derivatives import derivative
from optland.objective import Objective

__all__ = ["Piece", "Split", "evaluate", "pieces", "shifted_gradient"]

Split = tuple[Callable[[nn.Module, Any], Any], Callable[[Any, Any], Any]]
"""``outputs(model, batch)``, a tensor or any structure of tensors, and ``loss(outputs, batch)``, a mean "
"or (sum, count)."""

REMEDY = "pass split=(outputs, loss) with outputs(model, batch) and loss(outputs, batch)"


@dataclass(frozen=True, slots=True)
class Piece:
    """One batch, split into the model's outputs and the loss of them.

    Attributes:
        batch: The batch.
        outputs: What the model gave, with its graph to the weights.
        leaves: The same values as leaves of the graph of ``loss``.
        loss: Sum of the losses as a function of ``leaves``.
        count: How many losses it sums.
        shifted: Derivative of the loss sum by the outputs, at outputs moved by some vector; where the loss's second
            derivatives can be taken from differences of it.
        reach: Factor on the step of those differences.
        kind: How samples of the batch are counted.
    """

    batch: Any
    outputs: list[Tensor]
    leaves: list[Tensor]
    loss: Tensor
    count: float
    shifted: Callable[[list[Tensor]], list[Tensor]] | None = None
    reach: float = 1.0
    kind: BatchKind = field(default_factory=BatchKind)

    def gradient(self, *, create_graph: bool = False) -> list[Tensor]:
        """Derivative of the loss sum by the outputs.

        Args:
            create_graph: Record a graph of it, for second derivatives of the loss.
        """
        return derivative(self.loss, self.leaves, create_graph=create_graph, retain_graph=True)


def pieces(objective: Objective, split: Split | None) -> Iterator[Piece]:
    """Every batch, split; run it inside the objective's context.

    Args:
        objective: Model, loss and data.
        split: The model and the loss of its outputs, where the user has given them apart; None watches one call.

    Raises:
        ValueError: The loss is no function of the outputs of one call of the model.
    """
    for batch in objective.batches:
        yield evaluate(objective, split, batch)


def evaluate(objective: Objective, split: Split | None, batch: Any) -> Piece:
    """Split one batch.

    Args:
        objective: Model and loss; inside its context.
        split: As for :func:`pieces`.
        batch: The batch.

    Raises:
        ValueError: The loss is no function of the outputs of one call of the model, or the model returns the loss
            itself.
    """
    capture = _Capture()
    total, count = _captured(objective, split, batch, capture)
    if not torch.is_grad_enabled():
        return Piece(batch, capture.outputs, capture.leaves, total, count)
    if not total.requires_grad:  # all terms masked: a constant, whose derivatives are zero
        total = total + 0.0 * torch.stack([leaf.sum() for leaf in capture.leaves]).sum()
    _refuse_other_paths(objective, total)
    piece = Piece(batch, capture.outputs, capture.leaves, total, count, kind=objective.kind)
    used = [leaf for leaf, g in zip(capture.leaves, _used(piece), strict=True) if g is not None]
    if any(leaf.ndim == 0 for leaf in used):
        raise ValueError(f"the model returns the loss itself, so there are no outputs to linearise; {REMEDY}")
    return piece


def shifted_gradient(
    objective: Objective, split: Split | None, piece: Piece, shifts: list[Tensor]
) -> list[Tensor]:
    """Derivative of the loss sum of a batch by its outputs, where these are moved by ``shifts``.

    Args:
        objective: Model and loss; inside its context.
        split: As for :func:`pieces`.
        piece: One batch, split; the model is run once more for its loss alone.
        shifts: One tensor for each output, in its shape.

    Returns:
        In the shapes of the outputs; zeros where the loss depends on none of them.
    """
    values = [z.detach() + s for z, s in zip(piece.leaves, shifts, strict=True)]
    capture = _Capture(values)
    total, _ = _captured(objective, split, piece.batch, capture)
    return derivative(total, capture.leaves) if total.requires_grad else [torch.zeros_like(s) for s in shifts]


class _Capture:
    """Replaces every differentiable tensor of a structure by a leaf of the same or a given value; keeps both."""

    def __init__(self, values: list[Tensor] | None = None) -> None:
        self.outputs: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self.values = values

    def __call__(self, structure: Any) -> Any:
        return map_tensors(structure, self._replace)

    def _replace(self, t: Tensor) -> Tensor:
        if not t.is_floating_point() or (torch.is_grad_enabled() and not t.requires_grad):
            return t
        leaf: Tensor = primal(t).detach() if self.values is None else self.values[len(self.leaves)]
        leaf.requires_grad_(torch.is_grad_enabled())
        self.outputs.append(t)
        self.leaves.append(leaf)
        return leaf


def _captured(
    objective: Objective, split: Split | None, batch: Any, capture: _Capture
) -> tuple[Tensor, float]:
    """Loss sum and count with the outputs replaced by leaves."""
    if split is None:
        return _hooked(objective, batch, capture)
    outputs, loss = split
    detached = capture(outputs(objective.model, batch))
    return objective.loss(batch, lambda model, b: loss(detached, b))


def _hooked(objective: Objective, batch: Any, capture: _Capture) -> tuple[Tensor, float]:
    calls = 0

    def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        return capture(output)

    handle = objective.model.register_forward_hook(replace)
    try:
        total, count = objective.loss(batch)
    finally:
        handle.remove()
    if calls != 1:
        raise ValueError(
            f"loss_fn calls model(...) {calls} times for a batch, so the loss is no function of one set "
            f"of outputs; {REMEDY}"
        )
    return total, count


def _refuse_other_paths(objective: Objective, total: Tensor) -> None:
    reached = objective.leaves().used(total, retain_graph=True)
    beside = [name for name, g in zip(objective.names, reached, strict=True) if g is not None]
    if beside:
        raise ValueError(
            f"the loss depends on {beside[0]!r} beside the outputs of the model; leave penalties on the weights out of "
            f"loss_fn and add them with shifted(G, weight_decay), or {REMEDY}"
        )


def _used(piece: Piece) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(piece.loss, piece.leaves, allow_unused=True, retain_graph=True)
