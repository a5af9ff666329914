"""Methods in two real processes; :mod:`distributed.ranks` holds what each of them does."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from distributed import ranks
from distributed.no_sync import WAYS
from processes import exit_code, start

pytestmark = pytest.mark.distributed


@pytest.mark.cell("DDP", "SAM closure")
@pytest.mark.cell("DDP", "SAM phase")
@pytest.mark.cell("DDP", "2 processes")
@pytest.mark.cell("DDP", "accumulation")
@pytest.mark.cell("DDP", "pilot control")
def test_two_processes(tmp_path: Path) -> None:
    # One start for all.
    names = (
        "ddp_synced+micro_batches+no_sync+piloted+piloted_damage+reductions+rows_are_of_all+looking_refused"
    )
    forks = [start(ranks.fork, rank, names, tmp_path) for rank in range(2)]
    codes = [exit_code(fork) for fork in forks]
    said = "\n".join((tmp_path / f"said by {rank}").read_text() for rank in range(2))
    assert codes == [0, 0], said[-6000:]


def of(check: str, *cells: tuple[str, str]) -> Any:
    """A check with the cells of docs/works_with.md that it shows."""
    return pytest.param(check, marks=[pytest.mark.cell(*cell) for cell in cells])


@pytest.mark.slow
@pytest.mark.parametrize(
    "check",
    [
        "ddp_synced_more",
        "ddp_per_rank",
        of("fsdp", ("FSDP2", "SAM closure"), ("FSDP2", "SAM phase")),
        of("long_runs", ("DDP", "SAM closure"), ("FSDP2", "SAM closure"), ("FSDP2", "2 processes")),
        of("resume", ("DDP", "resume"), ("FSDP2", "resume")),
        of("no_sync_more", ("DDP", "fp16 scaler"), ("DDP", "accumulation")),
        "piloted_more",
        of("piloted_sharded", ("FSDP2", "pilot monitor"), ("FSDP2", "pilot control")),
        of("saved", ("DDP", "resume"), ("FSDP2", "resume")),
        *(f"replicas {way}, half {half}" for way in WAYS for half in (0, 1)),
        "looking",
    ],
)
def test_two_processes_of_a_launcher(tmp_path: Path, check: str) -> None:
    """Started as a user starts them."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # The ranks import the package that this process has, from wherever that is.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    with subprocess.Popen(
        [*launch, ranks.__file__, check, str(tmp_path)],
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
