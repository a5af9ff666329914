"""Lists of tensors treated as one long vector.

A model's parameters, a gradient, an update and an eigenvector all are lists of tensors of the same shapes.
The functions here give such lists the arithmetic of one vector in R^d, without copying them into a flat
tensor.

Reductions accumulate in at least float32 (float64 stays float64) whatever the storage type, because a
bfloat16 sum over millions of entries loses most of its digits. They reduce sharded ``DTensor`` entries over
their mesh, so that a norm is the norm of the whole vector and not of this rank's shard.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "Vector",
    "accumulator",
    "axpy_",
    "clone",
    "combine",
    "copy_",
    "dot",
    "norm",
    "numel",
    "random_unit",
    "scaled",
    "subtract",
]

Vector = Sequence[Tensor]


def numel(x: Vector) -> int:
    """Number of coordinates d."""
    return sum(t.numel() for t in x)


def _wide_type(t: Tensor) -> torch.dtype:
    """The type that reductions accumulate in."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _wide(t: Tensor) -> Tensor:
    return t.to(_wide_type(t))


def _whole(t: Tensor) -> Tensor:
    """A reduced scalar as a plain tensor: a ``DTensor`` partial sum becomes the sum over its mesh."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def dot(x: Vector, y: Vector) -> Tensor:
    """Inner product <x, y>, a 0-d tensor on the device of the first entry (no host synchronisation).

    Example:
        >>> float(dot([torch.ones(2), torch.ones(1)], [torch.ones(2), 3 * torch.ones(1)]))
        5.0
    """
    if not x:
        return torch.zeros(())
    parts = [_whole((_wide(a) * _wide(b)).sum()) for a, b in zip(x, y, strict=True)]
    return torch.stack([p.to(parts[0].device) for p in parts]).sum()


def norm(x: Vector) -> Tensor:
    """Euclidean norm ||x||_2, a 0-d tensor on the device of the first entry.

    The maximum is taken out before squaring only by the norm kernels of each tensor, so entries whose square
    underflows within one tensor still count.

    Example:
        >>> float(norm([torch.tensor([3.0]), torch.tensor([4.0])]))
        5.0
    """
    if not x:
        return torch.zeros(())
    wide = [_wide(t) for t in x]
    parts = [_whole(n) for n in torch._foreach_norm(wide)]
    return torch.linalg.vector_norm(torch.stack([p.to(parts[0].device) for p in parts]))


def accumulator(like: Vector) -> list[Tensor]:
    """Zeros in the shapes of ``like``, in the type that sums accumulate in (see the module's first lines)."""
    return [torch.zeros_like(t, dtype=_wide_type(t)) for t in like]


def clone(x: Vector) -> list[Tensor]:
    """A detached copy of every entry, in its own memory."""
    return [t.detach().clone() for t in x]


@torch.no_grad()
def copy_(target: Vector, source: Vector) -> None:
    """Overwrite ``target`` with ``source`` bit for bit, keeping the storage of ``target``."""
    torch._foreach_copy_(list(target), list(source))


@torch.no_grad()
def axpy_(alpha: float | Tensor, x: Vector, y: Vector) -> None:
    """In place y <- y + alpha x; a tensor ``alpha`` stays on its device."""
    if isinstance(alpha, Tensor):
        torch._foreach_add_(list(y), [a * alpha.to(a.dtype) for a in x])
    else:
        torch._foreach_add_(list(y), list(x), alpha=alpha)


@torch.no_grad()
def scaled(alpha: float | Tensor, x: Vector) -> list[Tensor]:
    """A new vector alpha x."""
    return [t * alpha for t in x]


@torch.no_grad()
def subtract(x: Vector, y: Vector) -> list[Tensor]:
    """A new vector x - y."""
    return list(torch._foreach_sub(list(x), list(y)))


@torch.no_grad()
def combine(weights: Sequence[float], vectors: Sequence[Vector]) -> list[Tensor]:
    """A new vector sum_i weights_i vectors_i (a Ritz vector from its basis, for example)."""
    out = scaled(weights[0], vectors[0])
    for weight, vector in zip(weights[1:], vectors[1:], strict=True):
        axpy_(weight, vector, out)
    return out


def random_unit(like: Vector, seed: int) -> list[Tensor]:
    """A vector drawn uniformly from the unit sphere of R^d, in the shapes and types of ``like``.

    It is drawn on the CPU from its own generator, so the global random state is untouched and the same seed
    gives the same direction on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in like]
    length = float(norm(draws))
    return [(d / length).to(device=t.device, dtype=t.dtype) for d, t in zip(draws, like, strict=True)]
