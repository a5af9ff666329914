"""Second passes of trainers that own the first one, by going through its micro-batches again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.optim import Optimizer

from optland.optim import TwoPass
from optland.optim.ascent_share import refuse_part

__all__ = ["back_at_w", "begin_anew", "begin_passes", "called_off", "come_home", "finish_passes"]


@contextmanager
def back_at_w(optimizer: TwoPass) -> Iterator[None]:
    """Run passes of a step; where they break off, the weights are put back and the step is called off.

    Args:
        optimizer: The one whose passes are run; its gradients are lost where they break off.
    """
    try:
        yield
    finally:
        if optimizer.is_perturbed:
            optimizer.zero_grad()  # then restore() takes no pass for done
            optimizer.restore()


@contextmanager
def called_off(optimizer: TwoPass) -> Iterator[None]:
    """Run a part of a pass, after which the step goes on; where it fails, the step is called off.

    Args:
        optimizer: The one whose pass it is; it may stay perturbed where the part succeeds.
    """
    try:
        yield
    except BaseException:
        with back_at_w(optimizer):
            raise


def come_home(*optimizers: Optimizer) -> None:
    """Put the weights back where a trainer's loop has left an update in the middle of a pass.

    Args:
        optimizers: Any; those of one pass are left alone.
    """
    for optimizer in optimizers:
        if isinstance(optimizer, TwoPass):
            with back_at_w(optimizer):
                pass


def begin_anew(optimizer: TwoPass) -> None:
    """Drop what a step that a GradScaler has left out began; ``.grad`` stays, for trainers that zero it later.

    Args:
        optimizer: The one whose next step begins.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [p.grad for p in params]
    optimizer.zero_grad()
    for p, gradient in zip(params, kept, strict=True):
        p.grad = gradient


def begin_passes(optimizer: TwoPass, *, loss_scale: float | Tensor | None = None) -> Iterator[int]:
    """Begin a step before its first pass, to which some methods (MSAM) move the weights already.

    Args:
        optimizer: The one that will step.
        loss_scale: As for :meth:`~optland.optim.TwoPass.perturb`.

    Returns:
        The passes after the first, for :func:`finish_passes`.

    Raises:
        ValueError: It wants its first pass over a part of the batch.
    """
    refuse_part(optimizer, "the trainer")
    passes = optimizer.passes(loss_scale=loss_scale)
    next(passes)
    return passes


def finish_passes(
    optimizer: TwoPass,
    again: Callable[[], object],
    *,
    loss_scale: float | Tensor | None = None,
    passes: Iterator[int] | None = None,
) -> None:
    """Make all passes of a step but the first, whose gradients are in ``.grad``; then they are what the base receives.

    Args:
        optimizer: The one that will step.
        again: Forward and backward over all micro-batches of the step.
        loss_scale: As for :meth:`~optland.optim.TwoPass.perturb`.
        passes: Those that :func:`begin_passes` has begun; None begins here.

    Example:
        >>> import torch
        >>> from optland.optim import SAM
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = SAM(torch.optim.SGD([w], lr=0.1), rho=0.5)
        >>> def again():
        ...     (0.5 * w.square().sum()).backward()
        >>> again()
        >>> finish_passes(optimizer, again)
        >>> [round(x, 2) for x in w.grad.tolist()]  # w + 0.5 w / |w|, and the weights are at w
        [3.3, 4.4]
    """
    left = begin_passes(optimizer, loss_scale=loss_scale) if passes is None else passes
    with back_at_w(optimizer):
        for _ in left:
            again()
        optimizer.restore()
