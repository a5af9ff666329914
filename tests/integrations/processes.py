"""Two real processes, started as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["run_two"]


def run_two(script: Path, *arguments: object) -> None:
    """Run a script under torchrun with gloo; what it says is in the failure."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "ACCELERATE_USE_CPU": "true",
    }
    with subprocess.Popen(
        [*launch, str(script), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as started:
        try:
            said, _ = started.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            started.terminate()  # not killed, which its ranks would outlive
            said = "the ranks hang\n" + started.communicate()[0]
    assert started.returncode == 0, said[-6000:]
