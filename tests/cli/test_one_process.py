"""A recipe under a launcher of several processes: refused in words, and nothing is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIRST = "landscape_train"
OTHERS = sorted(path.stem for path in (ROOT / "recipes").glob("*.py") if path.stem != FIRST)


@pytest.mark.parametrize("recipe", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_every_recipe_refuses_several_processes_before_anything_is_written(
    recipe: str, tmp_path: Path
) -> None:
    files = [ROOT / f"recipes/{recipe}.py", ROOT / f"configs/{recipe}/smoke.yaml"]
    command = [sys.executable, *map(str, files)]
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [*command, f"out={tmp_path}/run"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert "WORLD_SIZE=2" in ran.stderr
    assert "DistributedDataParallel" in ran.stderr
    assert list(tmp_path.iterdir()) == []
