r"""Leave-one-out samples as in XTrace: every test vector is probed outside the range that the others span.

.. math:: x_i = \mathrm{diag}(A - P_i A P_i) + w_i \circ P_i A P_i w_i, \qquad
          P_i = I - Q (I - s_i s_i^\top) Q^\top, \qquad A W = Q R, \quad s_i \propto R^{-\top} e_i

so that I - P_i projects on the range of A on all test vectors but w_i, from one factorisation for all i.

**Cost.** n // 2 products with the test vectors and as many with Q; 2 n vectors of memory.

**References.** Epperly et al. 2024, arXiv:2301.07825.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from optland.curvature.stochastic.random_vectors import RandomVectors

__all__ = ["leave_one_out"]


class _Counted(Protocol):
    @property
    def left(self) -> int: ...

    def __call__(self, w: Tensor) -> Tensor: ...


def leave_one_out(A: _Counted, draws: RandomVectors) -> Iterator[tuple[Tensor, float, Tensor, Tensor]]:
    """For every test vector w: a sample of diag A (d,), one of ||A||_F^2, w, and A w.

    Args:
        A: Products with flat vectors, of which ``left`` may still be computed.
        draws: Where the test vectors come from.
    """
    n = A.left // 2
    if n == 0:
        return
    W = torch.stack([draws.next() for _ in range(n)])
    Y = torch.stack([A(w) for w in W])
    if not bool(torch.isfinite(Y).all()):
        return
    Q, S = _ranges(Y)
    Z = torch.stack([A(q) for q in Q]) if len(Q) else Q
    known, square = (Q * Z).sum(0), Z.square().sum()
    T = Q @ Z.T
    T = (T + T.T) / 2
    inner, inside = (T @ Q * Q).sum(0), T.square().sum()
    for w, y, s in zip(W, Y, S, strict=True):
        keep = _without(s)
        b = y - keep(Q @ w) @ Z
        rest = b - keep(Q @ b) @ Q
        u, sZ, sT = s @ Q, s @ Z, T @ s
        of_range = 2 * (known - u * sZ) - (inner - 2 * u * (sT @ Q) + (s @ sT) * u * u)
        sTs = s @ sT
        of_range_square = 2 * (square - sZ @ sZ) - (inside - 2 * sT @ sT + sTs * sTs)
        yield of_range + w * rest, float(of_range_square + rest @ rest), w, y


def _without(s: Tensor) -> Callable[[Tensor], Tensor]:
    """Multiplication by I - s s'."""
    return lambda c: c - s * (s @ c)


def _ranges(Y: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis (r, d) of the rows of Y (n, d), and for each row the unit s_i (r,) that only it reaches.

    Where the rows are dependent, leaving one out leaves the range what it was, and s_i is zero.
    """
    Q, R = torch.linalg.qr(Y.T)  # (d, n), (n, n)
    U, sigma, _ = np.linalg.svd(R.to("cpu", torch.float64).numpy())
    rank = int((sigma > 100 * torch.finfo(Y.dtype).eps * sigma.max(initial=0.0)).sum())
    if rank < len(Y):
        basis = torch.as_tensor(U[:, :rank]).to(Q)
        return (Q @ basis).T.contiguous(), Q.new_zeros((len(Y), rank))
    inverse = np.linalg.inv(R.to("cpu", torch.float64).numpy())  # row i is orthogonal to every column but i
    S = inverse / np.linalg.norm(inverse, axis=1, keepdims=True)
    return Q.T.contiguous(), torch.as_tensor(S).to(Q)
