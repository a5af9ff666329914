r"""Ways to multiply by J' M J, where J is the Jacobian of a model's outputs and M a matrix on the outputs.

.. math:: A v = \frac{1}{C} \sum_b J_b^T\, M_b\, (J_b v)

M is the Hessian of the loss in the outputs (Gauss-Newton), the covariance of the model's own scores (Fisher)
or of the actual ones (empirical Fisher). J v comes from the derivative, by u, of the vector-Jacobian product
J'u, which is linear in u; from forward mode; or from a difference of outputs.

**References.** Schraudolph 2002 (products with the Gauss-Newton matrix); Martens 2020, arXiv:1412.1193.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optland import vectors
from optland.curvature.operators.hessian import Family
from optland.curvature.operators.outputs import Piece, Split, evaluate, pieces
from optland.curvature.operators.products import (
    Product,
    dual_weights,
    has_custom_backward,
    poisoned,
    primal,
    tangent,
    with_weights,
)
from optland.objective import Objective
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
"""Cost of one product in gradient evaluations a sample; above what was measured for the Hessian's products."""

LINEARISED_SETUP_GE = {
    "kept_graph": 1.5,
    "double_backward": 0.0,
    "forward_over_reverse": 0.0,
    "finite_difference": 1.0,
}
"""Cost of what comes with the first product."""


def linearised(kind: str, middle: Middle, split: Split | None) -> Family:
    """The ways to multiply by J' M J for this M and this split of the loss."""
    return Family(
        kind,
        {
            "kept_graph": lambda L: _KeptGraph(L, middle, split),
            "double_backward": lambda L: _DoubleBackward(L, middle, split),
            "forward_over_reverse": lambda L: _ForwardMode(L, middle, split),
            "finite_difference": lambda L: _OutputDifference(L, middle, split),
        },
        LINEARISED_GE,
        LINEARISED_SETUP_GE,
    )


class _Linearised(Product):
    def __init__(self, objective: Objective, middle: Middle, split: Split | None) -> None:
        super().__init__(objective)
        self.middle, self.split = middle, split

    def _gather(self, parts: list[tuple[list[Tensor], float]]) -> list[Tensor]:
        """Sum of the parts over the sum of their counts."""
        params, total = self.objective.params, sum(count for _, count in parts)
        if not total > 0:
            raise ValueError("the batches of this objective have a total count of 0; there is no mean loss")
        product = vectors.accumulator(params)
        for part, _ in parts:
            vectors.axpy_(1.0 / total, part, product)
        return [t.to(p.dtype) for t, p in zip(product, params, strict=True)]


@dataclass(slots=True)
class _Linearisation:
    """The outputs of a batch with their graph, and J'u as a function of u."""

    piece: Piece
    multiply: Callable[[list[Tensor]], list[Tensor]]  # by M
    params: list[Tensor]
    u: list[Tensor]
    Jt_u: list[Tensor]

    @classmethod
    def of(cls, piece: Piece, middle: Middle, number: int, params: list[Tensor]) -> _Linearisation:
        u = [torch.zeros_like(z, requires_grad=True) for z in piece.leaves]
        Jt_u = torch.autograd.grad(
            piece.outputs, params, u, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return cls(piece, middle(number, piece), params, u, list(Jt_u))

    def __call__(self, v: Vector, *, keep: bool) -> list[Tensor]:
        live = [(g, t.to(g.dtype)) for g, t in zip(self.Jt_u, v, strict=True) if g.requires_grad]
        if not live:
            return [torch.zeros_like(p) for p in self.params]
        outputs, seeds = zip(*live, strict=True)
        Jv = torch.autograd.grad(
            outputs, self.u, seeds, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return transposed(self.piece, self.params, self.multiply(list(Jv)), keep=keep)


def transposed(piece: Piece, params: Vector, u: Vector, *, keep: bool) -> list[Tensor]:
    """J'u, not a number where the loss is none."""
    product = torch.autograd.grad(
        piece.outputs, list(params), list(u), retain_graph=keep, allow_unused=True, materialize_grads=True
    )
    return poisoned(list(product), piece.loss.detach())


class _KeptGraph(_Linearised):
    """Linearises all batches once; a product is three backwards through what was kept."""

    def __init__(self, objective: Objective, middle: Middle, split: Split | None) -> None:
        super().__init__(objective, middle, split)
        self._weights = self._fingerprint()
        with objective.context(), torch.enable_grad():
            self._parts = [
                _Linearisation.of(piece, middle, i, objective.params)
                for i, piece in enumerate(pieces(objective, split))
            ]
        outputs = [z for part in self._parts for z in part.piece.outputs]
        self.trusted = not any(has_custom_backward(z) for z in outputs)

    def __call__(self, v: Vector) -> list[Tensor]:
        if self._fingerprint() != self._weights:
            raise RuntimeError(
                "the weights have changed since this operator kept its graph; make a new one, or use "
                "method='double_backward', which reads the weights at every product"
            )
        with self.objective.context():
            return self._gather([(part(v, keep=True), part.piece.count) for part in self._parts])

    def _fingerprint(self) -> list[tuple[int, int, int]]:
        return [(p.data_ptr(), p._version, self.objective.location) for p in self.objective.params]


class _DoubleBackward(_Linearised):
    """Linearises each batch anew in every product, so that data can stream and weights may move."""

    def __call__(self, v: Vector) -> list[Tensor]:
        params, parts = self.objective.params, []
        with self.objective.context(), torch.enable_grad():
            for i, piece in enumerate(pieces(self.objective, self.split)):
                self.trusted = self.trusted and not any(has_custom_backward(z) for z in piece.outputs)
                part = _Linearisation.of(piece, self.middle, i, params)
                parts.append((part(v, keep=False), piece.count))
        return self._gather(parts)


class _ForwardMode(_Linearised):
    """J v from one forward pass with tangents; the same pass leaves the graph for the way back."""

    def __call__(self, v: Vector) -> list[Tensor]:
        parts = []
        with self.objective.context(), torch.enable_grad(), dual_weights(self.objective.params, v) as duals:
            for i, batch in enumerate(self.objective.batches):
                piece = with_weights(
                    self.objective,
                    duals,
                    lambda b=batch: evaluate(self.objective, self.split, b),  # type: ignore[misc]
                )
                self.trusted = self.trusted and not any(has_custom_backward(z) for z in piece.outputs)
                Jv = [tangent(z) for z in piece.outputs]
                bare = Piece(batch, [primal(z) for z in piece.outputs], piece.leaves, piece.loss, piece.count)
                u = self.middle(i, bare)(Jv)
                parts.append((transposed(bare, duals, u, keep=False), piece.count))
        return self._gather([([primal(t) for t in part], count) for part, count in parts])


class _OutputDifference(_Linearised):
    """J v from a central difference of the outputs; only the first derivative is asked of the model."""

    def __call__(self, v: Vector) -> list[Tensor]:
        L = self.objective
        length = float(vectors.norm(v))
        if length == 0.0:
            return [torch.zeros_like(p) for p in L.params]
        u = vectors.scaled(1.0 / length, v)
        eps = float(torch.finfo(L.params[0].dtype).eps)
        # The step at which rounding of the outputs and their third derivative weigh alike, as for gradients.
        h = 0.1 * (1.0 + float(vectors.norm([p.detach() for p in L.params]))) * math.pow(eps, 1 / 3)
        product = self._through(u, h)
        if self.error == 0.0:
            self.error = float(vectors.norm(vectors.subtract(product, self._through(u, 2 * h))))
        return vectors.scaled(length, product)

    def _through(self, u: Vector, h: float) -> list[Tensor]:
        ahead, behind = self._outputs(u, h), self._outputs(u, -h)
        parts = []
        with self.objective.context(), torch.enable_grad():
            for i, piece in enumerate(pieces(self.objective, self.split)):
                Jv = [(a - b) / (2 * h) for a, b in zip(ahead[i], behind[i], strict=True)]
                Mu = self.middle(i, piece)(Jv)
                parts.append((transposed(piece, self.objective.params, Mu, keep=False), piece.count))
        return self._gather(parts)

    def _outputs(self, u: Vector, h: float) -> list[list[Tensor]]:
        L = self.objective
        with L.context(), L.at(L.displaced(u, h)), torch.enable_grad():
            # With a graph, so that the same tensors count as outputs here and at the weights themselves.
            return [[z.detach() for z in piece.outputs] for piece in pieces(L, self.split)]
