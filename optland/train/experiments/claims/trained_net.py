"""A net trained as a run of the bank is, for the trials that need its weights."""

from __future__ import annotations

from torch import nn

from optland.train.experiments.bank_run import BankRun, Splits, load_splits
from optland.train.experiments.bank_training import train_run

__all__ = ["trained_net"]


def trained_net(run: BankRun) -> tuple[nn.Module, Splits, float]:
    """The net of a run, its data, and the gradient evaluations that it took.

    Args:
        run: What is trained, now: the bank keeps no weights.

    Returns:
        The net in eval mode without gradients, its splits, and the gradient evaluations.

    Raises:
        RuntimeError: The run died; a trial chooses settings that do not.
    """
    splits = load_splits(run)
    trained = train_run(run, splits)
    if trained.dead:
        raise RuntimeError(f"the loss of {run.describe()} was not finite; use a smaller rate")
    trained.model.zero_grad(set_to_none=True)
    return trained.model.eval(), splits, float(trained.facts["ge"])
