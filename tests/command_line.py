"""The command line in a process of its own, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["optland"]


def optland(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``optland`` in a folder, a warning of the package being an error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning:optland"}
    return subprocess.run(
        [sys.executable, "-m", "optland.cli", *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
