r"""A symmetric matrix given as a function that multiplies a vector by it.

.. math:: v \mapsto A v, \qquad A = A^T

**When.** A matrix that exists already, a Hessian product of one's own, a matrix of another package: eigenvalues, traces
and densities of it have the errors and certificates that those of a Hessian have. **When not.** For the Hessian,
Gauss-Newton or Fisher matrix of an objective: those have their cost declared and their products checked.

**Caveats.** The function must be linear, symmetric and give the same product twice;
``FunctionOperator(...).check()`` looks. It says nothing of its own error: products that are not exact to rounding need
a subclass of :class:`~optland.curvature.operators.linear_operator.SymmetricOperator` with ``product_error``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.vectors import Vector

__all__ = ["FunctionOperator"]


class FunctionOperator(SymmetricOperator):
    """The symmetric matrix that a function multiplies by.

    Args:
        fn: v -> A v. It takes and gives what ``like`` is: one tensor of its shape, or a list of tensors. It may record
            graphs; what it gives is copied and detached.
        like: A tensor, or several such as ``model.parameters()``, with the shapes, types and devices of the vectors;
            their values are not read.
        product_ge: Gradient evaluations that one product costs.
        kind: Which matrix it is, in words.

    Raises:
        TypeError: ``like`` holds something else than real floating-point tensors.
        ValueError: ``like`` is empty.

    Example:
        >>> from optland.curvature import lanczos
        >>> A = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        >>> H = FunctionOperator(lambda v: A @ v, like=A[0])
        >>> (H @ A[0]).tolist()
        [5.0, 4.0]
        >>> [round(value.value, 9) for value in lanczos(H, ends="both").values]
        [3.0, 1.0]
    """

    method = "function"

    def __init__(
        self,
        fn: Callable[[Any], Any],
        like: Tensor | Iterable[Tensor],
        *,
        product_ge: float = 0.0,
        kind: str = "matrix",
    ) -> None:
        super().__init__()
        self.fn, self.product_ge, self.kind = fn, product_ge, kind
        self.reason = getattr(fn, "__name__", type(fn).__name__)
        self._is_one = isinstance(like, Tensor)
        self._like = [like] if isinstance(like, Tensor) else list(like)
        wrong = [t for t in self._like if not isinstance(t, Tensor) or not t.is_floating_point()]
        if wrong:
            what = wrong[0].dtype if isinstance(wrong[0], Tensor) else type(wrong[0]).__name__
            raise TypeError(f"like holds a {what}; pass floating-point tensors in the shapes of the vectors")
        if not sum(t.numel() for t in self._like):
            raise ValueError("like has no entries; pass a tensor, or several, in the shapes of the vectors")

    @property
    def like(self) -> list[Tensor]:
        """The tensors that were given."""
        return self._like

    def _matvec(self, v: Vector) -> list[Tensor]:
        self.cost_ge += self.product_ge
        with torch.enable_grad():  # a probe may have turned it off, and a product by autograd needs it
            product = self.fn(v[0] if self._is_one else list(v))
        given = [product] if self._is_one else product
        if not isinstance(given, list | tuple) or not all(isinstance(t, Tensor) for t in given):
            wanted = "one tensor" if self._is_one else "a list of tensors"
            raise TypeError(
                f"the function gave a {type(product).__name__}; like is {wanted}, so a product is one too"
            )
        return [t.detach().clone() for t in given]  # it may be v itself, or what the function keeps
