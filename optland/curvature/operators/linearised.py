r"""Ways to multiply by J' M J, where J is the Jacobian of a model's outputs and M a matrix on the outputs.

.. math:: A v = \frac{1}{C} \sum_b J_b^T\, M_b\, (J_b v)

M is the Hessian of the loss in the outputs (Gauss-Newton), or the covariance of the model's own scores (Fisher).
J v comes from the derivative, by u, of the vector-Jacobian product
J'u, which is linear in u; from forward mode; or from a difference of outputs.

**References.** Schraudolph 2002 (products with the Gauss-Newton matrix); Martens 2020, arXiv:1412.1193.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from optland import vectors
from optland.context.rng import RandomSnapshot
from optland.curvature.operators.hessian import Family
from optland.curvature.operators.outputs import Piece, Split, evaluate, pieces, shifted_gradient
from optland.curvature.operators.products import (
    Product,
    dual_weights,
    poisoned,
    primal,
    refuse_writes,
    tangent,
)
from optland.derivatives import Leaves, derivative, gradient, require_grad
from optland.objective import NO_COUNT, Objective
from optland.vectors import Vector

__all__ = ["LINEARISED_GE", "LINEARISED_SETUP_GE", "Middle", "linearised"]

Middle = Callable[[int, Piece], Callable[[list[Tensor]], list[Tensor]]]
"""Of the number of a batch and the batch taken apart: the map u -> M u on its outputs."""

LINEARISED_GE = {
    "kept_graph": 2.5,
    "double_backward": 4.0,
    "forward_over_reverse": 3.5,
    "finite_difference": 3.0,
}
"""Cost of one product in gradient evaluations per sample; above what was measured for the Hessian's products."""

LINEARISED_SETUP_GE = {
    "kept_graph": 1.5,
    "double_backward": 0.0,
    "forward_over_reverse": 0.0,
    "finite_difference": 6.0,
}
"""Cost of what comes with the first product."""


def linearised(kind: str, middle: Middle, split: Split | None) -> Family:
    """The ways to multiply by J' M J for this M and this split of the loss.

    Args:
        kind: Which matrix, in words.
        middle: Makes M for the batch of a number and its piece.
        split: The model and the loss of its outputs, where the user has given them apart; None finds them.

    Returns:
        With the costs of Gauss-Newton products, and differences of outputs to compare with.
    """
    return Family(
        kind,
        {
            "kept_graph": lambda L: _KeptGraph(L, middle, split),
            "double_backward": lambda L: _DoubleBackward(L, middle, split),
            "forward_over_reverse": lambda L: _ForwardMode(L, middle, split),
            "finite_difference": lambda L: OutputDifference(L, middle, split),
        },
        LINEARISED_GE,
        LINEARISED_SETUP_GE,
        lambda L, u, h: OutputDifference(L, middle, split).through(u, h),
        LINEARISED_GE["finite_difference"],
    )


class _Linearised(Product):
    def __init__(self, objective: Objective, middle: Middle, split: Split | None) -> None:
        super().__init__(objective)
        self.middle, self.split = middle, split

    def _linearised(self) -> Iterator[_Linearisation]:
        """Each batch with its graph, inside the context."""
        L = self.objective
        for i, piece in enumerate(pieces(L, self.split)):
            self._look(*piece.outputs, piece.loss)
            require_grad(L, piece.outputs[0], lambda b=piece.batch: evaluate(L, self.split, b).outputs[0])  # type: ignore[misc]
            yield _Linearisation.of(piece, self.middle, i, L.leaves())

    def _gather(self, parts: list[tuple[list[Tensor], float]]) -> list[Tensor]:
        """Sum of the parts over the sum of their counts."""
        params, total = self.objective.params, sum(count for _, count in parts)
        if not total > 0:
            raise ValueError(NO_COUNT)
        product = vectors.accumulator(params)
        for part, _ in parts:
            vectors.axpy_(1.0 / total, part, product)
        return [t.to(p.dtype) for t, p in zip(product, params, strict=True)]


@dataclass(slots=True)
class _Linearisation:
    """The outputs of a batch with their graph, and J'u as a function of u."""

    piece: Piece
    multiply: Callable[[list[Tensor]], list[Tensor]]  # by M
    leaves: Leaves
    u: list[Tensor]
    Jt_u: list[Tensor]

    @classmethod
    def of(cls, piece: Piece, middle: Middle, number: int, leaves: Leaves) -> _Linearisation:
        u = [torch.zeros_like(z, requires_grad=True) for z in piece.leaves]
        Jt_u = leaves.derivative(piece.outputs, u, create_graph=True)
        return cls(piece, middle(number, piece), leaves, u, Jt_u)

    def __call__(self, v: Vector, *, keep: bool) -> list[Tensor]:
        live = [(g, t.to(g.dtype)) for g, t in zip(self.Jt_u, v, strict=True) if g.requires_grad]
        if not live:
            return [torch.zeros_like(p) for p in self.leaves.params]
        outputs, seeds = zip(*live, strict=True)
        Jv = derivative(outputs, self.u, seeds, retain_graph=True)
        return transposed(self.piece, self.leaves, self.multiply(Jv), keep=keep)


def transposed(piece: Piece, leaves: Leaves, u: Vector, *, keep: bool) -> list[Tensor]:
    """J'u; NaN where the loss is NaN.

    Args:
        piece: One batch, split.
        leaves: The weights to differentiate by.
        u: In the shapes of the outputs.
        keep: Keep the graph for another product.

    Returns:
        In the shapes of the parameters.
    """
    return poisoned(leaves.derivative(piece.outputs, u, retain_graph=keep), piece.loss.detach())


class _KeptGraph(_Linearised):
    """Linearises all batches once; a product is three backwards through what was kept."""

    derived = "reverse"

    def __init__(self, objective: Objective, middle: Middle, split: Split | None) -> None:
        super().__init__(objective, middle, split)
        self._weights = self._fingerprint()
        with objective.context(), torch.enable_grad():
            self._standing = objective.notes.standing
            self._parts = list(self._linearised())

    def __call__(self, v: Vector) -> list[Tensor]:
        if self._fingerprint() != self._weights:
            raise RuntimeError(
                "the weights have changed since this operator kept its graph; make a new one, or use "
                "method='double_backward', which reads the weights at every product"
            )
        with self.objective.context(self._standing):
            return self._gather([(part(v, keep=True), part.piece.count) for part in self._parts])

    def _fingerprint(self) -> list[tuple[int, int, int]]:
        return [(p.data_ptr(), p._version, self.objective.location) for p in self.objective.params]


class _DoubleBackward(_Linearised):
    """Linearises each batch anew in every product, so that data can stream and weights may move."""

    derived = "reverse"

    def __call__(self, v: Vector) -> list[Tensor]:
        with self.objective.context(), torch.enable_grad():
            parts = [(part(v, keep=False), part.piece.count) for part in self._linearised()]
        self._seen = True
        return self._gather(parts)


class _ForwardMode(_Linearised):
    """J v from one forward pass with tangents; the same pass leaves the graph for the way back."""

    derived = "forward"

    def __call__(self, v: Vector) -> list[Tensor]:
        parts, L = [], self.objective
        with L.context(), torch.enable_grad(), dual_weights(L.params, v) as duals:
            for i, batch in enumerate(L.batches):
                piece = L.replacing(duals, lambda b=batch: self._evaluate(b))  # type: ignore[misc]
                self._look(*piece.outputs, piece.loss)
                Jv = [tangent(z) for z in piece.outputs]
                bare = Piece(
                    batch,
                    [primal(z) for z in piece.outputs],
                    piece.leaves,
                    piece.loss,
                    piece.count,
                    kind=piece.kind,
                )
                u = self.middle(i, bare)(Jv)
                parts.append((transposed(bare, Leaves(duals, {}), u, keep=False), piece.count))
        self._seen = True
        return self._gather([([primal(t) for t in part], count) for part, count in parts])

    def _evaluate(self, batch: Any) -> Piece:
        return evaluate(self.objective, self.split, batch)


class OutputDifference(_Linearised):
    """J v from a central difference of the outputs, and M u from one of the loss's derivative by them.

    Only first derivatives are asked of model and loss. ``error`` is twice the larger distance from the products with
    half and with twice both steps, at the first product.
    """

    def __call__(self, v: Vector) -> list[Tensor]:
        L = self.objective
        length = float(vectors.norm(v))
        if length == 0.0:
            return [torch.zeros_like(p) for p in L.params]
        u = vectors.scaled(1.0 / length, v)
        eps = float(torch.finfo(L.params[0].dtype).eps)
        # The step at which rounding of the outputs and their third derivative weigh alike, as for gradients.
        h = 0.1 * (1.0 + float(vectors.norm([p.detach() for p in L.params]))) * math.pow(eps, 1 / 3)
        product = self.through(u, h, strict=True)
        if self.error == 0.0:  # rounding shows with half of the step, what bends with twice the step
            others = [self.through(u, factor * h, reach=factor) for factor in (0.5, 2.0)]
            apart = [float(vectors.norm(vectors.subtract(product, other))) for other in others]
            self.error = 2 * max(apart)  # other directions bend more
        return vectors.scaled(length, product)

    def through(self, u: Vector, h: float, *, reach: float = 1.0, strict: bool = False) -> list[Tensor]:
        """The product with a unit vector, with this step, and ``reach`` times the usual one on the outputs.

        Args:
            u: Unit vector in the shapes of the parameters.
            h: Step along it, in the unit of the weights.
            reach: Factor on the step along the outputs.
            strict: Whether a forward that writes its parameters is refused.

        Returns:
            J' M J u in the shapes of the parameters.
        """
        L, parts = self.objective, []
        ahead, behind = self._outputs(u, h, strict), self._outputs(u, -h, strict)
        with L.context(), torch.enable_grad():
            for i, batch in enumerate(L.batches):
                start = RandomSnapshot()
                piece = evaluate(L, self.split, batch)
                Jv = [(a - b) / (2 * h) for a, b in zip(ahead[i], behind[i], strict=True)]
                shifted = partial(self._shifted, piece, start)
                Mu = self.middle(i, replace(piece, shifted=shifted, reach=reach))(Jv)
                parts.append((self._back(piece, Mu), piece.count))
        return self._gather(parts)

    def _back(self, piece: Piece, u: list[Tensor]) -> list[Tensor]:
        """J'u, also of graphs that want ``backward()``."""

        def along(piece: Piece) -> Tensor:
            return torch.stack([(z * t).sum() for z, t in zip(piece.outputs, u, strict=True)]).sum()

        L = self.objective
        product = gradient(L, along(piece), lambda: along(evaluate(L, self.split, piece.batch)))
        return poisoned(product, piece.loss.detach())

    def _shifted(self, piece: Piece, start: RandomSnapshot, shifts: list[Tensor]) -> list[Tensor]:
        """Derivative of the loss by shifted outputs, with the random numbers of the piece."""
        after = RandomSnapshot()
        start.restore()
        found = shifted_gradient(self.objective, self.split, piece, shifts)
        after.restore()
        return found

    def _outputs(self, u: Vector, h: float, strict: bool) -> list[list[Tensor]]:
        L = self.objective
        with L.at(L.displaced(u, h)), L.context(), torch.enable_grad():
            # With a graph, so that the same tensors count as outputs here and at the weights themselves.
            found = [[z.detach() for z in piece.outputs] for piece in pieces(L, self.split)]
        if strict:
            refuse_writes(L)
        return found
