r"""Lengths of many tensors on the CPU, one by one, and of the moves that an update has made of them.

.. math:: \|x_l\| = \sqrt{\sum_{r \in l} \|x_r\|^2}

with x_r the rows of 128 numbers that tensor l takes up; its last row ends with zeros. To make a tensor takes longer
than to read one of a thousand numbers, so where there are many small ones they lie together in one piece of memory and
four operations serve them all. Large ones, and a few small ones, are handled one after the other, each while the
processor's cache still holds it; the second time in the other order, which begins with those that it holds yet.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from optland.flat import LARGE

__all__ = ["Moves", "Norms"]

_ROW = 128

_FEW = 24
"""Small tensors up to which it takes less time to handle each by itself than to put them together."""

_PIECE = 2**18
"""Numbers of a large tensor that are handled at once, a megabyte of float32: to cut a tensor takes longer than to read
ten thousand numbers, so pieces that the cache is sure to hold would cost more than they save."""


def _small(tensors: Sequence[Tensor]) -> frozenset[int]:
    """Places of those that lie together."""
    small = [i for i, t in enumerate(tensors) if t.numel() < LARGE]
    return frozenset(small if len(small) > _FEW else ())


def _norm(x: Tensor) -> float:
    found: float = torch.linalg.vector_norm(x).item()
    return found


class _Room:
    """Memory of a fixed size that is given back between two uses; views of it wait for the next.

    Args:
        size: Numbers that it holds.
        like: Tensors of their type.
    """

    @torch.inference_mode(mode=False)  # what is made in it can be written to nowhere else
    def __init__(self, size: int, like: Sequence[Tensor]) -> None:
        self.flat = torch.zeros(size, dtype=like[0].dtype if like else torch.float32, device="cpu")
        self._bytes = self.flat.numel() * self.flat.element_size()
        self.is_held = True
        """Whether there is memory behind the views."""

    def hold(self) -> None:
        """Take the memory; what is in it then is of no meaning."""
        self.flat.untyped_storage().resize_(self._bytes)
        self.is_held = True

    def release(self) -> None:
        """Give it back."""
        self.is_held = False
        self.flat.untyped_storage().resize_(0)


class _Small(_Room):
    """Small tensors in one piece of memory, each in rows of its own.

    Args:
        like: Tensors of their shapes.
    """

    @torch.inference_mode(mode=False)  # what is made in it can be written to nowhere else
    def __init__(self, like: Sequence[Tensor]) -> None:
        rows = [max(1, -(-t.numel() // _ROW)) for t in like]  # also of an empty tensor: sums need a first row
        super().__init__(sum(rows) * _ROW, like)
        self._rows = self.flat.view(-1, _ROW)
        self._firsts = [0, *itertools.accumulate(rows)][:-1]
        self.views: list[Tensor] = []
        start = 0
        for t, n in zip(like, rows, strict=True):
            self.views.append(self.flat[start : start + t.numel()].view(t.shape))
            start += n * _ROW

    def fill(self, tensors: list[Tensor]) -> None:
        """Copy tensors into it, in memory that was given back or not."""
        if not self.is_held:
            self.hold()
            self.flat.zero_()
        if tensors:
            torch._foreach_copy_(self.views, tensors)

    def norms(self) -> list[float]:
        """The length of each."""
        if not self.views:
            return []
        rows = torch.linalg.vector_norm(self._rows, dim=1).double().square_()
        lengths: list[float] = np.sqrt(np.add.reduceat(rows.numpy(), self._firsts)).tolist()
        return lengths


class Norms:
    """The length of each of some tensors, of which there are new ones of the same shapes in every update.

    Args:
        like: The first of them.

    Example:
        >>> x = [torch.tensor([3.0, 4.0]), torch.ones(2, 2)]
        >>> Norms(x)(x)
        [5.0, 2.0]
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._shapes, self._kind = [t.shape for t in like], like[0].dtype if like else None
        together = _small(like)
        self._small, self._large = sorted(together), [i for i in range(len(like)) if i not in together]
        self._memory = _Small([like[i] for i in self._small])

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether it serves these, which lie together."""
        return [t.shape for t in tensors] == self._shapes and (not tensors or tensors[0].dtype is self._kind)

    def __call__(self, tensors: Sequence[Tensor]) -> list[float]:
        """Their lengths, in their order."""
        if not self._small:
            return [_norm(x) for x in tensors]
        self._memory.fill([tensors[i] for i in self._small])
        found = [0.0] * len(tensors)
        for i, size in zip(self._small, self._memory.norms(), strict=True):
            found[i] = size
        self._memory.release()
        for i in self._large:
            found[i] = _norm(tensors[i])
        return found


class _Scratch(_Room):
    """Memory for a difference, or for a piece of one that is larger.

    Args:
        like: Tensors of one type, the differences of which are measured.
    """

    @torch.inference_mode(mode=False)
    def __init__(self, like: Sequence[Tensor]) -> None:
        super().__init__(min(max((t.numel() for t in like), default=0), _PIECE), like)
        size = self.flat.numel()
        self._places = {t.shape: self.flat[: t.numel()].view(t.shape) for t in like if t.numel() <= size}
        self.release()

    def distance(self, x: Tensor, y: Tensor) -> float:
        """The length of x - y."""
        place = self._places.get(x.shape)
        if place is not None:
            return _norm(torch.sub(x, y, out=place))
        if not (x.is_contiguous() and y.is_contiguous()):
            return _norm(x - y)
        pieces = zip(x.view(-1).split(_PIECE), y.view(-1).split(_PIECE), strict=True)
        return math.hypot(*(_norm(torch.sub(a, b, out=self.flat[: len(a)])) for a, b in pieces))


class Moves:
    """Copies of parameters, and how far each has moved since.

    Args:
        params: Plain tensors of one type on the CPU (:func:`optland.flat.lie_together`).

    Attributes:
        params: The parameters.
        copies: Their copies.
        order: The parameters in the order of :meth:`measure`: small ones first.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = list(params)
        together = _small(self.params)
        self._small = [p for i, p in enumerate(self.params) if i in together]
        self._large = [p for i, p in enumerate(self.params) if i not in together]
        self.order = self._small + self._large
        self._kept = _Small(self._small)
        self._moved = _Small(self._small)
        self._large_kept = [torch.empty_like(p, requires_grad=False) for p in self._large]
        views, others = iter(self._kept.views), iter(self._large_kept)
        self.copies = [next(views) if i in together else next(others) for i in range(len(self.params))]
        self._moved.release()
        self._scratch = _Scratch(self._large)

    def take(self) -> None:
        """Copy the parameters."""
        self._kept.fill(self._small)
        if self._large:
            torch._foreach_copy_(self._large_kept, self._large)

    def measure(self) -> tuple[list[float], list[float]]:
        """Length of the move and length of the copy of each parameter, in :attr:`order`."""
        moves, weights = self._together() if self._small else ([], [])
        self._scratch.hold()
        for p, kept in zip(self._large, self._large_kept, strict=True):
            moves.append(self._scratch.distance(p, kept))
            weights.append(_norm(kept))
        return moves, weights

    def _together(self) -> tuple[list[float], list[float]]:
        self._moved.fill(self._small)
        self._moved.flat.sub_(self._kept.flat)
        return self._moved.norms(), self._kept.norms()

    def rescale(self, factor: float) -> None:
        """Make each copy plus ``factor`` times the move of each parameter, right after :meth:`measure`.

        With 0 all are as they were, bit for bit, also where a move holds NaN.
        """
        if factor == 0.0:
            self.undo()
            return
        for p, there in zip(reversed(self._large), reversed(self._large_kept), strict=True):
            torch.lerp(there, p, factor, out=p)
        if not self._small:
            return
        kept, moved = self._kept.flat, self._moved.flat
        assert self._moved.is_held, "measure() comes first"
        torch.add(kept, moved, alpha=factor, out=moved)
        torch._foreach_copy_(self._small, self._moved.views)

    def undo(self) -> None:
        """Put all parameters back."""
        for target, source in ((self._small, self._kept.views), (self._large, self._large_kept)):
            if target:
                torch._foreach_copy_(target, source)

    def forget(self) -> None:
        """The moves are of no use any more."""
        self._moved.release()
        self._scratch.release()
