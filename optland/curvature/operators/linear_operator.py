r"""A symmetric matrix known by its products with vectors: what every probe of curvature works on.

.. math:: v \mapsto A v, \qquad A = A^T \in \mathbb{R}^{d \times d}

Vectors are lists of tensors in the shapes of ``A.like``, which are the parameters of an objective or some of them. A
subclass says how a product is computed and what it costs; counting, checking and accounting are here.

**Cost.** Every product is charged to the operator and to its objective, in gradient evaluations (GE), as declared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from optland import vectors
from optland.archive import Archived
from optland.estimate import Estimate, Provenance
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["CurvatureOperator", "OperatorCheck"]

DENSE_LIMIT = 5000
"""Largest d that :meth:`CurvatureOperator.to_dense` forms a matrix for."""

ROUNDING = 100.0
"""Units in the last place, relative to the size of the terms, by which a check lets products differ."""


@dataclass(frozen=True, slots=True)
class OperatorCheck(Archived):
    r"""What :meth:`CurvatureOperator.check` found.

    Attributes:
        asymmetry: \\|u'Av - v'Au\\| for unit vectors u and v; its error is the rounding that products may show.
        repeatability: \\|Av - Av\\| of the same product computed twice, likewise.
    """

    asymmetry: Estimate
    repeatability: Estimate

    @property
    def passed(self) -> bool:
        """Whether the operator behaves like one symmetric matrix."""
        return self.asymmetry.converged and self.repeatability.converged


class CurvatureOperator:
    """A symmetric matrix known by its products with vectors.

    Attributes:
        objective: What it is the curvature of.
        kind: Which matrix it is, in words.
        method: How products are computed now.
        reason: Why that method.
        num_matvecs: Products computed so far.
        cost_ge: Gradient evaluations spent so far, the set-up included.
    """

    kind = "matrix"

    def __init__(self, objective: Objective, method: str, reason: str) -> None:
        self.objective = objective
        self.method = method
        self.reason = reason
        self.num_matvecs = 0
        self.cost_ge = 0.0
        self._closed = False

    # What a subclass decides -----------------------------------------------------------------------

    def _multiply(self, v: Vector) -> list[Tensor]:
        """The product; adds what it cost to ``cost_ge``."""
        raise NotImplementedError

    def restricted(self, indices: Sequence[int]) -> CurvatureOperator:
        """The diagonal block of the parameters at these positions, computed on them alone."""
        raise NotImplementedError

    def on(self, objective: Objective) -> CurvatureOperator | None:
        """The same matrix of other data at the same weights; None where it cannot be had.

        Args:
            objective: A view of :attr:`objective` with other batches.
        """
        return None

    @property
    def product_ge(self) -> float:
        """Declared cost of one product in gradient evaluations."""
        raise NotImplementedError

    @property
    def setup_ge(self) -> float:
        """Declared cost of what precedes the first product."""
        return 0.0

    @property
    def product_error(self) -> float:
        """Size of the error of a product with a unit vector; 0 where products are exact to rounding."""
        return 0.0

    # What all have in common -----------------------------------------------------------------------

    @property
    def like(self) -> list[Tensor]:
        """Tensors with the shapes, types and devices of the vectors that the operator takes and gives."""
        return self.objective.params

    @property
    def dim(self) -> int:
        """Number of rows d."""
        return vectors.numel(self.like)

    def provenance(self, method: str, seed: int | None = None) -> Provenance:
        """The provenance of a number that ``method`` computed from products with this operator."""
        return self.objective.provenance(
            f"{method} on the {self.kind} by {self.method} ({self.reason})", seed
        )

    def matvec(self, v: Vector) -> list[Tensor]:
        """A v, a new vector in the shapes of :attr:`like`.

        Raises:
            ValueError: ``v`` has other shapes than the trainable parameters.
            RuntimeError: The graph was kept and the weights have changed since, or the operator was closed.
        """
        v = vectors.require_shapes(v, self.like, "v")
        if self._closed:
            raise RuntimeError("this operator was closed; make a new one with hessian(objective)")
        spent, spent_on_objective = self.cost_ge, self.objective.cost_ge
        try:
            product = self._multiply(v)
        finally:  # the declared cost is charged, once, whatever passes the method made of it
            self.objective.cost_ge = spent_on_objective + self.cost_ge - spent
        self.num_matvecs += 1
        return product

    def check(self, seed: int = 0) -> OperatorCheck:
        """Hold three products against what a symmetric matrix would give.

        Args:
            seed: Seed of the two random unit vectors.

        Returns:
            An :class:`OperatorCheck`; ``passed`` is False where products are not symmetric beyond their own error.

        Raises:
            ValueError: The loss is not finite, or gives another value when it is evaluated again.

        Example:
            >>> from optland.curvature import hessian
            >>> from optland.problems import saddle
            >>> hessian(saddle()).check().passed
            True
        """
        self._refuse_wandering_loss()
        spent = self.cost_ge
        u, v = vectors.random_unit(self.like, seed), vectors.random_unit(self.like, seed + 1)
        Au, Av, again = self.matvec(u), self.matvec(v), self.matvec(v)
        cost = self.cost_ge - spent
        apart = abs(float(vectors.dot(u, Av)) - float(vectors.dot(v, Au)))
        moved = float(vectors.norm(vectors.subtract(Av, again)))
        size = max(float(vectors.norm(Au)), float(vectors.norm(Av)))
        allowed = 2 * self.product_error + ROUNDING * torch.finfo(self.like[0].dtype).eps * size
        source = self.provenance("check", seed)
        return OperatorCheck(
            Estimate(apart, allowed, "residual", apart <= allowed, cost, source),
            Estimate(moved, allowed, "residual", moved <= allowed, cost, source),
        )

    def _refuse_wandering_loss(self) -> None:
        first, second = self.objective.value(), self.objective.value()
        if not first - first == 0.0:
            raise ValueError(
                f"the loss is {first} at these weights, which has no curvature; probe weights at which it is finite"
            )
        if abs(first - second) > ROUNDING * torch.finfo(self.like[0].dtype).eps * max(abs(first), 1e-30):
            raise ValueError(
                f"the loss is not deterministic: {first!r}, then {second!r} at the same weights. Every "
                f"evaluation seeds "
                "the generators of PyTorch, Python and NumPy; a loss_fn or a loader with its own generator or a "
                "counter has to be made repeatable (mode='eval', fixed augmentation, batches as a list)"
            )

    def to_dense(self) -> Tensor:
        """The matrix itself, (d, d), from d products: for tests and very small models.

        Raises:
            ValueError: d is above 5000.
        """
        if self.dim > DENSE_LIMIT:
            raise ValueError(f"d = {self.dim} is too large for a dense matrix (at most {DENSE_LIMIT})")
        columns, like = [], self.like
        for unit in torch.eye(self.dim, dtype=like[0].dtype, device=like[0].device):
            product = self.matvec(vectors.unflatten(unit, like))
            columns.append(vectors.flatten(product))
        return torch.stack(columns, dim=1)

    def close(self) -> None:
        """Free what the operator keeps; products raise from now on."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.kind}, d={self.dim}, {self.method}: {self.reason}; "
            f"{self.num_matvecs} products, {self.cost_ge:.0f} GE)"
        )
