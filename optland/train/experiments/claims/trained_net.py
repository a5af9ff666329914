"""A net trained as a run of the bank is, for the trials that need its weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from optland.train.experiments.bank_run import BankRun, Splits, load_splits
from optland.train.experiments.bank_training import train_run

__all__ = ["trained_net"]


def trained_net(
    run: BankRun,
    *,
    at_start: Callable[[nn.Module], None] | None = None,
    after_step: Callable[[nn.Module, int], None] | None = None,
) -> tuple[nn.Module, Splits, float]:
    """The net of a run, its data, and the gradient evaluations that it took.

    Args:
        run: What is trained, now: the bank keeps no weights.
        at_start: As :func:`~optland.train.experiments.bank_training.train_run` takes it.
        after_step: As well.

    Returns:
        The net in eval mode without gradients, its splits, and the gradient evaluations.

    Raises:
        RuntimeError: The run died; a trial chooses settings that do not.
    """
    splits = load_splits(run)
    trained = train_run(run, splits, at_start=at_start, after_step=after_step)
    if trained.dead:
        raise RuntimeError(f"the loss of {run.describe()} was not finite; use a smaller rate")
    trained.model.zero_grad(set_to_none=True)
    return trained.model.eval(), splits, float(trained.facts["ge"])
