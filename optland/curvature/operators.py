r"""The Hessian of an objective as an operator: products with vectors, counted and paid for.

.. math:: H = \nabla^2 L(\theta), \qquad
          H v = \frac{1}{\sum_b \mathrm{count}_b} \sum_b \nabla^2\, \mathrm{sum}_b(\theta)\, v

**How.** ``method="auto"`` keeps the graph of the gradient where it fits (one batch, or little data),
otherwise builds it afresh for every batch of every product; when a kernel cannot be differentiated twice it
takes finite differences of gradients. Which, and why, is in ``method`` and ``reason``.

**Cost.** ``product_ge`` a product after ``setup_ge`` once, declared in gradient evaluations; memory of a kept
graph is about 2.5 times that of a training step on the same data.

**When.** Double backward is exact to rounding. Finite differences carry an error (``product_error``) of about
1e-4 relative in float32, and in half precision none of their digits may be right: probe float32 weights.

**Caveats.** A kept graph belongs to the weights it was built at; a product after the weights have moved raises. In
train mode dropout masks are replayed and BatchNorm uses the statistics of each batch. A custom backward can be
differentiated twice without an error and yet without its curvature, so where the graph holds one the first product is
held against finite differences.

**References.** Pearlmutter 1994 (products with the Hessian).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from optland import vectors
from optland.curvature.products import (
    HVP_GE,
    SETUP_GE,
    DoubleBackward,
    FiniteDifference,
    KeptGraph,
    Product,
)
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["CurvatureOperator", "Method", "declared_product_cost", "hessian"]

Method = Literal["auto", "kept_graph", "double_backward", "finite_difference"]

WAYS: dict[str, type[Product]] = {
    "kept_graph": KeptGraph,
    "double_backward": DoubleBackward,
    "finite_difference": FiniteDifference,
}

KEPT_SAMPLES = 2048
"""Most samples whose graph ``auto`` keeps when they come in several batches."""

KEPT_SIZE = 2**28
"""Most samples times parameters whose graph ``auto`` keeps when they come in several batches."""

CHECK_GE = SETUP_GE["finite_difference"] + HVP_GE["finite_difference"]
"""Cost of the check against finite differences that a model with a custom backward gets, a sample."""

DISAGREEMENT = 0.05
"""Relative distance from finite differences, beside their own error, at which an exact product is refused."""

DENSE_LIMIT = 5000
"""Largest d that :meth:`CurvatureOperator.to_dense` forms a matrix for."""


def hessian(objective: Objective, *, method: Method = "auto") -> CurvatureOperator:
    """The Hessian of ``objective`` at its current weights.

    Args:
        objective: Model, loss and data.
        method: How products are computed; ``"auto"`` chooses, falls back when it must, and says why.

    Returns:
        A :class:`CurvatureOperator`; close it, or use it in a ``with`` block, to free a kept graph early.

    Raises:
        ValueError: ``method`` is unknown.

    Example:
        >>> from optland.problems import saddle
        >>> with hessian(saddle()) as H:
        ...     H.matvec([torch.tensor([1.0, 1.0], dtype=torch.float64)])[0].tolist(), H.method
        ([2.0, -2.0], 'kept_graph')
    """
    if method != "auto" and method not in WAYS:
        raise ValueError(f"method {method!r} is not known; use 'auto', {', '.join(map(repr, WAYS))}")
    if method != "auto":
        return CurvatureOperator(objective, method, "asked for", fallback=False)
    chosen, reason = _choose(objective)
    return CurvatureOperator(objective, chosen, reason, fallback=True)


def declared_product_cost(objective: Objective, num_products: int, *, method: Method = "auto") -> float:
    """The most that ``num_products`` products can cost in gradient evaluations, set-up and fallback included."""
    chosen = _choose(objective)[0] if method == "auto" else method
    check = 0.0 if chosen == "finite_difference" else CHECK_GE
    cost = SETUP_GE[chosen] + num_products * HVP_GE[chosen] + check
    if method == "auto":  # the fallback is taken after the set-up, one product and the check were paid
        fallback = SETUP_GE["finite_difference"] + num_products * HVP_GE["finite_difference"]
        cost = max(cost, SETUP_GE[chosen] + HVP_GE[chosen] + check + fallback)
    return cost * objective.num_samples


class CurvatureOperator:
    """A symmetric matrix known by its products with vectors.

    Attributes:
        objective: What it is the curvature of.
        method: How products are computed now.
        reason: Why that method.
        num_products: Products computed so far.
        cost_ge: Gradient evaluations spent so far, the set-up included.
    """

    def __init__(self, objective: Objective, method: str, reason: str, *, fallback: bool) -> None:
        self.objective = objective
        self.method = method
        self.reason = reason
        self.num_products = 0
        self.cost_ge = 0.0
        self._fallback = fallback
        self._closed = False
        self._product: Product | None = None

    @property
    def dim(self) -> int:
        """Number of rows d."""
        return vectors.numel(self.objective.params)

    @property
    def product_ge(self) -> float:
        """Declared cost of one product in gradient evaluations."""
        return HVP_GE[self.method] * self.objective.num_samples

    @property
    def setup_ge(self) -> float:
        """Declared cost of what precedes the first product."""
        return SETUP_GE[self.method] * self.objective.num_samples

    @property
    def product_error(self) -> float:
        """Size of the error of a product with a unit vector; 0 where products are exact to rounding."""
        return 0.0 if self._product is None else self._product.error

    def matvec(self, v: Vector) -> list[Tensor]:
        """H v, a new vector in the shapes of the parameters.

        Raises:
            ValueError: ``v`` has other shapes than the trainable parameters.
            RuntimeError: The graph was kept and the weights have changed since, or the operator was closed.
        """
        if [t.shape for t in v] != [p.shape for p in self.objective.params]:
            raise ValueError(
                "v has other shapes than the trainable parameters: pass one tensor for each of them"
            )
        if self._closed:
            raise RuntimeError("this operator was closed; make a new one with hessian(objective)")
        spent, spent_on_objective = self.cost_ge, self.objective.cost_ge
        try:
            product = self._multiply(v)
        finally:  # the declared cost is charged, once, whatever passes the method made of it
            self.objective.cost_ge = spent_on_objective + self.cost_ge - spent
        self.num_products += 1
        return product

    def _multiply(self, v: Vector) -> list[Tensor]:
        if self._product is not None and self.num_products > 0:
            self.cost_ge += self.product_ge
            return self._product(v)
        try:
            return self._first_product(v)
        except RuntimeError as error:
            if not self._fallback:
                raise
            self.reason = f"{self.method} failed: {str(error).strip().splitlines()[0]}"
            self.method = "finite_difference"
            return self._first_product(v)

    def _first_product(self, v: Vector) -> list[Tensor]:
        self.cost_ge += self.setup_ge + self.product_ge
        self._product = WAYS[self.method](self.objective)
        product = self._product(v)
        if not self._product.trusted:
            self._compare(product, v)
        return product

    def _compare(self, product: Vector, v: Vector) -> None:
        """Hold a product through a backward written by hand against finite differences of gradients, once."""
        self.cost_ge += CHECK_GE * self.objective.num_samples
        check = FiniteDifference(self.objective)
        expected = check(v)
        apart = float(vectors.norm(vectors.subtract(product, expected)))
        allowed = DISAGREEMENT * float(vectors.norm(expected)) + 10 * check.error * float(vectors.norm(v))
        if not apart <= allowed:
            raise RuntimeError(
                f"a custom backward has no correct derivative: the product by {self.method} is {apart:.3g} away from "
                f"finite differences, {allowed:.3g} would be rounding; use method='finite_difference'"
            )

    def to_dense(self) -> Tensor:
        """The matrix itself, (d, d), from d products: for tests and very small models.

        Raises:
            ValueError: d is above 5000.
        """
        if self.dim > DENSE_LIMIT:
            raise ValueError(f"d = {self.dim} is too large for a dense matrix (at most {DENSE_LIMIT})")
        columns, like = [], self.objective.params
        for unit in torch.eye(self.dim, dtype=like[0].dtype, device=like[0].device):
            product = self.matvec(vectors.unflatten(unit, like))
            columns.append(vectors.flatten(product))
        return torch.stack(columns, dim=1)

    def close(self) -> None:
        """Free the kept graph; products raise from now on."""
        self._closed = True
        self._product = None

    def __enter__(self) -> CurvatureOperator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"CurvatureOperator(d={self.dim}, {self.method}: {self.reason}; {self.num_products} products, "
            f"{self.cost_ge:.0f} GE)"
        )


def _choose(objective: Objective) -> tuple[str, str]:
    """The method for this objective and the reason, from what is known before any pass."""
    batches, size = objective.batches, objective.num_samples * vectors.numel(objective.params)
    if any(hasattr(p, "full_tensor") for p in objective.params):
        return "finite_difference", "sharded parameters have no double backward"
    if not isinstance(batches, Sequence):
        return "double_backward", "the data are streamed"
    if len(batches) == 1:
        return "kept_graph", "one batch, whose graph a fresh product would need at once too"
    if objective.num_samples <= KEPT_SAMPLES and size <= KEPT_SIZE:
        return (
            "kept_graph",
            f"{objective.num_samples} samples x {vectors.numel(objective.params)} weights are few",
        )
    return "double_backward", "too much data to keep its graph"
