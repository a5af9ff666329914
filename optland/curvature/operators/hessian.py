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
raises. In train mode dropout masks are replayed and BatchNorm uses the statistics of each batch. Second derivatives
are not trusted unseen: the first operator on a kind of graph holds one product against differences of gradients
(:mod:`optland.curvature.operators.trust`), and ``auto`` falls back where they are wrong. Weights in half precision get
a float32 copy of the model; only the product is rounded to their type.

**References.** Pearlmutter 1994 (products with the Hessian).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from optland import vectors
from optland.context.notes import Verdict
from optland.curvature.operators.finite_difference import FiniteDifference
from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.curvature.operators.products import (
    HVP_GE,
    SETUP_GE,
    DoubleBackward,
    ForwardOverReverse,
    KeptGraph,
    Product,
)
from optland.curvature.operators.trust import Differences, Ways, a_part, compare, kind_of
from optland.objective import Objective
from optland.vectors import Vector

__all__ = [
    "CurvatureOperator",
    "Family",
    "Method",
    "declared_product_cost",
    "hessian",
]

Method = Literal["auto", "kept_graph", "double_backward", "forward_over_reverse", "finite_difference"]

KEPT_SAMPLES = 2048
"""Most samples whose graph ``auto`` keeps when they come in several batches."""

KEPT_SIZE = 2**28
"""Most samples times parameters whose graph ``auto`` keeps when they come in several batches."""

MORE_GE = 4.0
"""What a comparison may take beside its product and differences: a gradient and some forwards of the second look."""

HALF_BITS = 16


@dataclass(frozen=True, slots=True)
class Family:
    """The ways to multiply by one kind of matrix, with their declared costs per sample.

    Attributes:
        kind: Which matrix, in words.
        ways: Makes a product of an objective, by the name of the method.
        product_ge: Cost of a product.
        setup_ge: Cost of what comes with the first product.
        differences: A product from first derivatives with a given step, for the comparison of the exact ways.
        difference_ge: Its cost.
    """

    kind: str
    ways: dict[str, Callable[[Objective], Product]]
    product_ge: dict[str, float]
    setup_ge: dict[str, float]
    differences: Differences
    difference_ge: float

    def check_ge(self, objective: Objective, method: str) -> float:
        """The most that the comparison with differences costs in all, which each kind of graph gets once.

        Args:
            objective: Its samples are the unit; the comparison uses a part of its data where that is large.
            method: One of the ways.

        Returns:
            Gradient evaluations, not per sample.
        """
        second = max(3 * self.difference_ge + self.first_ge(method), self.first_ge("finite_difference"))
        part = a_part(objective)
        samples = objective.num_samples if part is None else part.num_samples
        return (self.first_ge(method) + self.difference_ge + second + MORE_GE) * samples

    def first_ge(self, method: str) -> float:
        """Cost of the first product.

        Args:
            method: One of the ways.

        Returns:
            Gradient evaluations per sample, set-up included.
        """
        return self.setup_ge[method] + self.product_ge[method]

    def declared(self, objective: Objective, num_matvecs: int, method: Method) -> float:
        """The most that ``num_matvecs`` products can cost, set-up, comparison and fallbacks included.

        Args:
            objective: Its samples are the unit.
            num_matvecs: How many.
            method: One of the ways, or ``"auto"``.

        Returns:
            Gradient evaluations; without the comparison where this kind of graph has been found right before.
        """
        chosen = _choose(objective)[0] if method == "auto" else method
        check = 0.0 if self._is_trusted(objective, chosen) else self.check_ge(objective, chosen)
        cost = self._run_ge(chosen, num_matvecs)
        if method == "auto":  # the fallback is taken after the set-up, one product and the comparison
            cost = max(cost, self.first_ge(chosen) + self._run_ge("finite_difference", num_matvecs))
        return cost * objective.num_samples + check

    def _run_ge(self, method: str, num_matvecs: int) -> float:
        return self.setup_ge[method] + num_matvecs * self.product_ge[method]

    def _is_trusted(self, objective: Objective, method: str) -> bool:
        derived = DERIVED[method]
        kind = kind_of(objective, self.kind, derived)
        return not derived or objective.notes.verdict(kind, objective.names) is not None


DERIVED = {
    "kept_graph": "reverse", "double_backward": "reverse", "forward_over_reverse": "forward", "finite_difference": "",
}  # fmt: skip
"""Which second derivatives a method takes."""


def _gradient_difference(objective: Objective, u: Vector, h: float) -> list[Tensor]:
    ahead, behind = (objective.gradient(objective.displaced(u, t)) for t in (h, -h))
    return vectors.scaled(1.0 / (2 * h), vectors.subtract(ahead, behind))


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
    _gradient_difference,
    2.0,
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
    return CurvatureOperator(objective, HESSIAN, method)


def declared_product_cost(objective: Objective, num_matvecs: int, *, method: Method = "auto") -> float:
    """The most that ``num_matvecs`` products can cost in gradient evaluations, set-up and fallback included.

    Args:
        objective: Its samples are the unit.
        num_matvecs: How many.
        method: How they are computed.
    """
    return HESSIAN.declared(objective, num_matvecs, method)


class CurvatureOperator(SymmetricOperator):
    """A curvature matrix of an objective, whose products are passes through the model, by the method that suits it.

    Args:
        objective: Model, loss and data.
        family: Which matrix, and the ways to multiply by it.
        method: One of the ways, or ``"auto"``.

    Attributes:
        objective: What it is the curvature of.

    Raises:
        ValueError: ``method`` is unknown.
    """

    def __init__(self, objective: Objective, family: Family, method: Method) -> None:
        if method != "auto" and method not in family.ways:
            known = ", ".join(map(repr, family.ways))
            raise ValueError(f"method {method!r} is not known; use 'auto', {known}")
        chosen, reason = _choose(objective) if method == "auto" else (method, "asked for")
        super().__init__()
        self.objective: Objective = objective
        self.kind, self.method, self.reason = family.kind, chosen, reason
        self.family = family
        self._asked: Method = method
        self._fallback = method == "auto"
        self._product: Product | None = None
        self._rounding = 0.0  # of products, relative to them, where it is more than that of their type
        self._largest = 0.0  # product with a unit vector so far, where that matters

    @property
    def like(self) -> list[Tensor]:
        """The parameters of the objective."""
        return self.objective.params

    @property
    def names(self) -> list[str]:
        """Their names in the model."""
        return self.objective.names

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
        return 0.0 if self._product is None else max(self._product.error, self._rounding * self._largest)

    def restricted(self, indices: Sequence[int]) -> CurvatureOperator:
        """The block of these parameters, whose products take gradients for them alone."""
        return CurvatureOperator(self.objective.select(indices), self.family, self._asked)

    def on(self, objective: Objective) -> CurvatureOperator:
        """The same matrix of other data at the same weights."""
        return CurvatureOperator(objective, self.family, self._asked)

    def close(self) -> None:
        """Free the kept graph; products raise from now on."""
        super().close()
        self._product = None

    def _matvec(self, v: Vector) -> list[Tensor]:
        if self._product is not None and self.num_matvecs > 0:
            self.cost_ge += self.product_ge
            return self._measured(self._product(v), v)
        try:
            return self._first_product(v)
        except RuntimeError as error:
            if not self._fallback or self.method == "finite_difference":
                raise
            failure = str(error).strip().splitlines()[0]
        self._product = None  # frees what the failed way holds before the next one allocates anything
        self.reason = f"{self.method} failed: {failure}"
        self.method = "finite_difference"
        return self._first_product(v)

    def _first_product(self, v: Vector) -> list[Tensor]:
        self.cost_ge += self.setup_ge + self.product_ge
        self._product = self._made(self.objective)
        product = self._product(v)
        if self._product.derived:
            self._require_same_graphs(self._product)
            self._require_trust(self._product)
        self._say(self._product.note)
        if self.objective.rewritten:
            self._say(f"the forward rewrites {self.objective.rewritten}: derivatives at what it leaves")
        return self._measured(product, v)

    def _measured(self, product: list[Tensor], v: Vector) -> list[Tensor]:
        if self._rounding > 0:
            length = float(vectors.norm(v))
            size = float(vectors.norm(product)) / length if length > 0 else 0.0
            self._largest = max(self._largest, size)
        return product

    def _made(self, objective: Objective) -> Product:
        way = self.family.ways[self.method]
        is_half = torch.finfo(objective.params[0].dtype).bits <= HALF_BITS
        if is_half and self.method != "finite_difference":  # which has a float32 copy of its own
            return InFloat32(objective, way)
        return way(objective)

    def _say(self, words: str) -> None:
        if words:
            self.reason = f"{self.reason}; {words}"

    def _require_same_graphs(self, product: Product) -> None:
        """What is compared depends on the graphs; several processes have to decide alike."""
        if self.objective.ranks is not None:
            product.graphs = self.objective.ranks.union(product.graphs)

    def _require_trust(self, product: Product) -> None:
        """Compare, where this kind of graph has no verdict yet, and act on it."""
        L = self.objective
        kind = kind_of(L, self.family.kind, product.derived)
        found = L.notes.verdict(kind, L.names, product.graphs)
        if L.ranks is not None and L.ranks.any(found is None, L.params[0].device):
            found = None  # one that knows more, from data of its own, compares once more with the others
        if found is None:
            compared = self._compared(product)
            if compared is None:
                return
            found = replace(compared, names=frozenset(L.names))
            L.notes.keep(kind, found)
        if found.fault and self._asked != "auto" and not found.of_loss:
            self._say(f"{found.fault}; what is detached is held still")
        elif found.fault and not found.of_loss:
            raise ValueError(
                f"{found.fault}. There is no Hessian of the loss in such gradients; with method='double_backward' "
                "products treat detached values as constants"
            )
        elif found.fault:
            raise RuntimeError(f"{found.fault}; use method='finite_difference'")
        self._rounding = found.rounding
        self._say(found.note)

    def _compared(self, product: Product) -> Verdict | None:
        """A comparison on some samples of the first batch, or on all data where these make other graphs."""
        part = a_part(self.objective)
        if part is not None:
            try:
                found, graphs = self._compare(self._made(part), self.family.first_ge(self.method))
            except (IndexError, RuntimeError, TypeError, ValueError):  # a batch that cannot be cut like that
                found, graphs = None, set()
            if found is not None and product.graphs <= graphs:
                return found
        return self._compare(product, self.family.product_ge[self.method])[0]

    def _compare(self, product: Product, product_ge: float) -> tuple[Verdict | None, set[str]]:
        family = self.family
        ways = Ways(
            family.ways[self.method], family.first_ge(self.method), family.ways["finite_difference"],
            family.first_ge("finite_difference"), family.differences, family.difference_ge,
        )  # fmt: skip
        compared = compare(product, ways)
        ge = product_ge + family.difference_ge + compared.cost_ge
        self.cost_ge += ge * product.objective.num_samples
        self._require_same_graphs(product)
        return compared.verdict, product.graphs


class InFloat32(Product):
    """Products of weights in half precision, computed on a float32 copy of the model; only their result is rounded.

    Args:
        objective: In half precision.
        way: Makes the product on the copy.

    Raises:
        ValueError: The loss cannot be evaluated on a float32 copy.
    """

    def __init__(self, objective: Objective, way: Callable[[Objective], Product]) -> None:
        self._source = objective
        super().__init__(objective.cast(torch.float32))
        self._eps = float(torch.finfo(objective.params[0].dtype).eps)
        self._weights = self._fingerprint()
        try:
            self._way = way(self.objective)
        except RuntimeError as error:
            raise ValueError(
                f"the weights are in {objective.dtype}, and the loss cannot be evaluated on a float32 copy of the "
                f"model ({str(error).splitlines()[0]}); let loss_fn cast its tensors to the type of the outputs"
            ) from error
        self.derived, self.graphs = self._way.derived, self._way.graphs

    def __call__(self, v: Vector) -> list[Tensor]:
        """H v at the present weights, rounded to their type."""
        if self._fingerprint() != self._weights:
            if isinstance(self._way, KeptGraph):
                raise RuntimeError(
                    "the weights have changed since this operator kept its graph; make a new one, or use "
                    "method='double_backward', which reads the weights at every product"
                )
            self._weights = self._fingerprint()
            self.objective.refresh(self._source)
        wide = self._way([t.float() for t in v])
        length = float(vectors.norm(v))
        if length > 0:
            self.error = max(self.error, self._eps * float(vectors.norm(wide)) / length)
        return [t.to(p.dtype) for t, p in zip(wide, self._source.params, strict=True)]

    def _fingerprint(self) -> list[tuple[int, int, int]]:
        L = self._source
        return [(p.data_ptr(), p._version, L.location) for p in L.params]


def _choose(objective: Objective) -> tuple[Method, str]:
    """The method for this objective and the reason, from what is known before any pass."""
    batches, size = objective.own_batches, objective.num_samples * vectors.numel(objective.params)
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
