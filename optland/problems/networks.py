"""Linear models and nets: regression, deep linear nets, and an autoencoder that starts on a plateau."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from optland.objective import Objective

__all__ = [
    "deep_autoencoder",
    "linear_network",
    "linear_regression",
    "linear_regression_hessian",
    "matrix_factorisation",
]


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
    """Hessian of :func:`linear_regression` in the order of ``weight`` (k, p): 2/(nk) I_k (x) X'X.

    Args:
        X: Inputs (n, p).
        outputs: Number k of targets of a sample.

    Returns:
        (kp, kp) in the type of ``X``.

    Example:
        >>> linear_regression_hessian(torch.tensor([[1.0], [2.0]]), 1)  # 2/n x'x
        tensor([[5.]])
    """
    gram = 2.0 / (X.shape[0] * outputs) * (X.T @ X)
    return torch.kron(torch.eye(outputs, dtype=X.dtype), gram)


def matrix_factorisation(M: Tensor, rank: int) -> Objective:
    """L(V, U) = |UV - M|^2 / 2 at the origin: a strict saddle of curvature -s_1(M), and every local minimum global.

    The linear net of two matrices: eigenvalues +-s_i(M), each ``rank`` times, and 0. The minimum is the sum of the
    squares of the singular values beyond the rank, halved (Eckart and Young 1936; Ge et al. 2017, arXiv:1704.00708).

    Args:
        M: The target, (out, in).
        rank: Columns of U, at least 1.

    Raises:
        ValueError: ``rank`` is below 1.

    Example:
        >>> matrix_factorisation(2.0 * torch.eye(2, dtype=torch.float64), 1).value()
        4.0
    """
    if rank < 1:
        raise ValueError(f"rank {rank} must be at least 1")
    return linear_network(M, [rank])


def deep_autoencoder(
    images: Tensor,
    widths: Sequence[int] = (64, 32, 8),
    *,
    gain: float = 1.0,
    batch: int | None = None,
    seed: int = 0,
) -> Objective:
    r"""Reconstruction of images through a bottleneck: the mean over images of |f(x) - x|^2 / 2.

    f is a net of sigmoid layers, as wide as ``widths`` and back again, with a linear output whose bias makes the
    mean image of it. Weights start with the standard deviation ``gain`` / sqrt(inputs). Every sigmoid layer shrinks
    what differs between images about fourfold, so a deep net starts on a plateau: it gives the mean image for every
    input, and the gradient that could change that is small. How this looks for second-order methods: Hinton and
    Salakhutdinov 2006 (the nets), Martens 2010 (Hessian-free), Dauphin et al. 2014, arXiv:1406.2572 (saddle-free).

    Args:
        images: (n, pixels), or (n, ...) which is made flat.
        widths: Of the encoder; the last is the bottleneck.
        gain: Of the weights at the start.
        batch: Images of a batch of the objective; all at once by default.
        seed: Of the weights; torch's own generator is not touched.

    Raises:
        ValueError: No images, or no widths.

    Example:
        >>> L = deep_autoencoder(torch.rand(5, 4), widths=(3, 2))
        >>> [p.shape[0] for p in L.params if p.ndim == 2]
        [3, 2, 3, 4]
    """
    if len(images) == 0 or not widths:
        raise ValueError(
            f"images {tuple(images.shape)} and widths {tuple(widths)}: give at least one of each"
        )
    x = images.flatten(1)
    sizes = [x.shape[1], *widths, *list(widths)[-2::-1], x.shape[1]]
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        draw = torch.randn(b, a, generator=generator, dtype=torch.float64)
        layers += [output := _linear(gain / a**0.5 * draw.to(x.dtype)), nn.Sigmoid()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():  # the output starts at the mean image
        output.bias.copy_((x - model(x)).mean(dim=0))

    def loss_fn(model: nn.Module, batch: Tensor) -> Any:
        return 0.5 * (model(batch) - batch).square().sum() / len(batch)

    return Objective(model, loss_fn, list(torch.split(x, batch or len(x))), data="images")


def _linear(weight: Tensor) -> nn.Linear:
    """A layer of that weight and no bias yet; nothing is drawn."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta", dtype=weight.dtype)
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(torch.zeros_like(weight[:, 0]))
    return layer
