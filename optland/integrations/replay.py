"""Second passes of trainers that own the first one, by going through its micro-batches again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from optland.optim import TwoPass

__all__ = ["back_at_w", "finish_passes"]


@contextmanager
def back_at_w(optimizer: TwoPass) -> Iterator[None]:
    """Run passes of a step; where they break off, the weights are put back and the step is called off."""
    try:
        yield
    finally:
        if optimizer.is_perturbed:
            optimizer.zero_grad()  # then restore() takes no pass for done
            optimizer.restore()


def finish_passes(
    optimizer: TwoPass, again: Callable[[], object], *, loss_scale: float | Tensor | None = None
) -> None:
    """Make all passes of a step but the first, whose gradients are in ``.grad``; then they are what the base receives.

    Args:
        optimizer: The one that will step.
        again: Forward and backward over all micro-batches of the step.
        loss_scale: As for :meth:`~optland.optim.TwoPass.perturb`.

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
    passes = optimizer.passes(loss_scale=loss_scale)
    next(passes)
    with back_at_w(optimizer):
        for _ in passes:
            again()
        optimizer.restore()
