r"""A matrix as a mean over parts of the data, each part with a test vector of its own.

.. math:: A = \sum_{b=1}^{B} \omega_b A_b, \qquad x = \sum_b \omega_b\, w_b \circ P A_b P w_b, \qquad
          \mathrm{Var} = 2 \sum_b \omega_b^2 \|P A_b P\|^2 \quad\text{in place of}\quad 2\, \|P A P\|^2

for the trace, off the diagonal. What the parts have in common is B times smaller in the sum of squares than in the
square of the sum; what differs between them is the same in both. So no sample is worse than one with a vector that all
parts share, and on trained nets, where the large curvatures are those of most samples, it has a quarter to a half of
its standard deviation. The products of all parts together cost what one product costs.

The Frobenius norm follows from the same products:

.. math:: \|P A P\|^2 = E \sum_{b, c} M_{bc} M_{cb} \;(b \ne c) + E \sum_b \|P \omega_b A_b P w_b\|^2, \qquad
          M_{bc} = \omega_c\, w_b^\top P A_c P w_c

**Cost.** A product per sample, a forward pass for the weights of the parts, and where graphs are kept their set-up
again. Memory: 2 B vectors, and where graphs are kept as much again as the operator keeps.

**Defaults.** 16 parts: more make small passes slow, and gain little. Fewer where 2 B vectors exceed 2^28 numbers.

**Caveats.** Sums over samples only: not with batch statistics or dropout, not with a loss that compares samples. A
product of the parts is held against one of the whole before any sample is taken.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from optland import vectors
from optland.curvature.operators.batchwise import each_part
from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.objective import FORWARD_GE, Objective

__all__ = ["FEWEST_PRODUCTS", "SETUP_GE", "Parts", "agree", "parts_of", "sample"]

PARTS = 16
NUMBERS = 2**28
"""Most numbers in the vectors of a sample, 1 GiB in float32."""

SETUP_GE = FORWARD_GE + 1.5
"""Cost of the parts beside their products, in gradient evaluations per sample: weights, and graphs that are kept."""

FEWEST_PRODUCTS = 12
"""Products from which on parts are worth the one that holds them against the whole."""

AGREEMENT = 1e-3
"""Distance of w'Av by parts and as a whole, relative to |Av|, at which the parts are not the matrix."""


class Parts:
    """The matrices of parts of the data.

    Args:
        H: The matrix of all data; what products with parts cost is added to it.
        pieces: The parts as objectives; where several processes hold the data, those of this one.
        weights: Of each part in the mean, of those of all processes.
        first: Place of the first piece among the weights.
    """

    def __init__(
        self, H: SymmetricOperator, pieces: Sequence[Objective], weights: Sequence[float], first: int = 0
    ) -> None:
        self.H, self.weights = H, list(weights)
        self._pieces = list(pieces)
        self._first = first
        self._kept: dict[int, SymmetricOperator] = {}

    def __len__(self) -> int:
        return len(self.weights)

    def together(self, w: Tensor) -> Tensor:
        """A w by parts, (d,).

        Args:
            w: (d,).

        Returns:
            The same as a product with H up to rounding, and counted as one.
        """
        self.H.num_matvecs += 1
        return self._rows([w] * len(self)).sum(0)

    def apart(self, W: Tensor) -> Tensor:
        """The rows omega_b A_b w_b, (B, d), for the rows w_b of ``W``.

        Args:
            W: (B, d), a row for each part.
        """
        self.H.num_matvecs += 1
        return self._rows(W)

    def _rows(self, vectors_of: Sequence[Tensor] | Tensor) -> Tensor:
        ranks = None if self.H.objective is None else self.H.objective.ranks
        mine = range(len(self._pieces))
        if ranks is None:
            return torch.stack([self._product(b, vectors_of[b]) for b in mine])
        assert self.H.objective is not None
        spent, before = self.H.cost_ge, self.H.objective.cost_ge

        def own() -> tuple[Tensor, list[float]]:
            rows = torch.stack([self._product(b, vectors_of[self._first + b]) for b in mine])
            return rows, [self.H.cost_ge - spent]

        rows, costs = ranks.rows(own, self.H.like)
        self.H.cost_ge, self.H.objective.cost_ge = spent + sum(costs), before + sum(costs)
        return rows

    def close(self) -> None:
        """Free the graphs of the parts."""
        while self._kept:
            self._kept.popitem()[1].close()

    def _product(self, b: int, w: Tensor) -> Tensor:
        operator = self._kept[b] if b in self._kept else self.H.on(self._pieces[b])
        assert operator is not None  # parts_of has asked
        spent = operator.cost_ge
        product = self.weights[self._first + b] * vectors.flatten(
            operator.matvec(vectors.unflatten(w, self.H.like))
        )
        self.H.cost_ge += operator.cost_ge - spent
        if self.H.method == "kept_graph":
            self._kept[b] = operator
        else:  # as the operator itself does: a graph for one product
            operator.close()
        return product


def parts_of(H: SymmetricOperator) -> Parts | None:
    """The matrices whose mean ``H`` is, after a first product with it; None where its data cannot be cut.

    Args:
        H: The matrix of all data.
    """
    objective, d = H.objective, vectors.numel(H.like)
    if objective is None:
        return None
    most = min(PARTS, NUMBERS // (2 * d))
    if objective.mode != "eval" or H.method == "finite_difference" or H.product_error > 0 or most < 2:
        return None
    if objective.ranks is not None:
        return _of_all_processes(H, objective, most)
    pieces = _cut(objective, most)
    if len(pieces) < 2 or H.on(pieces[0]) is None:
        return None
    counts = _counts(pieces)
    H.cost_ge += FORWARD_GE * objective.num_samples
    objective.cost_ge += FORWARD_GE * objective.num_samples
    counted = [(piece, n) for piece, n in zip(pieces, counts, strict=True) if n > 0]
    if len(counted) < 2:
        return None
    return Parts(H, [piece for piece, _ in counted], [n / sum(counts) for _, n in counted])


def _of_all_processes(H: SymmetricOperator, objective: Objective, most: int) -> Parts | None:
    """The parts that one process with the batches of all, one process after the other, would make."""
    ranks, alone = objective.ranks, objective.alone()
    assert ranks is not None
    known = isinstance(alone.own_batches, Sequence)
    numbers = ranks.gathered(len(list(alone.own_batches)) if known else 0)
    if not all(numbers) or sum(numbers) > most // 2:
        return None
    pieces = _cut(alone, most // sum(numbers) * len(list(alone.own_batches)))
    every = ranks.gathered([] if not pieces or H.on(pieces[0]) is None else _counts(pieces))
    if not all(every):
        return None
    H.cost_ge += FORWARD_GE * objective.num_samples
    objective.cost_ge += FORWARD_GE * objective.num_samples
    rank = torch.distributed.get_rank(ranks.groups[0])
    counted = [piece for piece, n in zip(pieces, every[rank], strict=True) if n > 0]
    weights = [n for counts in every for n in counts if n > 0]
    first = sum(n > 0 for counts in every[:rank] for n in counts)
    return Parts(H, counted, [n / sum(weights) for n in weights], first) if len(weights) > 1 else None


def _cut(objective: Objective, most: int) -> list[Objective]:
    """At most ``most`` parts of about the same size; none where batches stream or cannot be counted."""
    batches = objective.batches
    if not isinstance(batches, Sequence):
        return []
    try:
        sizes = [objective.kind.count(batch) for batch in batches]
    except TypeError:
        return []
    if sum(sizes) != objective.num_samples:
        return []
    if len(batches) <= most // 2:
        return list(each_part(objective, most // len(batches)))
    pieces = []
    for i in range(min(most, len(batches))):
        piece = copy.copy(objective)
        piece.batches, piece.num_samples = list(batches[i::most]), sum(sizes[i::most])
        pieces.append(piece)
    return pieces


def _counts(pieces: Sequence[Objective]) -> list[float]:
    """The weight of each part in the mean: its samples, or what the loss returns."""
    counts = []
    for piece in pieces:
        with piece.context(), torch.no_grad():
            counts.append(sum(piece.loss(batch)[1] for batch in piece.batches))
    return counts


def agree(w: Tensor, product: Tensor, v: Tensor, by_parts: Tensor) -> bool:
    """Whether v'Aw as a whole is w'Av by parts, for independent random v and w.

    Args:
        w: (d,).
        product: A w, as a whole.
        v: (d,), drawn independently.
        by_parts: A v, by parts.

    Example:
        >>> A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> w, v = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0])
        >>> agree(w, A @ w, v, A @ v), agree(w, A @ w, v, 2 * A @ v)
        (True, False)
    """
    size = float(vectors.norm([by_parts]))
    rounding = 10 * torch.finfo(w.dtype).eps * math.sqrt(len(w))
    apart = abs(float(v @ product) - float(w @ by_parts))
    return apart <= (AGREEMENT + rounding) * size


def sample(
    parts: Parts,
    draws: Sequence[Tensor],
    project: Callable[[Tensor], Tensor],
    known: Callable[[Tensor], Tensor],
) -> tuple[Tensor, float, float]:
    """One sample of diag P B P (d,), of |P B P|^2, and of <M, P B P>, for B = A - M.

    Args:
        parts: The parts of A.
        draws: A test vector for each.
        project: P on rows.
        known: M on a vector.

    Returns:
        Unbiased each, given the parts: the diagonal, the squared Frobenius norm and the inner product with M.
    """
    W = torch.stack(list(draws))
    Z = project(W)
    Y = parts.apart(Z)
    KZ = torch.stack([omega * known(z) for omega, z in zip(parts.weights, Z, strict=True)])
    Y = project(Y - KZ)
    M = W @ Y.T
    square = (M * M.T).sum() - M.diagonal().square().sum() + Y.square().sum()
    mixed = sum(known(z) @ y for z, y in zip(Z, Y, strict=True))
    return (W * Y).sum(0), float(square), float(mixed)
