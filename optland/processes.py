"""The processes that a launcher has started for one run: the first leads, and all of them make the same steps.

``torchrun --nproc-per-node 2 recipe.py config.yaml`` starts a program twice. Inside :func:`joined` the two are one run:
loaders serve each its part of every batch, models average their gradients, and the first process alone writes and
shows. Outside of it, also in a process group of the user's own, everything here is as in one process, so that nothing
waits for others without having been asked to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_FIRST = 0
_present: list[int] = []  # rank and size, where the processes of a launcher have joined
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"


def asked() -> int:
    """How many processes a launcher says that it has started; 1 without one.

    Returns:
        ``WORLD_SIZE`` of the environment; what is no number counts as 1.
    """
    told = os.environ.get("WORLD_SIZE", "1")
    return int(told) if told.isdigit() else 1


def restarted() -> bool:
    """Whether the launcher has started the processes anew, after one of them had died."""
    return os.environ.get(_RESTARTS, "0") not in ("", "0")


def rank() -> int:
    """Which of the processes this is, from 0."""
    return _present[0] if _present else _FIRST


def size() -> int:
    """How many processes make this run together; 1 outside of :func:`joined`."""
    return _present[1] if _present else 1


def leads() -> bool:
    """Whether this process is the one that writes and shows."""
    return rank() == _FIRST


@contextmanager
def joined() -> Iterator[None]:
    """Make one run of the processes of a launcher for the time of a block; nothing happens in one alone.

    Each of them takes the GPU of its local rank, where there are any.

    Raises:
        RuntimeError: The launcher has not said where they meet, or they do not.
    """
    distributed: Any = torch.distributed
    if asked() == 1:
        yield
        return
    if not distributed.is_initialized():
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        # Processes that were started anew meet in the store of those before, and must not find where those were.
        store, here, of = next(distributed.rendezvous("env://"))
        anew = distributed.PrefixStore(f"start {os.environ.get(_RESTARTS, '0')}", store)
        # What the processes tell each other stays in the host's memory, whatever the model is on.
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        distributed.init_process_group(backend, store=anew, rank=here, world_size=of)
    _present[:] = [distributed.get_rank(), distributed.get_world_size()]
    try:
        yield
    finally:
        _present.clear()


def dismiss() -> None:
    """Let the first process go on alone.

    Raises:
        SystemExit: In every other process, with code 0: its part is done.
    """
    others = not leads()
    _present.clear()
    if others:
        raise SystemExit(0)


def gathered(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks; they are pickled.

    Args:
        value: Of this process; of a type that all of them can import.

    Returns:
        A list of :func:`size` values; ``[value]`` in one alone.
    """
    if size() == 1:
        return [value]
    held: list[Any] = [None] * size()
    torch.distributed.all_gather_object(held, value)
    return held


def maximum(values: Sequence[float]) -> list[float]:
    """The largest of each number over the processes; one transfer of few bytes.

    Args:
        values: As many in every process.

    Example:
        >>> maximum([0.5, 2.0])  # one process alone
        [0.5, 2.0]
    """
    if size() == 1:
        return list(values)
    both = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
    found: list[float] = both.tolist()
    return found


def from_first(work: Callable[[], T]) -> T:
    """What the first process finds, in all of them; the others wait for it.

    Args:
        work: Called in the first process alone.

    Returns:
        What ``work`` returned in the first process, pickled for the others.

    Raises:
        SystemExit: In the others, where it failed in the first, with the exit code that it will end with. There the
            error itself is raised, so that it is said once.
    """
    if size() == 1:
        return work()
    held: list[Any] = [None, None]
    if not leads():
        torch.distributed.broadcast_object_list(held, _FIRST)
        if held[1] is not None:
            raise SystemExit(held[1])
        found: T = held[0]
        return found
    try:
        held[0] = work()
    except BaseException as error:
        torch.distributed.broadcast_object_list([None, _code(error)], _FIRST)
        raise
    torch.distributed.broadcast_object_list(held, _FIRST)
    made: T = held[0]
    return made


def _code(error: BaseException) -> int:
    """The exit code of a program that ends with this error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return int(getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1))
