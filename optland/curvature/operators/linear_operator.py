r"""The base class of curvature operators: a symmetric matrix known by its products with vectors.

.. math:: v \mapsto A v, \qquad A = A^T \in \mathbb{R}^{d \times d}

Vectors are lists of tensors in the shapes of ``A.like``: for the curvature of an objective those of its parameters.

**One's own.** A subclass of :class:`SymmetricOperator` says what its vectors are like and how a product is computed;
checks, counts and all else are here. A function needs no class:
:class:`~optland.curvature.operators.function.FunctionOperator`.

**Cost.** Every product is counted, and charged to the operator and to its objective, where there is one, in gradient
evaluations (GE), as the operator declares.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

import torch
from torch import Tensor

from optland import vectors
from optland.archive import Archived
from optland.estimate import Estimate, Provenance
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["OperatorCheck", "SymmetricOperator", "Through"]

DENSE_LIMIT = 5000
"""Largest d that :meth:`SymmetricOperator.to_dense` forms a matrix for."""

ROUNDING = 100.0
"""Units in the last place, relative to the size of the terms, by which a check lets products differ."""


@dataclass(frozen=True, slots=True)
class OperatorCheck(Archived):
    r"""The result of :meth:`SymmetricOperator.check`.

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


class SymmetricOperator(ABC):
    """A symmetric matrix known by its products with vectors.

    A subclass defines :attr:`like` and ``_matvec``, calls ``super().__init__()``, and may say more: ``kind`` in words,
    :attr:`names`, :attr:`product_error`.

    Attributes:
        objective: What it is the curvature of; None where it is another matrix.
        kind: Which matrix it is, in words.
        method: How products are computed now.
        reason: Why that method.
        num_matvecs: Products computed so far.
        cost_ge: Gradient evaluations spent so far, the set-up included.

    Example:
        U U' for a tall matrix U, whose eigenvalues are those of the small matrix U'U and zeros.

        >>> class LowRank(SymmetricOperator):
        ...     def __init__(self, U):
        ...         super().__init__()
        ...         self.U = U
        ...     @property
        ...     def like(self):
        ...         return [self.U[:, 0]]
        ...     def _matvec(self, v):
        ...         return [self.U @ (self.U.T @ v[0])]
        >>> from optland.curvature import lanczos
        >>> U = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
        >>> [round(value.value, 9) for value in lanczos(LowRank(U), k=2, ends="top").values]
        [9.0, 4.0]
    """

    objective: Objective | None = None
    kind: str = "matrix"
    method: str = "products"
    reason: str = "of its own"

    def __init__(self) -> None:
        self.num_matvecs = 0
        self.cost_ge = 0.0
        self._closed = False

    # What a subclass decides -----------------------------------------------------------------------

    @property
    @abstractmethod
    def like(self) -> list[Tensor]:
        """Tensors with the shapes, types and devices of the vectors that the operator takes and gives."""

    @abstractmethod
    def _matvec(self, v: Vector) -> list[Tensor]:
        """The product, in new tensors like :attr:`like`; adds to ``cost_ge`` the gradient evaluations it costs."""

    @property
    def names(self) -> list[str]:
        """A name for every tensor of :attr:`like`."""
        return [f"block {i}" for i in range(len(self.like))]

    @property
    def product_error(self) -> float:
        """Size of the error of a product with a unit vector; 0 where products are exact to rounding."""
        return 0.0

    def restricted(self, indices: Sequence[int]) -> SymmetricOperator:
        """The diagonal block of the tensors at these positions; here at the cost of products with the whole.

        Raises:
            ValueError: There are no positions, or they are no positions of tensors of :attr:`like`.
        """
        return _Block(self, indices)

    def on(self, objective: Objective) -> SymmetricOperator | None:
        """The same matrix of other data at the same weights; None where it is not available.

        Args:
            objective: A view of :attr:`objective` with other batches.
        """
        return None

    # What all have in common -----------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Number of rows d."""
        return vectors.numel(self.like)

    def provenance(self, method: str, seed: int | None = None) -> Provenance:
        """The provenance of a number that ``method`` computed from products with this operator.

        Args:
            method: The estimator, such as ``lanczos``.
            seed: Of its own randomness; None where it has none.
        """
        words = f"{method} on the {self.kind} by {self.method} ({self.reason})"
        if self.objective is None:
            return Provenance(words, seed=seed, dtype=str(self.like[0].dtype).removeprefix("torch."))
        return self.objective.provenance(words, seed)

    def matvec(self, v: Vector) -> list[Tensor]:
        """A v, a new vector in the shapes of :attr:`like`.

        Args:
            v: Tensors in the shapes of :attr:`like`; sparse ones are made dense.

        Raises:
            ValueError: ``v`` has other shapes than :attr:`like`, or the product that a subclass computed has.
            RuntimeError: The graph was kept and the weights have changed since, or the operator was closed.
        """
        v = vectors.require_shapes(v, self.like, "v")
        if self._closed:
            raise RuntimeError("this operator was closed; make a new one")
        objective, spent = self.objective, self.cost_ge
        spent_on_objective = 0.0 if objective is None else objective.cost_ge
        try:
            product = self._matvec(v)
        finally:  # the declared cost is charged, once, whatever passes the method made of it
            if objective is not None:
                objective.cost_ge = spent_on_objective + self.cost_ge - spent
        self._require_like(product)
        self.num_matvecs += 1
        return product

    @overload
    def __matmul__(self, v: Tensor) -> Tensor: ...

    @overload
    def __matmul__(self, v: Vector) -> list[Tensor]: ...

    def __matmul__(self, v: Tensor | Vector) -> Tensor | list[Tensor]:
        """A v: of a list of tensors a list, of a flat vector (d,) a flat vector (d,) in at least float32.

        Raises:
            TypeError: ``v`` is neither, or complex.
            ValueError: ``v`` has other sizes than :attr:`like`.

        Example:
            >>> from optland.curvature import hessian
            >>> from optland.problems import saddle
            >>> (hessian(saddle()) @ torch.tensor([1.0, 1.0], dtype=torch.float64)).tolist()
            [2.0, -2.0]
        """
        shapes, d = [tuple(t.shape) for t in self.like], self.dim
        wanted = f"pass a flat vector of {d} entries, or a list of tensors of shapes {_few(shapes)}"
        if not isinstance(v, Tensor):
            if not isinstance(v, Sequence) or not all(isinstance(t, Tensor) for t in v):
                raise TypeError(f"cannot multiply this ({d}, {d}) matrix by a {type(v).__name__}; {wanted}")
            given = [tuple(t.shape) for t in v]
            if given != shapes:
                raise ValueError(
                    f"cannot multiply this ({d}, {d}) matrix by tensors of shapes {_few(given)}; {wanted}"
                )
            return self.matvec(v)
        if tuple(v.shape) != (d,):
            raise ValueError(
                f"cannot multiply this ({d}, {d}) matrix by a tensor of shape {tuple(v.shape)}; {wanted}"
            )
        if v.is_complex():
            raise TypeError("v has complex entries; pass real ones (torch.view_as_real)")
        return vectors.flatten(self.matvec(vectors.unflatten(v.detach(), self.like)))

    def _require_like(self, product: Vector) -> None:
        """Refuse a product that is no vector of this operator: a subclass is at fault, or the function behind it."""
        given = [(tuple(t.shape), t.dtype) for t in product]
        wanted = [(tuple(t.shape), t.dtype) for t in self.like]
        if given != wanted:
            raise ValueError(
                f"a product with this {type(self).__name__} must give tensors of shapes and types {_few(wanted)}, as "
                f"its like has them, and gave {_few(given)}"
            )

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
        if self.objective is not None:
            _refuse_wandering_loss(self.objective)
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

    def to_dense(self) -> Tensor:
        """The matrix itself, (d, d), from d products: for tests and very small models.

        Returns:
            In the accumulation type. Columns are products as they come, so it is symmetric to their rounding only.

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

    def to_scipy(self) -> Any:
        """The matrix as a ``scipy.sparse.linalg.LinearOperator`` (d, d) in float64, for ``eigsh`` and the like.

        Its products are counted and charged as always; each copies the vector to the host and back. SciPy's solvers
        work in float64: on float32 weights their tolerance should not be below 1e-5.

        Example:
            >>> from optland.curvature import hessian
            >>> from optland.problems import saddle
            >>> hessian(saddle()).to_scipy().matvec([1.0, 1.0]).tolist()
            [2.0, -2.0]
        """
        import numpy as np
        from scipy.sparse.linalg import LinearOperator

        def multiply(x: Any) -> Any:
            flat = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64).reshape(-1))
            product = self.matvec(vectors.unflatten(flat, self.like))
            return vectors.flatten(product).cpu().numpy().astype(np.float64)

        return LinearOperator((self.dim, self.dim), matvec=multiply, rmatvec=multiply, dtype=np.float64)

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


class Through(SymmetricOperator):
    """A matrix whose product is one product of the operator underneath, which is charged once.

    Args:
        inner: The operator underneath.
        kind: Which matrix this is, in words.
    """

    def __init__(self, inner: SymmetricOperator, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind
        self.objective, self.method, self.reason = inner.objective, inner.method, inner.reason

    @property
    def like(self) -> list[Tensor]:
        """That of the operator underneath."""
        return self.inner.like

    @property
    def names(self) -> list[str]:
        """That of the operator underneath."""
        return self.inner.names

    @property
    def product_error(self) -> float:
        """That of the operator underneath."""
        return self.inner.product_error

    def _through(self, v: Vector) -> list[Tensor]:
        """The product underneath, charged here too."""
        spent = self.inner.cost_ge
        try:
            return self.inner.matvec(v)
        finally:
            self.cost_ge += self.inner.cost_ge - spent
            self.method, self.reason = self.inner.method, self.inner.reason


class _Block(Through):
    """A diagonal block, from products of the whole with vectors that are zero elsewhere."""

    def __init__(self, inner: SymmetricOperator, indices: Sequence[int]) -> None:
        kept, most = list(indices), len(inner.like)
        if not kept or len(set(kept)) < len(kept) or not all(0 <= i < most for i in kept):
            raise ValueError(
                f"indices {kept} must be different positions of the {most} tensors, one at least"
            )
        super().__init__(inner, inner.kind)
        self._kept = kept

    @property
    def like(self) -> list[Tensor]:
        whole = self.inner.like
        return [whole[i] for i in self._kept]

    @property
    def names(self) -> list[str]:
        whole = self.inner.names
        return [whole[i] for i in self._kept]

    def _matvec(self, v: Vector) -> list[Tensor]:
        whole = [torch.zeros_like(t) for t in self.inner.like]
        for i, t in zip(self._kept, v, strict=True):
            whole[i] = t
        product = self._through(whole)
        return [product[i] for i in self._kept]

    def on(self, objective: Objective) -> SymmetricOperator | None:
        inner = self.inner.on(objective)
        return None if inner is None else _Block(inner, self._kept)


def _few(items: Sequence[Any]) -> str:
    """The first of many, in words."""
    shown = ", ".join(map(str, items[:4]))
    return f"[{shown}{f', ... {len(items)} in all' if len(items) > 4 else ''}]"


def _refuse_wandering_loss(objective: Objective) -> None:
    first, second = objective.value(), objective.value()
    if not first - first == 0.0:
        raise ValueError(
            f"the loss is {first} at these weights, which has no curvature; probe weights at which it is finite"
        )
    if abs(first - second) > ROUNDING * torch.finfo(objective.params[0].dtype).eps * max(abs(first), 1e-30):
        raise ValueError(
            f"the loss is not deterministic: {first!r}, then {second!r} at the same weights. Every "
            f"evaluation seeds "
            "the generators of PyTorch, Python and NumPy; a loss_fn or a loader with its own generator or a "
            "counter has to be made repeatable (mode='eval', fixed augmentation, batches as a list)"
        )
