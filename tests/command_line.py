"""The command line in a process of its own, as a user runs it.

The process is a fork (:mod:`processes`) with a folder, an environment, arguments and output of its own, and runs
``optland`` as ``python -m optland.cli`` does. Tests of the start itself, of signals and of what is imported when take
:mod:`subprocess`.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from processes import exit_code, start

__all__ = ["begin", "optland"]


def optland(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None, before: Callable[[], object] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``optland`` in a folder, a warning of the package being an error.

    Args:
        *arguments: Of the command line.
        cwd: The folder.
        env: Variables beside those of this process.
        before: Called in the process before it runs ``optland``.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code = exit_code(begin(*arguments, cwd=cwd, env=env, out=out, err=err, before=before), timeout=240)
        said = out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")
    return subprocess.CompletedProcess(["optland", *arguments], code, *said)


def begin(
    *arguments: str,
    cwd: Path,
    env: dict[str, str] | None = None,
    out: Path = Path(os.devnull),
    err: Path = Path(os.devnull),
    before: Callable[[], object] | None = None,
) -> BaseProcess:
    """As :func:`optland`, without waiting for its end.

    Args:
        *arguments: Of the command line.
        cwd: The folder.
        env: Variables beside those of this process.
        out: Where its output goes.
        err: Where its errors go.
        before: Called in the process before it runs ``optland``.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return start(_run, arguments, cwd, environment, out, err, before)


def _run(
    arguments: tuple[str, ...],
    cwd: Path,
    environment: dict[str, str],
    out: Path,
    err: Path,
    before: Callable[[], object] | None,
) -> None:
    """The process: its own streams first, so that nothing it says is lost."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    warnings.filterwarnings("error", category=UserWarning, module=r"optland(\.|$)")
    _start_afresh()
    sys.argv = ["optland", *arguments]
    if before is not None:
        before()
    runpy.run_module("optland.cli", run_name="__main__", alter_sys=True)


def _start_afresh() -> None:
    """What an interpreter draws at its start, and reads from its environment."""
    import numpy as np
    import torch

    np.random.seed()  # noqa: NPY002
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
