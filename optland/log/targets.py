"""optland's rows in the run that the user has: wandb, TensorBoard, trackio, Lightning's loggers, or anything else.

====================================================  =================================================================
target                                                how rows get there
====================================================  =================================================================
``wandb.run``, or the module after ``wandb.init``     with the user's next row (:mod:`optland.log.guest_wandb`)
Lightning's ``WandbLogger``                           the same, into its run
a tracker of accelerate's                             as what it tracks with
Lightning's other loggers                             ``log_metrics(row, step)``
``SummaryWriter``                                     ``add_scalar(key, value, step)``
``trackio``, or what ``trackio.init`` returned        ``log(row, step=step)``
any object with ``log(row)``                          ``log(row)``
a function of a row and a step                        called with them
====================================================  =================================================================
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from optland.log.guest import Guest
from optland.log.guest_wandb import WandbGuest
from optland.log.guests import FunctionGuest, LightningGuest, TensorBoardGuest, TrackioGuest
from optland.log.logger import Logger

__all__ = ["as_logger", "into"]


def into(log: Any, *, prefix: str = "optland/", commit: bool | None = None, alerts: bool = False) -> Guest:
    """A logger that writes into a run of the user's, under keys of its own.

    Nothing is started, finished or renamed, no row of the user's is lost, and nothing is raised later on: a run that
    fails costs one warning, and training goes on. The axis of our charts is our own ``optland/step``, the count of
    updates.

    In a wandb run our rows never move wandb's own step, which would cost those their rows who log with ``step=``: they
    go out with the user's next row, and of several that wait for one the latest value of each key is kept. Of a user
    who logs nothing they wait until :meth:`~optland.log.guest.Guest.close` (the pilot's ``close`` calls it) or the end
    of the script, and are written one by one then: at most 2000, with neighbours merged where there were more. Close
    before ``run.finish()``.

    Args:
        log: The run; the table of the module says which kinds there are.
        prefix: Put before every key, so that ``train/loss`` of ours and ``train/loss`` of theirs stay two charts.
        commit: wandb alone. True writes every row at once, as a row of its own: for those who log without ``step=``,
            and for those who log nothing and want to watch. False never makes a row of its own, not at the end either:
            for those who log with ``step=`` for the first time after the pilot is closed.
        alerts: wandb and trackio. Whether a rewind, a finding of the doctor's and a loss that is not finite raise an
            alert. An alert is a mail or a message to a team's channel, so in somebody's own run it is sent
            only where asked for.

    Returns:
        The logger of the kind in the table of the module.

    Raises:
        TypeError: Nothing can be written into ``log``.
        ValueError: ``log`` is None: there is no run yet.

    Example:
        >>> rows = []
        >>> mine = into(lambda row, step: rows.append((step, row)))
        >>> mine.log({"step": 10, "train/loss": 0.5})
        >>> rows
        [(10, {'optland/step': 10, 'optland/train/loss': 0.5})]
    """
    if log is None:
        raise ValueError(
            "there is no run to write into: it is None; call wandb.init() before wandb.run is read"
        )
    if isinstance(log, ModuleType):
        log = _run_of(log)
    if hasattr(log, "store_init_configuration"):  # accelerate's tracker, whose own log() would make a row
        log = log.tracker
    if callable(getattr(log, "define_metric", None)):
        return WandbGuest(lambda: log, prefix=prefix, commit=commit, alerts=alerts)
    if hasattr(log, "log_metrics") and hasattr(log, "use_artifact"):
        return WandbGuest(lambda: log.experiment, prefix=prefix, commit=commit, alerts=alerts)
    is_trackio = type(log).__module__.startswith("trackio") or getattr(log, "__name__", "") == "trackio"
    if commit is not None or (alerts and not is_trackio):
        raise TypeError(
            f"commit= and alerts= are for wandb runs, alerts= for trackio too, and what was given is a "
            f"{type(log).__name__}; leave them out"
        )
    kinds = (("add_scalar", TensorBoardGuest), ("log_metrics", LightningGuest))
    for method, kind in kinds:
        if callable(getattr(log, method, None)):
            return kind(log, prefix)
    if is_trackio:
        return TrackioGuest(log, prefix, alerts=alerts)
    if callable(getattr(log, "log", None)):
        return FunctionGuest(lambda row, step: log.log(row), prefix, whose=f"the {type(log).__name__}")
    if callable(log):
        return FunctionGuest(log, prefix)
    raise TypeError(
        f"nothing can be logged into {log!r}; give a wandb run, a SummaryWriter, trackio, a logger of Lightning's, "
        "an object with log(row), or a function of a row and a step"
    )


def as_logger(log: Any) -> Logger:
    """What is a logger as it is, and a guest's logger into anything else.

    Args:
        log: A :class:`~optland.log.Logger`, or what :func:`into` takes.

    Raises:
        TypeError: Nothing can be written into ``log``.
        ValueError: ``log`` is None.

    Example:
        >>> from optland.log import NullLogger
        >>> own = NullLogger()
        >>> as_logger(own) is own
        True
    """
    return log if isinstance(log, Logger) else into(log)


def _run_of(module: ModuleType) -> Any:
    """The run of a module; trackio's own ``log`` finds it."""
    if module.__name__ != "wandb":
        return module
    if module.run is None:
        raise ValueError("wandb has no run yet; call wandb.init() first")
    return module.run
