"""Split an objective: each of its batches, or each part of a batch, as an objective of its own.

The pieces are views: they share the model, loss, mode and seed of the whole, and its cost meter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from optland.context.modules import BATCH_NORMS
from optland.objective import Objective

__all__ = ["cut", "each_batch", "each_part", "jackknife", "mean_and_error", "refuse_batch_statistics"]


def each_batch(objective: Objective) -> Iterator[Objective]:
    """Every batch as an objective.

    Example:
        >>> from optland.problems import linear_regression
        >>> L = linear_regression(torch.eye(3), torch.ones(3, 1), sizes=[2, 1])
        >>> [(piece.num_samples, piece.value()) for piece in each_batch(L)], L.cost_ge
        ([(2, 1.0), (1, 1.0)], 1.0)
    """
    for batch in _shared(objective):
        yield objective.on(batch, _size(objective, batch))


def each_part(objective: Objective, parts: int) -> Iterator[Objective]:
    """Every batch cut into ``parts`` contiguous parts (single samples where it has fewer), as objectives.

    Args:
        objective: Its batches must be here, and not in other processes, unless the model is sharded.
        parts: Number of parts of each batch.

    Yields:
        Views on the same model and cost meter.

    Raises:
        ValueError: ``parts`` is less than 1.

    Example:
        >>> from optland.problems import linear_regression
        >>> L = linear_regression(torch.eye(3), torch.ones(3, 1))
        >>> [part.num_samples for part in each_part(L, 2)]
        [2, 1]
    """
    if parts < 1:
        raise ValueError(f"parts={parts} must be at least 1")
    for batch in _shared(objective):
        for part, size in cut(objective, batch, parts):
            yield objective.on(part, size)


def cut(objective: Objective, batch: Any, parts: int) -> list[tuple[Any, int]]:
    """Contiguous parts of a batch with their samples; one part is the batch itself, of whatever type it is.

    Args:
        objective: Says how its batches are counted and cut.
        batch: One of them.
        parts: How many; single samples where it has fewer.

    Returns:
        Pairs of a part and its number of samples, in order.

    Raises:
        ValueError: Processes of a sharded model would have other numbers of parts.
    """
    if parts == 1:
        return [(batch, _size(objective, batch))]
    kind = objective.kind
    pieces = [(part, kind.count(part)) for part in kind.cut(batch, min(parts, kind.count(batch)))]
    if objective.ranks is not None and objective.ranks.sharded:
        numbers = objective.ranks.gathered(len(pieces))
        if len(set(numbers)) > 1:
            raise ValueError(
                f"the processes of this sharded model cut a batch into {numbers} parts, and all evaluate each part "
                f"together; give every process at least {parts} samples a batch, or fewer parts"
            )
    return pieces


def _shared(objective: Objective) -> Iterable[Any]:
    """The batches; of a sharded model this process's own, as each of them is evaluated with those of the others."""
    together = objective.ranks is not None and objective.ranks.sharded
    return objective.own_batches if together else objective.batches


def _size(objective: Objective, batch: Any) -> int:
    """Samples in a batch; an equal share of the total where batches of this type cannot be counted."""
    try:
        return objective.kind.count(batch)
    except TypeError:
        return max(1, round(objective.alone().num_samples / sum(1 for _ in objective.own_batches)))


def mean_and_error(values: Sequence[float], weights: Sequence[float] | None = None) -> tuple[float, float]:
    """Weighted mean of independent values and its standard error, NaN for a single value.

    With weights w_i that sum to 1 and k values the squared error is k / (k - 1) sum w_i^2 (x_i - mean)^2, for equal
    weights the usual s^2 / k.

    Args:
        values: One of each piece of data.
        weights: Of each, such as its samples, in any unit; equal by default.

    Returns:
        The mean and its standard error.

    Example:
        >>> mean_and_error([1.0, 3.0, 5.0, 3.0])[0], mean_and_error([1.0, 4.0], [2.0, 1.0])[0]
        (3.0, 2.0)
    """
    x = torch.tensor(values, dtype=torch.float64)
    w = torch.ones_like(x) if weights is None else torch.tensor(weights, dtype=torch.float64)
    w, k = w / w.sum(), len(x)
    mean = float(w @ x)
    if k < 2:
        return mean, math.nan
    return mean, math.sqrt(k / (k - 1) * float((w * (x - mean)).square().sum()))


def jackknife(left_out: Tensor) -> Tensor:
    r"""Standard error of a statistic from its values with each of k pieces left out in turn, (k, ...) to (...).

    .. math:: \mathrm{SE} = \sqrt{\tfrac{k - 1}{k} \textstyle\sum_i (\hat\theta_{(i)} - \bar\theta)^2}

    Example:
        Of a mean it is the usual standard error, s / sqrt(k).

        >>> x = torch.tensor([1.0, 3.0, 5.0])
        >>> round(float(jackknife((x.sum() - x) / 2)) ** 2, 4)  # s^2 = 4 over k = 3
        1.3333
    """
    return ((len(left_out) - 1) * left_out.var(dim=0, correction=0)).sqrt()


def refuse_batch_statistics(objective: Objective) -> None:
    """Raise where a part of a batch has another loss function than the batch.

    Raises:
        ValueError: BatchNorm in train mode.
    """
    norm = next((m for m in objective.model.modules() if isinstance(m, BATCH_NORMS)), None)
    if norm is not None and objective.mode == "train":
        raise ValueError(
            f"the model has {type(norm).__name__} and the objective is in train mode: a part of a batch has other "
            "batch statistics than the batch, so its gradient is another function's. Use Objective(..., mode='eval')."
        )
