"""Recipes in two processes: forks that find each other as those of torchrun do, or torchrun itself.

As a script, for torchrun: ``launched.py WAY optland's arguments``, with the name of a function of this file that is
called before the recipe begins.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from command_line import begin
from faults.runs import scripted
from processes import exit_code

from optland import train
from optland.cli import main
from optland.train import ImageData, load_data

__all__ = ["Ended", "Torchrun", "as_given", "begin_two", "doubled", "end", "scripted", "together"]


def as_given() -> None:
    """Nothing is changed."""


def doubled() -> None:
    """Everything in float64: weights as they are made, and images, which no part of a run casts."""
    torch.set_default_dtype(torch.float64)
    vars(train)["load_data"] = _loaded


def _loaded(*arguments: Any) -> ImageData:
    data = load_data(*arguments)
    splits = {name: getattr(data, name).double() for name in ("train_x", "val_x", "test_x")}
    return dataclasses.replace(data, **splits)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended, and what it said."""

    code: int
    out: str
    err: str


def _variables(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells each process."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "a test"}  # fmt: skip


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def begin_two(
    *arguments: str, cwd: Path, before: Callable[[], object] = as_given, restarts: int = 0, size: int = 2,
    each: Sequence[dict[str, str]] = ({}, {}),
) -> list[BaseProcess]:  # fmt: skip
    """Start ``optland`` as several processes of one launcher.

    Args:
        *arguments: Of the command line.
        cwd: The folder; ``out <rank>`` and ``err <rank>`` of each process are written there.
        before: Called in each process before it begins.
        restarts: How often the launcher says that it has started them anew.
        size: How many.
        each: Further variables of each.
    """
    cwd.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    anew = {"TORCHELASTIC_RESTART_COUNT": str(restarts)}
    return [
        begin(*arguments, cwd=cwd, env={**_variables(rank, size, port), **anew, **each[rank]},
              out=cwd / f"out {rank}", err=cwd / f"err {rank}", before=before)
        for rank in range(size)
    ]  # fmt: skip


def end(processes: Sequence[BaseProcess], cwd: Path) -> list[Ended]:
    """Wait for all of them."""
    codes = [exit_code(process) for process in processes]
    return [
        Ended(code, (cwd / f"out {rank}").read_text(), (cwd / f"err {rank}").read_text())
        for rank, code in enumerate(codes)
    ]


def together(*arguments: str, cwd: Path, **options: Any) -> list[Ended]:
    """As :func:`begin_two`, to the end."""
    return end(begin_two(*arguments, cwd=cwd, **options), cwd)


class Torchrun:
    """The real launcher, with ``optland`` in two processes.

    Args:
        *arguments: Of the command line.
        cwd: The folder.
        way: Name of the function of this file to be called first.
        restarts: How often torchrun may start them anew.
    """

    def __init__(self, *arguments: str, cwd: Path, way: str = "as_given", restarts: int = 0) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        words = [*launch, "--max-restarts", str(restarts), __file__, way, *arguments]
        path = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self.said = cwd / "said"
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                words, cwd=cwd, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )

    def workers(self) -> list[int]:
        """The process ids of its two processes now, rank 0 first."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ranked = []
        for child in map(int, children):
            try:
                held = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            except OSError:  # it has just ended
                continue
            ranked += [(held_by, child) for item in held if (held_by := item.removeprefix(b"RANK=")) != item]
        return [child for _, child in sorted(ranked)]

    def ended(self) -> Ended:
        """Wait for the end; torchrun itself ends with 0 or 1."""
        try:  # a limit far above the need, also on a loaded machine
            code = self.process.wait(timeout=240)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            code = self.process.wait(timeout=60)
            raise AssertionError(f"the processes hang\n{self.said.read_text()[-6000:]}") from None
        return Ended(code, self.said.read_text(), "")


def wait_for(found: Callable[[], object], alive: Callable[[], bool], timeout: float = 240.0) -> None:
    """Until something is so."""
    until = time.monotonic() + timeout
    while not found():
        assert alive(), "it ended too early"
        assert time.monotonic() < until, "it hangs"
        time.sleep(0.002)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
