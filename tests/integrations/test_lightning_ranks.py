"""Lightning in two real processes; :mod:`lightning_ranks` holds what each of them does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from integrations.processes import run_two
from two_processes import SHARDS

pytest.importorskip("lightning")

SCRIPT = Path(__file__).with_name("lightning_ranks.py")
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "lightning_sam.py"


@pytest.mark.distributed
@pytest.mark.cell("Lightning", "2 processes")
@pytest.mark.cell("DDP", "SAM phase")
@pytest.mark.cell("DDP", "accumulation")
@pytest.mark.cell("DDP", "clip")
@pytest.mark.cell("DDP", "resume")
@pytest.mark.cell("DDP", "pilot monitor")
@pytest.mark.cell("DDP", "pilot control")
def test_replicas_equal_one_process_with_all_samples(tmp_path: Path) -> None:
    run_two(SCRIPT, "ddp+resume+pilot", tmp_path)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.cell("FSDP2", "SAM phase")
@pytest.mark.cell("FSDP2", "accumulation")
@pytest.mark.cell("FSDP2", "clip")
@pytest.mark.skipif(not SHARDS, reason="FSDP2 needs torch 2.7 on the processor")
def test_shards_equal_one_process_with_all_samples(tmp_path: Path) -> None:
    run_two(SCRIPT, "fsdp", tmp_path)


@pytest.mark.cell("Lightning", "SAM phase")
@pytest.mark.cell("Lightning", "pilot control")
def test_the_example_learns_digits(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(EXAMPLE)], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr[-4000:]
    said = next(line for line in run.stdout.splitlines() if line.startswith("184 updates"))
    assert float(said.rsplit(" ", 1)[1]) > 0.9
