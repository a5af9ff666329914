"""Processes that start in a moment: forks of a server that has imported the slow packages once.

A fresh interpreter takes seconds to import torch, scikit-learn and matplotlib. A fork of the test process itself would
inherit whatever threads the tests before it had started; a fork of the server has run nothing yet.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
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
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


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
