"""Check the arguments of the first call of ``after_step``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from optland.batches import portion
from optland.optim.two_pass import TwoPass
from optland.pilot.budget import Budget
from optland.pilot.host import Host
from optland.ranks import Ranks

__all__ = ["scalar", "try_loss_fn"]

APART = 1.5
"""Ratio of two losses of one batch from which they are not the same loss; dropout makes less of a difference."""


DRAWS = 5.0
"""Differences between two evaluations of a random loss that one more may be away."""


def scalar(loss: Any) -> float | Tensor:
    """The loss of an update as it was given.

    Args:
        loss: A number, or a tensor of one entry.

    Returns:
        A 0-d tensor without a graph, which nobody waits for, or a float.

    Raises:
        TypeError: It is no single number.

    Example:
        >>> scalar(2), scalar(torch.tensor([2.0]))
        (2.0, tensor(2.))
    """
    if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex():
        return loss.detach().reshape(())
    if isinstance(loss, Real) or (getattr(loss, "ndim", None) == 0 and not isinstance(loss, Tensor)):
        return float(loss)  # of numpy too
    shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
    raise TypeError(
        f"after_step(batch, loss) takes the loss as one number and was given a {type(loss).__name__}{shape}; "
        "are the two the other way round?"
    )


def try_loss_fn(host: Host, budget: Budget, given: float, seed: int) -> None:
    """Evaluate ``loss_fn`` once where the loop did, and hold the loss that was given against it; a forward pass.

    Of a step whose first pass is over a part of the batch, the loss may be that of the part.

    Args:
        host: Its batch is that of the first update, which has been made; its weights before it are used where they are
            kept.
        budget: What the pass is booked under, as ``loss_fn``.
        given: The loss that the loop gave, of this rank.
        seed: Of dropout masks.

    Raises:
        TypeError: It cannot be evaluated on the batch.
        ValueError: The two are apart by more than a factor of 1.5.
    """
    batches = host.pieces(host.batch)
    found, ranks = _evaluated(host, budget, batches, seed)
    if ranks is not None:  # the loss that was found is that of all ranks
        samples = host.count(host.batch)
        total, count = ranks.total([given * samples, samples], host.device)
        given = total / count
    share = min([o.method.ascent_share for o in host.inner if isinstance(o, TwoPass)], default=1.0)
    if share < 1.0 and _are_apart(given, found):
        batches = [portion(batch, share) for batch in batches]
        found, _ = _evaluated(host, budget, batches, seed)
    if _are_apart(given, found) and not _is_a_draw(host, budget, batches, seed, given, found):
        raise ValueError(
            f"the loss given to after_step is {given:.4g}, and loss_fn(model, batch) on the same batch is {found:.4g}; "
            "give the mean loss of all micro-batches of the update, and the loss_fn that is trained with"
        )


def _is_a_draw(
    host: Host, budget: Budget, batches: Sequence[Any], seed: int, given: float, found: float
) -> bool:
    """Whether ``loss_fn`` draws so much at random that the two may well be of one batch, as with noise levels."""
    others = [_evaluated(host, budget, batches, seed + k)[0] for k in (1, 2)]
    return abs(given - found) <= DRAWS * max(abs(other - found) for other in others)


def _evaluated(host: Host, budget: Budget, batches: Sequence[Any], seed: int) -> tuple[float, Ranks | None]:
    """The loss before the update, and the ranks that it is of."""
    try:
        objective = host.over(batches, mode="train", seed=seed, joint=True)
        moved = host.update()
        with torch.no_grad():
            found = objective.value(None if moved is None else moved[0])
    except Exception as error:
        several = (
            "; a list is taken for the micro-batches of one update: where it is one batch, make it a tuple"
        )
        raise TypeError(
            "loss_fn cannot be evaluated as loss_fn(model, batch) on the first batch "
            f"({type(error).__name__}: {error}); the probes need the training loss in "
            f"that form, and after_step takes (batch, loss) in that order{several if len(batches) > 1 else ''}"
        ) from error
    budget.spend("loss_fn", objective.cost_ge)
    return found, objective.ranks


def _are_apart(a: float, b: float) -> bool:
    """Whether they are not the loss of one batch; of those that are not finite nothing can be told."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return False
    return abs(a - b) > max((APART - 1) * min(abs(a), abs(b)), 1e-3)
