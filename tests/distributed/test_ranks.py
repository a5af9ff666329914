"""Methods in two real processes, started as a user starts them; :mod:`ranks` holds what each of them does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("ranks.py")


@pytest.mark.distributed
@pytest.mark.parametrize(
    "check",
    [
        "ddp_synced+micro_batches+no_sync+piloted+piloted_damage",  # one start for all
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ddp_per_rank", "fsdp", "resume", "no_sync_more")
        ),
    ],
)
def test_two_processes(tmp_path: Path, check: str) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # The ranks import the package that this process has, from wherever that is.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    with subprocess.Popen(
        [*launch, str(SCRIPT), check, str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as started:
        try:  # a limit far above the need, also on a loaded machine
            said, _ = started.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            started.terminate()  # not killed, which its ranks would outlive
            said = "the ranks hang\n" + started.communicate()[0]
    assert started.returncode == 0, said[-6000:]
