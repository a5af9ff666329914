"""Processes that start in a moment: forks of a server that has imported the slow packages once.

A fresh interpreter takes seconds to import torch, scikit-learn and matplotlib. A fork of the test process itself would
inherit whatever threads the tests before it had started; a fork of the server has run nothing yet.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context, set_start_method
from multiprocessing.process import BaseProcess

__all__ = ["exit_code", "start"]

_IMPORTED = [
    *(
        "pytest",
        "torch",
        "torch._dynamo",
        "torchvision",
        "sklearn.datasets",
        "scipy.stats",
        "omegaconf",
        "rich",
    ),
    *("matplotlib.pyplot", "matplotlib.backends.backend_agg", "optland.cli.commands", "optland.train"),
    *("optland.landscape", "optland.optim.saddle", "optland.report", "optland.plots", "faults.runs"),
]


def start(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """Call a module-level function in a fork of the server."""
    context = get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    process = context.Process(target=_begin, args=(function, *arguments))
    process.start()
    return process


def _begin(function: Callable[..., object], *arguments: object) -> None:
    """What it starts is made as an interpreter makes it; a fork of the server would start a server of its own."""
    set_start_method(None, force=True)
    function(*arguments)


def exit_code(process: BaseProcess, timeout: float = 240.0) -> int:
    """How it ended: its exit code, or minus the signal that ended it."""
    process.join(timeout)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    process.close()
    assert code is not None, "the process hangs"
    return code
