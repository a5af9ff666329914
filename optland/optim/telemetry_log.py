"""SAM's telemetry in a log, without a pilot: one line in any loop."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from optland.log import Logger, NullLogger
from optland.log.guest import Guest
from optland.log.targets import as_logger
from optland.log.vocabulary import STEP
from optland.optim.two_pass import TwoPass

__all__ = ["TelemetryLog", "log_telemetry"]


class TelemetryLog:
    """Writes the telemetry of an optimizer, as :func:`log_telemetry` has set it up.

    Args:
        optimizer: The optimizer.
        log: Where rows go.
        every: Updates from one row to the next.
    """

    def __init__(self, optimizer: TwoPass, log: Logger, every: int) -> None:
        self._optimizer, self._log, self._every = optimizer, log, every
        self._step = optimizer.steps  # of a run that goes on
        self._hook = None if isinstance(log, NullLogger) else optimizer.register_step_post_hook(self._after)

    def close(self) -> None:
        """Write no more; a run that is somebody else's gets what it still waits for, and goes on."""
        if self._hook is not None:
            self._hook.remove()
        if isinstance(self._log, Guest):
            self._log.close()

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._step += 1
        if self._step % self._every == 0:
            self._log.log({STEP: self._step, **self._optimizer.telemetry.read()})


def log_telemetry(optimizer: Optimizer, log: Any, *, every: int = 10) -> TelemetryLog:
    """Log what a SAM step measures without an extra gradient, every so many updates; training is bit-identical.

    A step hook reads :attr:`~optland.optim.TwoPass.telemetry`: the rise of the loss along the perturbation, the
    curvature there, the angle of both gradients, their norms. Reading waits for the device, once in ``every`` updates.

    Args:
        optimizer: One of optland's two-pass methods, or what Lightning or accelerate has wrapped around it.
        log: ``wandb.run`` or all else that :func:`optland.log.into` takes, or a :class:`~optland.log.Logger`;
            None, as ``wandb.run`` is in processes that have no run, logs nothing.
        every: Updates from one row to the next; 10, as often as curvature and angle are measured.

    Raises:
        TypeError: The optimizer has no telemetry, or nothing can be written into ``log``.
        ValueError: Fewer than one update from row to row.

    Example:
        >>> import torch
        >>> from optland.optim import SAM
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer, rows = SAM(torch.optim.SGD([w], lr=0.1), rho=0.1), []
        >>> log = log_telemetry(optimizer, lambda row, step: rows.append(row), every=1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = 2 * (w ** 2).sum()
        ...     loss.backward()
        ...     return loss
        >>> _ = optimizer.step(closure)
        >>> rows[0]["optland/step"], round(rows[0]["optland/sam/curvature"], 4)
        (1, 4.0)
    """
    if every < 1:
        raise ValueError(f"every={every}: rows come every so many updates, at least 1; 10 is usual")
    inner: Any = optimizer
    while not isinstance(inner, TwoPass):
        inner = getattr(inner, "optimizer", None)
        if inner is None:
            raise TypeError(
                f"a {type(optimizer).__name__} has no telemetry; give one of optland's two-pass methods, such as SAM"
            )
    return TelemetryLog(inner, NullLogger() if log is None else as_logger(log), every)
