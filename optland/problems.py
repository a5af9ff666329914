r"""Functions whose landscape is known in closed form: quadratics, saddles, valleys and linear models.

Each returns an :class:`~optland.objective.Objective`, so that a probe can be tried where the answer is known:

==========================  ==========================  ==================================================
problem                     loss                        closed form
==========================  ==========================  ==================================================
:func:`quadratic`           w'Aw / 2                    gradient Aw, Hessian A
:func:`saddle`              x^2 - y^2                   Hessian diag(2, -2), a saddle at the origin
:func:`two_factor`          (ab - 1)^2 / 2              Hessian [[b^2, 2ab-1], [2ab-1, a^2]];
                                                        on ab = 1 its eigenvalues are 0 and a^2 + b^2
:func:`linear_regression`   mean of the nk (x'W - y)^2  Hessian 2/(nk) I_k (x) X'X
==========================  ==========================  ==================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optland.objective import Objective

__all__ = [
    "Point",
    "function_objective",
    "linear_regression",
    "linear_regression_hessian",
    "quadratic",
    "saddle",
    "two_factor",
    "with_spectrum",
]


class Point(nn.Module):
    """A module whose output is its only parameter ``weight``: a point of R^d.

    Args:
        start: Where the point is, copied.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.detach().clone())

    def forward(self) -> Tensor:
        """The point itself."""
        return self.weight


def function_objective(loss: Callable[[Tensor], Tensor], start: Tensor) -> Objective:
    """The objective of a loss that is a function of the weights alone; its data is one empty sample.

    Example:
        >>> function_objective(lambda w: w.square().sum(), torch.ones(3)).value()
        3.0
    """

    def loss_fn(model: nn.Module, batch: Any) -> Any:
        return loss(model.get_parameter("weight"))

    return Objective(Point(start), loss_fn, [torch.zeros(1)], data="closed form")


def with_spectrum(eigenvalues: Sequence[float], *, seed: int = 0) -> Tensor:
    """A dense symmetric float64 matrix with these eigenvalues and random orthogonal eigenvectors.

    Example:
        >>> A = with_spectrum([5.0, 4.0, -8.0])
        >>> [round(x, 6) for x in torch.linalg.eigvalsh(A).tolist()]
        [-8.0, 4.0, 5.0]
    """
    values = torch.tensor(eigenvalues, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    A: Tensor = Q @ torch.diag(values) @ Q.T
    return (A + A.T) / 2


def quadratic(A: Tensor, start: Tensor | None = None) -> Objective:
    """L(w) = w'Aw / 2 at ``start`` (default: all ones): gradient Aw, Hessian A everywhere.

    Example:
        >>> L = quadratic(torch.diag(torch.tensor([2.0, -4.0])))
        >>> L.value(), L.gradient()[0].tolist()
        (-1.0, [2.0, -4.0])
    """
    start = torch.ones(A.shape[0], dtype=A.dtype) if start is None else start
    return function_objective(lambda w: 0.5 * w @ (A @ w), start)


def saddle(x: float = 0.0, y: float = 0.0) -> Objective:
    """L(x, y) = x^2 - y^2: a strict saddle at the origin, Hessian diag(2, -2), unbounded below along y.

    Example:
        >>> saddle(1.0, 2.0).value()
        -3.0
    """
    start = torch.tensor([x, y], dtype=torch.float64)
    return function_objective(lambda w: w[0] ** 2 - w[1] ** 2, start)


def two_factor(a: float, b: float) -> Objective:
    """L(a, b) = (ab - 1)^2 / 2: the smallest deep linear network, with a valley of minima on ab = 1.

    Example:
        >>> L = two_factor(2.0, 0.5)
        >>> L.value(), [g.tolist() for g in L.gradient()]
        (0.0, [[0.0, 0.0]])
    """
    start = torch.tensor([a, b], dtype=torch.float64)
    return function_objective(lambda w: 0.5 * (w[0] * w[1] - 1.0) ** 2, start)


def linear_regression(
    X: Tensor, Y: Tensor, *, sizes: Sequence[int] | None = None, reduction: str = "mean"
) -> Objective:
    """Mean squared error of a linear model without bias on (n, p) inputs and (n, k) targets, in batches.

    Args:
        X: Inputs, (n, p).
        Y: Targets, (n, k).
        sizes: Batch sizes, which may be ragged; one batch by default.
        reduction: ``"mean"`` gives the batch mean, ``"sum"`` the pair (sum over samples, count): the same
            function.

    Example:
        >>> L = linear_regression(torch.eye(2), torch.ones(2, 1), sizes=[1, 1])
        >>> linear_regression_hessian(torch.eye(2), 1)
        tensor([[1., 0.],
                [0., 1.]])
    """
    model = nn.Linear(X.shape[1], Y.shape[1], bias=False, dtype=X.dtype)
    nn.init.zeros_(model.weight)

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Any:
        x, y = batch
        per_sample = (model(x) - y).square().mean(dim=1)
        return per_sample.mean() if reduction == "mean" else (per_sample.sum(), len(x))

    sizes = [len(X)] if sizes is None else list(sizes)
    batches = list(zip(torch.split(X, sizes), torch.split(Y, sizes), strict=True))
    return Objective(model, loss_fn, batches)


def linear_regression_hessian(X: Tensor, outputs: int) -> Tensor:
    """Hessian of :func:`linear_regression` in the order of ``weight`` (k, p): 2/(nk) I_k (x) X'X."""
    gram = 2.0 / (X.shape[0] * outputs) * (X.T @ X)
    return torch.kron(torch.eye(outputs, dtype=X.dtype), gram)
