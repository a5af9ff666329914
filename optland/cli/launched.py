"""Run a recipe in all the processes that a launcher (torchrun) has started: one speaks, and all of them end."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from optland.cli.terminal import DONE, complain
from optland.config import UserError

__all__ = ["has_joined", "is_launched", "leave", "speaks", "started"]

_RUN = "TORCHELASTIC_RUN_ID"
"""Torchrun sets it, for a single process too, which it may start anew."""

_LAST_WORDS = 0.5
"""Seconds that a process stays after its last step, so that no other one loses the connection within it."""


def is_launched() -> bool:
    """Whether a launcher has started several processes, of which this is one."""
    size = os.environ.get("WORLD_SIZE", "1")
    return size.isdigit() and int(size) > 1


def speaks() -> bool:
    """Whether what all processes find alike is said by this one."""
    return not is_launched() or os.environ.get("RANK", "0") == "0"


def has_joined() -> bool:
    """Whether this process has found the others."""
    torch = sys.modules.get("torch")
    return is_launched() and torch is not None and bool(torch.distributed.is_initialized())


def started(main: Callable[..., int], config: Any, *, resume: bool) -> int:
    """Call a recipe's ``main``, in this process or in all that a launcher has started.

    One whose configuration does not say that its batches can be shared runs in the first of them alone.

    Args:
        main: The recipe's.
        config: Its configuration.
        resume: Go on from the last checkpoint, as processes that were started anew do in any case.

    Returns:
        The exit code.

    Raises:
        UserError: A batch has fewer samples than there are processes, or they do not find each other.
    """
    if (
        not is_launched() and _RUN not in os.environ
    ):  # a recipe may do without torch, which takes its time to import
        return int(main(config, resume=resume))
    from optland import processes
    from optland.train.runs.launch import begun

    def goes_on() -> bool:
        return resume or (processes.restarted() and begun(config.out))

    if not is_launched():
        return int(main(config, resume=goes_on()))
    if not getattr(config, "can_share", False):
        if not speaks():
            return DONE
        complain("optland: this recipe has no batches to share: it runs in the first process alone")
        return int(main(config, resume=goes_on()))
    if config.batch_size < processes.asked():
        raise UserError(
            f"batch_size: {config.batch_size} samples are too few for {processes.asked()} processes; use at least "
            "one for each, or start fewer"
        )
    with _joined(), _quiet_unless(speaks()):
        return int(main(config, resume=processes.from_first(goes_on)))


def leave(code: int) -> None:
    """End this process with this exit code, if it shared a run with others; else nothing happens.

    Taking a process group down may hang, or abort a process that has done all its work.

    Args:
        code: Exit code. Nothing that is registered for the interpreter's end runs.
    """
    if not has_joined():
        return
    time.sleep(_LAST_WORDS)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


@contextlib.contextmanager
def _joined() -> Iterator[None]:
    """The processes of the launcher, connected; what goes wrong in it is the user's environment."""
    from optland import processes

    with contextlib.ExitStack() as together:
        try:
            together.enter_context(processes.joined())
        except (KeyError, ValueError, RuntimeError) as error:
            size = os.environ.get("WORLD_SIZE")
            raise UserError(
                f"WORLD_SIZE={size} says that a launcher has started {size} processes, and they do not find each other "
                f"({error}); start them with torchrun --nproc-per-node={size}, or unset WORLD_SIZE"
            ) from error
        yield


@contextlib.contextmanager
def _quiet_unless(speaks: bool) -> Iterator[None]:
    """Errors alone are shown of the other processes: the first says all the rest."""
    if speaks:
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
