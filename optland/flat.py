r"""Small tensors copied into one piece of memory: a model has many, and every new tensor costs more than its numbers.

To make a tensor takes a microsecond or two, as long as copying five thousand numbers. So the copies of a list of
tensors are views of one piece of memory that are made once; the memory is given back between two uses, and the views
wait for the next. Large tensors are copied one by one.

.. math:: \|x\| = \sqrt{\sum_r \|x_r\|^2}

with x_r rows of 1024 numbers, whose lengths are taken in float32 and put together in float64: the relative error stays
near 1e-8 whatever the number of entries, for a tenth of the time that a conversion of all of them takes.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn

LARGE = 2**15
"""Coordinates from which a tensor is copied by itself."""

_ROW = 1024
_SAFE = (1e-15, 1e18)
"""Lengths for which no square of any weight leaves the range of float32."""

_PLAIN = {Tensor, nn.Parameter}
_KIND = operator.attrgetter("dtype", "layout", "is_cpu")
_KINDS = ({(torch.float32, torch.strided, True)}, {(torch.float64, torch.strided, True)})


def length(x: Tensor) -> Tensor:
    """Euclidean length of a tensor on the CPU, 0-d in float64; see the module docstring.

    Args:
        x: A tensor without a graph to record. In float32 from 8192 numbers on by rows of 1024, else in float64 at once.

    Returns:
        A 0-d float64 tensor. Where a square may have left the range of float32, all is taken again in float64.

    Example:
        >>> length(torch.full((3, 4096), 2.0)).item() == 2.0 * (3 * 4096) ** 0.5
        True
    """
    if x.dtype is not torch.float32 or x.numel() < 8 * _ROW:
        found: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
        return found
    flat = x.reshape(-1)
    whole = flat.numel() // _ROW * _ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1)
    if whole < flat.numel():
        rows = torch.cat([rows, torch.linalg.vector_norm(flat[whole:]).reshape(1)])
    return _checked(torch.linalg.vector_norm(rows, dtype=torch.float64), flat)


def _checked(found: Tensor, flat: Tensor) -> Tensor:
    """The length that was found, or one taken in float64 where squares may have left the range of float32."""
    if _SAFE[0] < found.item() < _SAFE[1]:
        return found
    wide: Tensor = torch.linalg.vector_norm(flat, dtype=torch.float64)
    return wide


def lie_together(tensors: Sequence[Tensor]) -> bool:
    """Whether all of these are plain tensors of one type, float32 or float64, on the CPU.

    Args:
        tensors: Those of one list; a subclass of ``Tensor`` other than ``nn.Parameter`` is not plain. None of an empty
            list.
    """
    return _PLAIN.issuperset(map(type, tensors)) and set(map(_KIND, tensors)) in _KINDS


class FlatCopies:
    """Copies of tensors, in memory that is given back between two uses.

    For plain tensors of one type on the CPU; of these the small ones lie together, and large ones are cloned. It is
    used where no graph is recorded.

    Attributes:
        held: Whether there are copies in it that :meth:`release` has not given back.

    Example:
        >>> copies = FlatCopies()
        >>> x = [torch.tensor([3.0]), torch.tensor([[4.0]])]
        >>> copies.norm(x).item(), [t.tolist() for t in copies.take(x)]
        (5.0, [[3.0], [[4.0]]])
        >>> copies.release()
    """

    def __init__(self) -> None:
        self._shapes: list[torch.Size] = []
        self._small: list[int] = []
        self._large: list[int] = []
        self._flat = torch.empty(0, device="cpu")
        self._rows = self._rest = self._flat
        self._views: list[Tensor] = []
        self._places: list[Tensor] = []  # of the list of copies, filled where these are views
        self.held = False
        """Whether there are copies in it."""

    def take(self, tensors: Sequence[Tensor]) -> list[Tensor] | None:
        """A copy of each, of use until :meth:`release`; None where they cannot lie together.

        Args:
            tensors: Of the shapes of the last call the room is used again; of others new room is made.

        Returns:
            Views of one piece of memory for those below :data:`LARGE` coordinates, clones of the others.
        """
        if self.held or not self._lays_out(tensors):
            return None
        self._fill(tensors)
        self.held = True
        if not self._large:
            return self._views
        copies = self._places.copy()
        for i in self._large:
            copies[i] = tensors[i].detach().clone()
        return copies

    def norm(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """Their Euclidean length together, 0-d in float32 or better; None where they cannot lie together.

        Returns:
            In the type of the tensors. None too while copies are held, since both use the same memory.
        """
        if self.held or not self._lays_out(tensors):
            return None
        self._fill(tensors)
        found = self._length()
        if self._large:
            parts = [found] + [length(tensors[i]) for i in self._large]
            found = torch.linalg.vector_norm(torch.stack(parts))
        self.release()
        return found.to(self._flat.dtype)

    def release(self) -> None:
        """Give the memory back; the views stay, and there is nothing behind them until the next time."""
        self.held = False
        self._flat.untyped_storage().resize_(0)

    def _length(self) -> Tensor:
        if self._flat.dtype is torch.float64 or self._flat.numel() < 8 * _ROW:
            found: Tensor = torch.linalg.vector_norm(self._flat, dtype=torch.float64)
            return found
        rows = torch.linalg.vector_norm(self._rows, dim=1)
        return _checked(torch.linalg.vector_norm(rows, dtype=torch.float64), self._flat)

    def _fill(self, tensors: Sequence[Tensor]) -> None:
        self._flat.untyped_storage().resize_(self._flat.numel() * self._flat.element_size())
        self._rest.zero_()
        if self._large:
            tensors = [tensors[i] for i in self._small]
        if tensors:
            torch._foreach_copy_(self._views, list(tensors))

    def _lays_out(self, tensors: Sequence[Tensor]) -> bool:
        """Make room for tensors of these shapes; returns whether they can lie together."""
        if not lie_together(tensors):
            return False
        shapes = [t.shape for t in tensors]
        if shapes != self._shapes or tensors[0].dtype is not self._flat.dtype:
            self._lay_out(shapes, tensors[0].dtype)
        return True

    @torch.inference_mode(mode=False)  # what is made in it can be written to nowhere else
    def _lay_out(self, shapes: list[torch.Size], kind: torch.dtype) -> None:
        counts = [shape.numel() for shape in shapes]
        self._small = [i for i, n in enumerate(counts) if n < LARGE]
        self._large = [i for i, n in enumerate(counts) if n >= LARGE]
        used = sum(counts[i] for i in self._small)
        whole = -(-used // _ROW) * _ROW  # the rest of the last row is zero
        self._flat = torch.empty(whole, dtype=kind, device="cpu")
        self._rows, self._rest = self._flat.view(-1, _ROW), self._flat[used:]
        ends = itertools.accumulate(counts[i] for i in self._small)
        self._views = [
            self._flat[end - counts[i] : end].view(shapes[i])
            for i, end in zip(self._small, ends, strict=True)
        ]
        self._places = [self._flat] * len(shapes)
        for i, view in zip(self._small, self._views, strict=True):
            self._places[i] = view
        self._shapes = shapes

    # A copy of whoever has it makes room of its own.
    def __reduce__(self) -> tuple[type[FlatCopies], tuple[()]]:
        return FlatCopies, ()
