"""docs/examples/wandb_run.py: a user's own run, with every row of theirs and optland's beside them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from log.guests import history

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "wandb_run.py"


@pytest.mark.cell("plain loop", "own wandb run")
@pytest.mark.cell("plain loop", "pilot control")
@pytest.mark.slow
def test_the_example_keeps_both(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    subprocess.run([sys.executable, str(EXAMPLE)], check=True, cwd=tmp_path, env=env, capture_output=True)
    rows = history(tmp_path)
    assert [(row["_step"], row["epoch"]) for row in rows if "epoch" in row] == [(n, n) for n in range(1, 6)]
    assert rows[-1]["accuracy"] > 0.5
    last = [row["optland/step"] for row in rows if "optland/step" in row][-1]
    assert last == 5 * 24
    assert len(EXAMPLE.read_text().splitlines()) <= 60
