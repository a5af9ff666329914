r"""The gradient of a batch's mean loss, made in micro-batches, equal to that of the batch in one piece.

.. math:: \nabla L = \Bigl(\sum_r \sum_i \nabla S_{ri}\Bigr) \Big/ \sum_r \sum_i c_{ri}

``S`` and ``c`` are the loss sum and the count of micro-batch ``i`` on rank ``r``. Where ``loss_fn`` returns ``(sum,
count)`` this holds for any weights: masked tokens, class weights, a micro-batch that counts nothing, ranks that count
differently.

A loss that is a mean already hides its weights. It is combined as a mean over samples, and that it is one is checked:
at calls 1, 2, 4, 8 ... the loss of every two neighbouring micro-batches together has to be the sample-weighted mean of
the two (evaluation mode, no gradient; as much work as one more gradient of that batch), and in every call a loss that
is not finite has to be so for a neighbour too, unlike the 0 / 0 of a micro-batch without a target. A loss that fails is
taken in one piece from there on, with a warning: exact, in the memory of the whole batch. Ranks decide together.

Under ``DistributedDataParallel`` micro-batches are added up on each rank and averaged with the last one. A mean loss is
then the mean over ranks of each rank's mean, as DDP has it; ``(sum, count)`` is the mean over the counts of all ranks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from optland.batches import join, num_samples, split
from optland.context.probe import probe_context
from optland.losses import mean_of, mean_or_pair
from optland.objective import LossFn
from optland.pilot.host import unwrapped
from optland.ranks import Ranks, ranks_of

__all__ = ["MicroBatches"]

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative difference of two losses that differ by rounding alone, for the coarsest type of the weights."""
_COARSE = 3e-2

_NO_MEAN = (
    "micro-batches: the loss of {found}. So loss_fn is no mean over samples (targets that are masked or weighted, or a "
    "loss that couples samples), and the means of micro-batches cannot be combined. From here on each batch is taken "
    "in one piece, which is exact and needs the memory of the whole batch; to keep micro-batches, let loss_fn return "
    "(sum of losses, count)"
)
_NOT_CHECKED = (
    "micro-batches: whether loss_fn is a mean over samples could not be checked, because it cannot be evaluated in "
    "eval mode ({failure}); their means are combined as if it were. Let loss_fn return (sum of losses, count), which "
    "needs no check"
)


class MicroBatches:
    """Adds the gradient of a batch's mean loss to ``.grad``.

    Args:
        optimizer: Holds the parameters.
        scaler: Scales the loss of each backward pass.
        autocast: Makes the context of a forward pass.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scaler: GradScaler,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.optimizer = optimizer
        self.scaler = scaler
        self.autocast = autocast
        self.one_piece = False
        """Whether ``loss_fn`` was found to be no mean over samples: batches are not cut any more."""
        self._calls = 0
        self._due = 1.0

    def backward(
        self, loss_fn: LossFn, model: nn.Module, batch: Any, parts: int, *, cuts: bool, look: bool,
        weight: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """Forward and backward of the batch in ``parts`` micro-batches; returns its mean loss, unscaled and detached.

        Args:
            loss_fn: Returns the mean loss of a batch, or ``(sum, count)``.
            model: What the loop calls.
            batch: Any batch type.
            parts: Micro-batches; at most as many as samples.
            cuts: Whether any rank may cut its batch, which decides about what they have to agree on.
            look: Whether the model may be evaluated now; not in the second pass of a step in phases.
            weight: Factor on the gradient of a mean loss, for a rank with more or fewer samples than others.

        Returns:
            The mean loss of the batch, a scalar on the model's device; of all ranks where the loss is counted.

        Raises:
            ValueError: Every count was 0.
        """
        ranks = ranks_of(model)
        if ranks is not None and not ranks.synced:
            ranks = None
        pieces = split(batch, parts) if parts > 1 and not self.one_piece else [batch]
        known = self.one_piece or math.isinf(self._due)
        checked = look and not known and (len(pieces) > 1 or (cuts and ranks is not None))
        if checked and self._is_due() and self._refutes(loss_fn, model, pieces, ranks):
            pieces, checked = [batch], False
        if len(pieces) == 1 and not checked:
            return self._add(loss_fn, model, pieces, ranks, weight=weight)
        apart = _Apart(self._parameters(model), shared=ranks is not None)
        try:
            return self._add(loss_fn, model, pieces, ranks, apart, checked=checked, weight=weight)
        except _NoMean:
            apart.discard()
            return self._add(loss_fn, model, [batch], ranks, weight=weight)
        finally:
            apart.put_back()

    def _add(
        self,
        loss_fn: LossFn,
        model: nn.Module,
        pieces: Sequence[Any],
        ranks: Ranks | None,
        apart: _Apart | None = None,
        *,
        checked: bool = False,
        weight: float = 1.0,
    ) -> Tensor:
        terms = _Terms([num_samples(piece) for piece in pieces] if len(pieces) > 1 else [1], ranks, weight)
        for k, piece in enumerate(pieces):
            last = k == len(pieces) - 1
            with nullcontext() if last or ranks is None else ranks.unsynced():
                with self.autocast():
                    share = terms.add(loss_fn(model, piece))
                if last and checked and not terms.counted:
                    self._require_finite(terms, loss_fn, model, pieces, ranks)
                if last and apart is not None and terms.rescale != 1.0:
                    apart.scale(terms.rescale)
                self.scaler.scale(share).backward()
        return terms.mean()

    def _parameters(self, model: nn.Module) -> list[Tensor]:
        """All that may get a gradient, each once: a parameter of the optimizer's need not be one of the model's."""
        held = (p for group in self.optimizer.param_groups for p in group["params"])
        return list(dict.fromkeys([*held, *model.parameters()]))

    # Whether the loss is a mean over samples --------------------------------------------------------

    def _is_due(self) -> bool:
        """Whether this call is one of 1, 2, 4, 8 ...: so few checks, however long the run."""
        self._calls += 1
        if self._calls < self._due:
            return False
        self._due = 2.0 * self._calls
        return True

    def _require_finite(
        self, terms: _Terms, loss_fn: LossFn, model: nn.Module, pieces: Sequence[Any], ranks: Ranks | None
    ) -> None:
        """A mean of 0 / 0 is found before the last backward pass, where ranks meet."""
        total = terms.mean()
        finite = bool(total.isfinite())
        if ranks is not None:
            finite = not ranks.any(not finite, total.device)
        if not finite and self._refutes(loss_fn, model, pieces, ranks):
            raise _NoMean

    def _refutes(self, loss_fn: LossFn, model: nn.Module, pieces: Sequence[Any], ranks: Ranks | None) -> bool:
        """Whether two micro-batches show that the loss is no mean over samples; says so, and notes it."""
        found, failure = None, ""
        try:
            net = unwrapped(model)  # DDP's forward would wait for the other ranks
            with probe_context(net, "eval", seed=0), torch.no_grad():
                found = _difference(loss_fn, net, pieces)
        except Exception as error:  # the user's code, in a mode that it may not know
            failure = f"{type(error).__name__}: {error}"
        if ranks is not None:
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
            differ, failed = ranks.total([float(found is not None), float(bool(failure))], device)
            found = (found or "another rank's micro-batches is not their mean") if differ else None
            failure = (failure or "on another rank") if failed else ""
        if found is not None:
            self.one_piece = True
            warnings.warn(_NO_MEAN.format(found=found), RuntimeWarning, stacklevel=4)
        elif failure:
            self._due = math.inf
            warnings.warn(_NOT_CHECKED.format(failure=failure), RuntimeWarning, stacklevel=4)
        return self.one_piece

    def state_dict(self) -> dict[str, Any]:
        """The findings on the loss, and when the next check is due."""
        return {"one_piece": self.one_piece, "calls": self._calls, "due": self._due}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Args:
            state: A loss that was found to be no mean is taken in one piece from the first batch of the resumed run on.
        """
        self.one_piece, self._calls, self._due = state["one_piece"], state["calls"], state["due"]


class _NoMean(Exception):
    """Raised where the losses of micro-batches cannot be combined."""


class _Terms:
    """The terms that each micro-batch adds to the mean loss.

    Args:
        sizes: Samples of each.
        ranks: Those whose gradients the backward pass averages.
        weight: Factor on the gradient of a mean loss; 0 for samples that do not count at all.
    """

    def __init__(self, sizes: Sequence[int], ranks: Ranks | None, weight: float) -> None:
        self.sizes, self.ranks, self.weight = sizes, ranks, weight
        self.counted = False
        """Whether the loss function returns ``(sum, count)``."""
        self.rescale = 1.0
        """By what the gradient of all micro-batches but the last is to be multiplied: known with the last."""
        self._shares: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._count = 0.0
        self._planned = 0.0
        self._mean: Tensor | None = None

    def add(self, loss: Any) -> Tensor:
        """Its share, to be differentiated, from either form of a loss function's result."""
        k = len(self._shares)
        loss = mean_or_pair(loss)
        if not isinstance(loss, Tensor):
            self.counted = True
            count = loss[1].detach() if isinstance(loss[1], Tensor) else loss[1]
            if self.weight == 0:
                loss, count = (loss[0] * 0.0, count), 0.0
            of_sum = self._of_sum(loss[0], float(count), k)
            self._shares.append(of_sum.detach())
            return of_sum
        samples = sum(self.sizes)
        share: Tensor = loss if self.sizes[k] == samples else loss * (self.sizes[k] / samples)
        self._shares.append(share.detach())
        return share if self.weight == 1.0 else share * self.weight

    def mean(self) -> Tensor:
        """The mean loss of the batch, of all ranks where it is counted."""
        if self._mean is not None:
            return self._mean
        return self._shares[0] if len(self._shares) == 1 else torch.stack(self._shares).sum()

    def _of_sum(self, total: Tensor, count: float, k: int) -> Tensor:
        r"""The share of a counted loss; the count of the whole batch is known with the last micro-batch alone.

        .. math:: \frac{R\, S_k}{\hat c}

        with :math:`\hat c` planned from the first micro-batch, R the ranks over which gradients are averaged
        afterwards. The gradients of all but the last are put right by :attr:`rescale`.
        """
        self._sums.append(total.detach())
        self._count += count
        size = 1 if self.ranks is None else self.ranks.size
        if k == len(self.sizes) - 1:
            self._settle()
        elif k == 0:
            # Close to the count that is not known yet: in fp16 all micro-batches should have gradients of one size.
            self._planned = count * sum(self.sizes) / self.sizes[0] or float(sum(self.sizes))
            if self.ranks is not None:
                self._planned = self.ranks.planned(self._planned, len(self.sizes))
        return total * (size / self._planned)

    def _settle(self) -> None:
        """The count of the whole batch is known."""
        loss = self._sums[0] if len(self._sums) == 1 else torch.stack(self._sums).sum()
        count = self._count
        if self.ranks is not None:
            count, loss_sum = self.ranks.total([count, loss], loss.device)
            loss = torch.full_like(loss, loss_sum)
        if not count > 0:
            raise ValueError("the batch has a total count of 0; there is no mean loss")
        self._mean = loss / count
        self.rescale = self._planned / count if len(self.sizes) > 1 else 1.0
        self._planned = count


class _Apart:
    """The earlier content of ``.grad``, put aside: the new sum is scaled, or thrown away, without it."""

    def __init__(self, params: Sequence[Tensor], *, shared: bool) -> None:
        self._params, self._shared = params, shared
        # What averages gradients over ranks writes into the memory that it gave out before.
        self._kept = [(p, p.grad.clone() if shared else p.grad) for p in params if p.grad is not None]
        self.discard()

    def discard(self) -> None:
        for p in self._params:
            p.grad = None

    def scale(self, factor: float) -> None:
        if gradients := [p.grad for p in self._params if p.grad is not None]:
            torch._foreach_mul_(gradients, factor)

    @torch.no_grad()
    def put_back(self) -> None:
        for p, before in self._kept:
            if p.grad is None:
                p.grad = before
            elif self._shared:
                p.grad.add_(before)
            else:
                p.grad = before.add_(p.grad)


def _difference(loss_fn: LossFn, model: nn.Module, pieces: Sequence[Any]) -> str | None:
    """Two neighbours whose loss is not the mean of theirs, in words.

    Ranks with shards make the same evaluations, whatever they find.
    """
    if len(pieces) == 1:
        return None
    types = [p.dtype for p in model.parameters() if p.is_floating_point()]
    tolerance = max((_TOLERANCE.get(dtype, _COARSE) for dtype in types), default=_TOLERANCE[torch.float32])
    sizes = [num_samples(piece) for piece in pieces]
    first = mean_or_pair(loss_fn(model, pieces[0]))
    if not isinstance(first, Tensor):
        return None
    losses = [first, *(mean_of(loss_fn(model, piece)) for piece in pieces[1:])]
    pairs = [join(pair) for pair in pairwise(pieces)]
    together = [mean_of(loss_fn(model, pair)) for pair in [*pairs, pairs[0]]]
    *found, again = torch.stack(together).tolist()
    alone = torch.stack(losses).tolist()
    if abs(again - found[0]) > tolerance * abs(again):
        return None  # it draws random numbers of its own, and nothing can be told
    for k, ((a, m), (b, n)) in enumerate(pairwise(zip(alone, sizes, strict=True))):
        expected = (m * a + n * b) / (m + n)
        if math.isfinite(found[k]) and not abs(found[k] - expected) <= tolerance * max(abs(a), abs(b)):
            start = sum(sizes[:k])
            return f"samples {start} to {start + m + n - 1} is {found[k]:.6g}, and from its halves {expected:.6g}"
    return None
