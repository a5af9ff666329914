r"""Operators made from operators: in another metric, preconditioned, shifted, restricted to some parameters.

.. math:: P^{-1/2} H P^{-1/2}, \qquad T H T, \qquad H + \sigma I, \qquad H_{BB}

**Cost.** A product is one product of the operator underneath, which is charged once; a block takes gradients
for its own parameters alone, though its declared cost is that of the whole.

**When.** Preconditioned: how far an adaptive optimizer is from its edge of stability. In the metric of the
weights: adaptive sharpness, which rescaling a homogeneous layer leaves alone. Blocks: which layer is sharp.

**Caveats.** T and P are read when the operator is made: make it again after a step. Adaptive sharpness does
not change under rescalings, but does under other reparametrisations, and weights at zero drop out of it.

**References.** Cohen et al. 2022, arXiv:2207.14484; Kwon et al. 2021, arXiv:2102.11600 (adaptive sharpness).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor

from optland import vectors
from optland.curvature.operators.linear_operator import SymmetricOperator, Through
from optland.curvature.operators.preconditioner import innermost, preconditioner
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["in_metric", "per_layer", "preconditioned", "shifted", "subset"]


def preconditioned(H: SymmetricOperator, optimizer: Any) -> SymmetricOperator:
    """P^(-1/2) H P^(-1/2), whose largest eigenvalue decides whether ``optimizer`` is stable.

    It has the eigenvalues of P^(-1) H and is symmetric; its eigenvectors are P^(1/2) times those of P^(-1) H.

    Args:
        H: The operator.
        optimizer: SGD (P = 1), Adam, AdamW, RMSprop or Adagrad after a step, or a wrapper of one; or P itself, one
            positive tensor for each parameter.

    Returns:
        The operator, for P of now.

    Raises:
        TypeError: The optimizer's P is not known.
        ValueError: No step was made yet, parameters do not match, or P is not positive.

    Example:
        >>> from optland.curvature.operators.hessian import hessian
        >>> from optland.problems import saddle
        >>> P = [torch.tensor([4.0, 0.25], dtype=torch.float64)]
        >>> preconditioned(hessian(saddle()), P).to_dense().diagonal().tolist()
        [0.5, -8.0]
    """
    if isinstance(optimizer, Sequence):
        P, owner = list(optimizer), "a given diagonal"
    else:
        P, owner = (
            preconditioner(optimizer, _objective_of(H, "P itself, one tensor for each")),
            type(innermost(optimizer)).__name__,
        )
    P = _checked_diagonal(H, P, "P")
    if not all(bool((t > 0).all()) for t in P):
        raise ValueError("P has entries that are not positive; a preconditioner divides by them")
    return _Scaled(H, [t.rsqrt() for t in P], f"{H.kind} preconditioned by {owner}")


def in_metric(H: SymmetricOperator, T: Vector | Literal["weights"]) -> SymmetricOperator:
    r"""T H T for a diagonal T: the curvature with steps measured in units of T.

    Args:
        H: The operator.
        T: One tensor for each parameter, or ``"weights"`` for \\|theta\\|, the metric of adaptive sharpness.

    Returns:
        The operator, for T of now.

    Raises:
        ValueError: T has other shapes than the parameters, or is another name.

    Example:
        On the valley ab = 1 adaptive sharpness is 2 everywhere, though the Hessian's is a^2 + b^2.

        >>> from optland.curvature.operators.hessian import hessian
        >>> from optland.problems.critical import two_factor
        >>> A = in_metric(hessian(two_factor(4.0, 0.25)), "weights")
        >>> torch.linalg.eigvalsh(A.to_dense()).tolist()
        [0.0, 2.0]
    """
    if isinstance(T, str):
        if T != "weights":
            raise ValueError(f"T={T!r} is not known; use 'weights' or one tensor for each parameter")
        _objective_of(H, "T itself, one tensor for each")
        return _Scaled(H, [p.detach().abs() for p in H.like], f"{H.kind} in the metric of the weights")
    T = _checked_diagonal(H, T, "T")
    return _Scaled(H, list(T), f"{H.kind} in a diagonal metric")


def shifted(H: SymmetricOperator, sigma: float, *, note: str = "") -> SymmetricOperator:
    """H + sigma I: every eigenvalue moves by sigma.

    Args:
        H: The operator.
        sigma: The shift, in the unit of the curvature.
        note: Words for ``kind``, such as why.

    Example:
        >>> from optland.curvature.operators.hessian import hessian
        >>> from optland.problems import saddle
        >>> shifted(hessian(saddle()), 0.5).to_dense().diagonal().tolist()
        [2.5, -1.5]
    """
    kind = note or f"{H.kind} {'-' if sigma < 0 else '+'} {abs(sigma):g} I"
    return _Shifted(H, [torch.full((), sigma, dtype=t.dtype, device=t.device) for t in H.like], kind)


def subset(
    H: SymmetricOperator, names: str | Sequence[str] | Callable[[str, Tensor], bool]
) -> SymmetricOperator:
    """The diagonal block of some parameters, the others held where they are.

    Args:
        H: The operator.
        names: A glob pattern over parameter names or several (``"layer1.*"``, ``"*.weight"``), or a
        predicate of name and
            parameter.

    Returns:
        An operator on those parameters alone: ``like`` and ``dim`` are theirs.

    Raises:
        ValueError: A pattern matches nothing, or nothing is left.

    Example:
        >>> from optland.curvature.operators.hessian import hessian
        >>> from optland.problems import linear_regression
        >>> H = hessian(linear_regression(torch.eye(2), torch.ones(2, 1)))
        >>> subset(H, "*weight").dim
        2
    """
    all_names, params = H.names, H.like
    if callable(names):
        return H.restricted(
            [i for i, (n, p) in enumerate(zip(all_names, params, strict=True)) if names(n, p)]
        )
    patterns = [names] if isinstance(names, str) else list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in all_names):
            raise ValueError(f"{pattern!r} matches no parameter; the names are {', '.join(all_names)}")
    return H.restricted(
        [i for i, name in enumerate(all_names) if any(fnmatchcase(name, p) for p in patterns)]
    )


def per_layer(H: SymmetricOperator) -> dict[str, SymmetricOperator]:
    """The diagonal block of every module that has parameters of its own, by its name.

    Args:
        H: The operator of the whole model.

    Returns:
        Operators by module name, in the model's order.

    Example:
        >>> from optland.curvature.operators.hessian import hessian
        >>> from optland.objective import Objective
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> L = Objective(net, lambda m, x: m(x).square().mean(), [torch.ones(4, 2)])
        >>> {name: block.dim for name, block in per_layer(hessian(L)).items()}
        {'0': 9, '2': 4}
    """
    layers: dict[str, list[int]] = {}
    for i, name in enumerate(H.names):
        layers.setdefault(name.rpartition(".")[0], []).append(i)
    return {layer: H.restricted(indices) for layer, indices in layers.items()}


class _Transformed(Through):
    """An operator that closes the one underneath with itself."""

    def close(self) -> None:
        """Close the operator underneath too."""
        super().close()
        self.inner.close()


class _Scaled(_Transformed):
    """D A D for a diagonal D."""

    def __init__(self, H: SymmetricOperator, D: list[Tensor], kind: str) -> None:
        super().__init__(H, kind)
        self.D = D

    def _matvec(self, v: Vector) -> list[Tensor]:
        return self._scaled(self._through(self._scaled(v)))

    def _scaled(self, v: Vector) -> list[Tensor]:
        return [(d * t).to(like.dtype) for d, t, like in zip(self.D, v, self.like, strict=True)]

    @property
    def product_error(self) -> float:
        """At most the largest entry of D squared times that of the operator underneath."""
        if self.inner.product_error == 0.0:
            return 0.0
        return max(float(d.abs().max()) for d in self.D if d.numel()) ** 2 * self.inner.product_error

    def on(self, objective: Objective) -> SymmetricOperator | None:
        inner = self.inner.on(objective)
        return None if inner is None else _Scaled(inner, self.D, self.kind)

    def restricted(self, indices: Sequence[int]) -> SymmetricOperator:
        return _Scaled(self.inner.restricted(indices), [self.D[i] for i in indices], self.kind)


class _Shifted(_Transformed):
    """A + sum of a multiple of the identity on every parameter."""

    def __init__(self, H: SymmetricOperator, shifts: list[Tensor], kind: str) -> None:
        super().__init__(H, kind)
        self.shifts = shifts

    def _matvec(self, v: Vector) -> list[Tensor]:
        product = self._through(v)
        return [a + s * t.to(a.dtype) for a, s, t in zip(product, self.shifts, v, strict=True)]

    def on(self, objective: Objective) -> SymmetricOperator | None:
        inner = self.inner.on(objective)
        return None if inner is None else _Shifted(inner, self.shifts, self.kind)

    def restricted(self, indices: Sequence[int]) -> SymmetricOperator:
        return _Shifted(self.inner.restricted(indices), [self.shifts[i] for i in indices], self.kind)


def _checked_diagonal(H: SymmetricOperator, D: Vector, name: str) -> list[Tensor]:
    entries = vectors.require_shapes(D, H.like, name)
    if not bool(torch.isfinite(vectors.norm(entries))):
        raise ValueError(f"{name} has entries that are not finite")
    return entries


def _objective_of(H: SymmetricOperator, instead: str) -> Objective:
    """The objective whose weights are meant, if any."""
    if H.objective is None:
        raise ValueError(
            f"this {type(H).__name__} is the curvature of no objective and has no weights; use {instead}"
        )
    return H.objective
