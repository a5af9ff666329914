"""Problems whose every saddle is strict: phase retrieval and the decomposition of an orthogonal tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optland.objective import Objective
from optland.problems.points import function_objective

__all__ = ["phase_retrieval", "tensor_decomposition"]


def phase_retrieval(z: Tensor, start: Tensor | None = None) -> Objective:
    r"""The expected loss of finding z from the sizes of Gaussian measurements of it.

    .. math:: L(x) = \tfrac34 (\lVert x \rVert^4 + \lVert z \rVert^4)
        - \tfrac12 \lVert x \rVert^2 \lVert z \rVert^2 - (x^\top z)^2

    The Hessian is :math:`(3 \lVert x \rVert^2 - \lVert z \rVert^2) I + 6 x x^\top - 2 z z^\top`. Critical points: the
    minima z and -z, of loss 0, with eigenvalues 6|z|^2 once and 2|z|^2; the strict saddles x orthogonal to z with
    |x| = |z|/sqrt 3, with 2|z|^2 along x, -2|z|^2 along z and 0 elsewhere; the maximum at the origin, with -3|z|^2 once
    and -|z|^2 (Sun et al. 2018, arXiv:1602.06664).

    Args:
        z: What is sought, (d,), d of at least 2 and not 0.
        start: Where to start; the saddle in the plane of z and the first axis that is not along z by default.

    Example:
        >>> L = phase_retrieval(torch.tensor([0.0, 3.0], dtype=torch.float64))
        >>> [round(x, 6) for x in L.params[0].tolist()], float(L.gradient()[0].abs().max()) < 1e-12
        ([1.732051, 0.0], True)
    """
    norm = float(z.norm())
    if z.ndim != 1 or len(z) < 2 or not norm > 0:
        raise ValueError(f"z of shape {tuple(z.shape)} and norm {norm:g}: give a vector of at least 2, not 0")
    if start is None:
        axes = torch.eye(len(z), dtype=z.dtype, device=z.device)
        sideways = next(e for e in axes if abs(float(e @ z)) < 0.9 * norm)
        sideways = sideways - (sideways @ z) / norm**2 * z
        start = sideways * (norm / math.sqrt(3.0) / sideways.norm())

    def loss(x: Tensor) -> Tensor:
        size = x @ x
        return 0.75 * (size**2 + norm**4) - 0.5 * size * norm**2 - (x @ z) ** 2

    return function_objective(loss, start)


def tensor_decomposition(d: int = 2, start: Tensor | None = None) -> Objective:
    r"""The components of the orthogonal tensor sum_k e_k^4, looked for all at once, on unit spheres.

    .. math:: L(u_1 .. u_d) = \sum_{i \ne j} \sum_k (\hat u_i \cdot e_k)^2 (\hat u_j \cdot e_k)^2,
        \qquad \hat u = u / \lVert u \rVert

    The loss is 0 exactly where every u_i lies on an axis of its own, and every other critical point of those that
    matter is a strict saddle (Ge et al. 2015, arXiv:1503.02101). Where all u_i are equal to (1, .., 1)/sqrt d it is
    such a saddle, of loss d - 1; for d = 2 the loss is 1 + cos 2a cos 2b in the two angles, with eigenvalues -4, 4 and
    two zeros (the lengths) there.

    Args:
        d: Components, and dimensions of each, at least 2.
        start: (d, d), one row per component; the saddle of equal rows by default.

    Example:
        >>> round(tensor_decomposition(3).value(), 9)
        2.0
    """
    if d < 2:
        raise ValueError(f"d {d}: a tensor of one component has nothing to decompose; use at least 2")
    start = torch.full((d, d), d**-0.5, dtype=torch.float64) if start is None else start
    if start.shape != (d, d):
        raise ValueError(f"start {tuple(start.shape)} must be ({d}, {d}), one row per component")

    def loss(w: Tensor) -> Tensor:
        squares = (w.view(d, d) / w.view(d, d).norm(dim=1, keepdim=True)) ** 2
        gram = squares @ squares.T
        off: Tensor = gram.sum() - gram.diagonal().sum()
        return off

    return function_objective(loss, start.flatten())
