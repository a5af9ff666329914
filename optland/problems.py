r"""Functions whose landscape is known in closed form: quadratics, saddles, valleys and linear models.

Each returns an :class:`~optland.objective.Objective`, so that a probe can be tried where the answer is known:

===========================  ===========================  ================================================
problem                      loss                         closed form
===========================  ===========================  ================================================
:func:`quadratic`            w'Aw / 2                     gradient Aw, Hessian A
:func:`saddle`               x^2 - y^2                    Hessian diag(2, -2), a saddle at the origin
:func:`two_factor`           (ab - 1)^2 / 2               Hessian [[b^2, 2ab-1], [2ab-1, a^2]];
                                                          on ab = 1 its eigenvalues are 0 and a^2 + b^2
:func:`monkey_saddle`        x^3 - 3xy^2                  gradient and Hessian 0 at the origin, no minimum
:func:`flat_bowl`            sum_i w_i^4                  gradient and Hessian 0 at the origin, a minimum
:func:`gradient_flat`        x + y^2 / 2                  Hg = 0 on y = 0, no critical point anywhere
:func:`separable_products`   sum_i (a_i b_i - s_i)^2 / 2  critical points of every index from 0 to m
:func:`linear_network`       |W_k ... W_1 - M|^2 / 2      at the origin index h rank(M); Hessian 0 if k > 2
:func:`linear_regression`    mean of the nk (x'W - y)^2   Hessian 2/(nk) I_k (x) X'X
===========================  ===========================  ================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from optland.objective import Objective

__all__ = [
    "Point",
    "flat_bowl",
    "function_objective",
    "gradient_flat",
    "linear_network",
    "linear_regression",
    "linear_regression_hessian",
    "monkey_saddle",
    "quadratic",
    "saddle",
    "separable_products",
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
        return loss(model())

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


def monkey_saddle(x: float = 0.0, y: float = 0.0) -> Objective:
    """L(x, y) = x^3 - 3xy^2: at the origin gradient and Hessian are 0, and yet the loss falls in three directions.

    The Hessian is [[6x, -6y], [-6y, -6x]], with eigenvalues +-6 sqrt(x^2 + y^2): degenerate at the origin, a saddle
    of index 1 in shape everywhere else.

    Example:
        >>> monkey_saddle().gradient()[0].tolist(), monkey_saddle(-1.0).value()
        ([0.0, 0.0], -1.0)
    """
    start = torch.tensor([x, y], dtype=torch.float64)
    return function_objective(lambda w: w[0] ** 3 - 3 * w[0] * w[1] ** 2, start)


def flat_bowl(power: int = 4, d: int = 2, at: float = 0.0) -> Objective:
    """L(w) = sum_i w_i^power at w = (at, ..., at): a minimum that the Hessian does not see when power > 2.

    At the origin gradient and Hessian are 0 from power 3 on; an odd power makes the origin no minimum at all.

    Example:
        >>> flat_bowl(4).value(), flat_bowl(4).gradient()[0].tolist()
        (0.0, [0.0, 0.0])
    """
    return function_objective(lambda w: w.pow(power).sum(), torch.full((d,), at, dtype=torch.float64))


def gradient_flat(x: float = 0.0, y: float = 0.0) -> Objective:
    """L(x, y) = x + y^2 / 2: on y = 0 the gradient (1, 0) lies in the kernel of the Hessian diag(0, 1).

    There |g|^2 is stationary although the loss has no critical point anywhere: the trap of methods that minimise the
    norm of the gradient (Frye et al. 2021, arXiv:2003.10397).

    Example:
        >>> gradient_flat().gradient()[0].tolist()
        [1.0, 0.0]
    """
    start = torch.tensor([x, y], dtype=torch.float64)
    return function_objective(lambda w: w[0] + 0.5 * w[1] ** 2, start)


def separable_products(s: Sequence[float], at_origin: Sequence[bool] | None = None) -> Objective:
    """L(a, b) = sum_i (a_i b_i - s_i)^2 / 2 at one of its 2^m kinds of critical point; w = (a_1..a_m, b_1..b_m).

    Where ``at_origin`` holds, the pair is (0, 0), with eigenvalues +-s_i; elsewhere it lies on a_i b_i = s_i, at
    (sqrt |s_i|, s_i / sqrt |s_i|), with eigenvalues 0 and a_i^2 + b_i^2 = 2 |s_i|. With all s_i different from 0 the
    index is the number of pairs at the origin, and the nullity the number of the others. The loss is the sum of
    s_i^2 / 2 over the pairs at the origin. Every minimum is global and every other critical point a strict saddle.

    Args:
        s: Targets, m numbers different from 0.
        at_origin: Which pairs start at the origin; all by default.

    Example:
        >>> L = separable_products([2.0, 1.0], [True, False])
        >>> L.value(), float(L.gradient()[0].abs().max())
        (2.0, 0.0)
    """
    target = torch.tensor(list(s), dtype=torch.float64)
    asleep = torch.ones_like(target) if at_origin is None else torch.tensor(list(at_origin)).to(target)
    root = target.abs().sqrt()
    a, b = (1 - asleep) * root, (1 - asleep) * target / root
    m = len(target)
    return function_objective(lambda w: 0.5 * (w[:m] * w[m:] - target).square().sum(), torch.cat([a, b]))


def linear_network(M: Tensor, hidden: Sequence[int]) -> Objective:
    """L(W_1, ..., W_k) = |W_k ... W_1 - M|^2 / 2 at the origin, one hidden width between each two matrices.

    The gradient at the origin is 0 from two matrices on. With two, the eigenvalues of the Hessian are +-s_i(M), each h
    times, and 0: index h rank(M), trace 0, smallest eigenvalue -s_1(M). With three or more the Hessian is 0 as well,
    though the origin is no minimum (Kawaguchi 2016, arXiv:1605.07110).

    Args:
        M: The target, (out, in).
        hidden: Widths h between the matrices, at least one.

    Example:
        >>> linear_network(torch.eye(2, dtype=torch.float64), [3]).value()
        1.0
    """
    widths = [M.shape[1], *hidden, M.shape[0]]
    layers = [nn.Linear(a, b, bias=False, dtype=M.dtype) for a, b in pairwise(widths)]
    for layer in layers:
        nn.init.zeros_(layer.weight)
    inputs = torch.eye(M.shape[1], dtype=M.dtype)

    def loss_fn(model: nn.Module, batch: Any) -> Any:
        return 0.5 * (model(inputs) - M.T).square().sum()

    return Objective(nn.Sequential(*layers), loss_fn, [torch.zeros(1)], data="closed form")


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
