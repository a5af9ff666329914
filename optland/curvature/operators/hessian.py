r"""The Hessian of an objective as an operator: products with vectors, counted and paid for.

.. math:: H = \nabla^2 L(\theta), \qquad
          H v = \frac{1}{\sum_b \mathrm{count}_b} \sum_b \nabla^2\, \mathrm{sum}_b(\theta)\, v

**How.** ``method="auto"`` keeps the graph of the gradient where it fits (one batch, or little data),
otherwise builds it afresh for every batch of every product; when a kernel cannot be differentiated twice, or
the memory does not suffice, it takes finite differences of gradients. Which, and why, is in ``method`` and
``reason``. ``"forward_over_reverse"`` is for large models: exact, and without a graph of the gradient.

**Cost.** ``product_ge`` a product after ``setup_ge`` once, declared in gradient evaluations; memory of a kept
graph is about 2.5 times that of a training step on the same data.

**When.** Double backward and forward-over-reverse are exact to rounding. Finite differences carry an error
(``product_error``) of about 1e-4 relative in float32; half-precision weights are displaced in a float32 copy.

**Caveats.** A kept graph belongs to the weights it was built at; a product after the weights have moved
raises. In train mode dropout masks are replayed and BatchNorm uses the statistics of each batch. A custom
backward can be differentiated twice without an error and yet without its curvature, so where the graph holds
one the first product is held against finite differences.

**References.** Pearlmutter 1994 (products with the Hessian).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from optland import vectors
from optland.curvature.operators.finite_difference import FiniteDifference
from optland.curvature.operators.linear_operator import CurvatureOperator, OperatorCheck
from optland.curvature.operators.products import (
    HVP_GE,
    SETUP_GE,
    DoubleBackward,
    ForwardOverReverse,
    KeptGraph,
    Product,
)
from optland.objective import Objective
from optland.vectors import Vector

__all__ = [
    "CurvatureOperator",
    "Family",
    "Method",
    "OperatorCheck",
    "PassOperator",
    "declared_product_cost",
    "hessian",
]

Method = Literal["auto", "kept_graph", "double_backward", "forward_over_reverse", "finite_difference"]

KEPT_SAMPLES = 2048
"""Most samples whose graph ``auto`` keeps when they come in several batches."""

KEPT_SIZE = 2**28
"""Most samples times parameters whose graph ``auto`` keeps when they come in several batches."""

DISAGREEMENT = 0.05
"""Relative distance from finite differences, beside their own error, at which an exact product is refused."""


@dataclass(frozen=True, slots=True)
class Family:
    """The ways to multiply by one kind of matrix, with their declared costs a sample.

    Attributes:
        kind: Which matrix, in words.
        ways: Makes a product of an objective, by the name of the method.
        product_ge: Cost of a product.
        setup_ge: Cost of what comes with the first product.
    """

    kind: str
    ways: dict[str, Callable[[Objective], Product]]
    product_ge: dict[str, float]
    setup_ge: dict[str, float]

    @property
    def check_ge(self) -> float:
        """Cost of the check against finite differences that a model with a custom backward gets."""
        return self.first_ge("finite_difference")

    def first_ge(self, method: str) -> float:
        """Cost of the first product."""
        return self.setup_ge[method] + self.product_ge[method]

    def declared(self, objective: Objective, num_products: int, method: Method) -> float:
        """The most that ``num_products`` products can cost, set-up and fallbacks included."""
        chosen = _choose(objective)[0] if method == "auto" else method
        cost = self._run_ge(chosen, num_products)
        if (
            method == "auto"
        ):  # the fallback is taken after the set-up and one product; the check is its first product
            cost = max(cost, self.first_ge(chosen) + self._run_ge("finite_difference", num_products))
        return cost * objective.num_samples

    def _run_ge(self, method: str, num_products: int) -> float:
        check = 0.0 if method == "finite_difference" else self.check_ge
        return self.setup_ge[method] + num_products * self.product_ge[method] + check


HESSIAN = Family(
    "Hessian",
    {
        "kept_graph": KeptGraph,
        "double_backward": DoubleBackward,
        "forward_over_reverse": ForwardOverReverse,
        "finite_difference": FiniteDifference,
    },
    HVP_GE,
    SETUP_GE,
)


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
        >>> import torch
        >>> from optland.problems import saddle
        >>> with hessian(saddle()) as H:
        ...     H.matvec([torch.tensor([1.0, 1.0], dtype=torch.float64)])[0].tolist(), H.method
        ([2.0, -2.0], 'kept_graph')
    """
    return PassOperator(objective, HESSIAN, method)


def declared_product_cost(objective: Objective, num_products: int, *, method: Method = "auto") -> float:
    """The most that ``num_products`` products can cost in gradient evaluations, set-up and fallback included."""
    return HESSIAN.declared(objective, num_products, method)


class PassOperator(CurvatureOperator):
    """A curvature matrix whose products are passes through the model, in the way that suits it.

    Args:
        objective: Model, loss and data.
        family: Which matrix, and the ways to multiply by it.
        method: One of the ways, or ``"auto"``.

    Raises:
        ValueError: ``method`` is unknown.
    """

    def __init__(self, objective: Objective, family: Family, method: Method) -> None:
        if method != "auto" and method not in family.ways:
            known = ", ".join(map(repr, family.ways))
            raise ValueError(f"method {method!r} is not known; use 'auto', {known}")
        chosen, reason = _choose(objective) if method == "auto" else (method, "asked for")
        super().__init__(objective, chosen, reason)
        self.kind = family.kind
        self.family = family
        self._asked: Method = method
        self._fallback = method == "auto"
        self._product: Product | None = None
        self._check: tuple[Product, list[Tensor]] | None = None  # finite differences, and their product

    @property
    def product_ge(self) -> float:
        """Declared cost of one product in gradient evaluations."""
        return self.family.product_ge[self.method] * self.objective.num_samples

    @property
    def setup_ge(self) -> float:
        """Declared cost of what precedes the first product."""
        return self.family.setup_ge[self.method] * self.objective.num_samples

    @property
    def product_error(self) -> float:
        """Size of the error of a product with a unit vector; 0 where products are exact to rounding."""
        return 0.0 if self._product is None else self._product.error

    def restricted(self, indices: Sequence[int]) -> PassOperator:
        """The block of these parameters, whose products take gradients for them alone."""
        return PassOperator(self.objective.select(indices), self.family, self._asked)

    def on(self, objective: Objective) -> PassOperator:
        """The same matrix of other data at the same weights."""
        return PassOperator(objective, self.family, self._asked)

    def close(self) -> None:
        """Free the kept graph; products raise from now on."""
        super().close()
        self._product = None

    def _multiply(self, v: Vector) -> list[Tensor]:
        if self._product is not None and self.num_products > 0:
            self.cost_ge += self.product_ge
            return self._product(v)
        try:
            return self._first_product(v)
        except RuntimeError as error:
            if not self._fallback or self.method == "finite_difference":
                raise
            failure = str(error).strip().splitlines()[0]
        self._product = None  # frees what the failed way holds before the next one allocates anything
        self.reason = f"{self.method} failed: {failure}"
        self.method = "finite_difference"
        if self._check is not None:  # the check that failed has done and paid for this product
            self._product, product = self._check
            return product
        return self._first_product(v)

    def _first_product(self, v: Vector) -> list[Tensor]:
        self.cost_ge += self.setup_ge + self.product_ge
        self._product = self.family.ways[self.method](self.objective)
        product = self._product(v)
        if self._product.note:
            self.reason = f"{self.reason}; {self._product.note}"
        if not self._product.trusted:
            self._compare(product, v)
            self._check = None  # passed, and of no more use
        return product

    def _compare(self, product: Vector, v: Vector) -> None:
        """Hold a product through a backward written by hand against finite differences of gradients, once."""
        self.cost_ge += self.family.check_ge * self.objective.num_samples
        check = self.family.ways["finite_difference"](self.objective)
        expected = check(v)
        self._check = check, expected
        apart = float(vectors.norm(vectors.subtract(product, expected)))
        allowed = DISAGREEMENT * float(vectors.norm(expected)) + 10 * check.error * float(vectors.norm(v))
        if not apart <= allowed:
            raise RuntimeError(
                f"a custom backward has no correct derivative: the product by {self.method} is {apart:.3g} away from "
                f"finite differences, {allowed:.3g} would be rounding; use method='finite_difference'"
            )


def _choose(objective: Objective) -> tuple[Method, str]:
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
