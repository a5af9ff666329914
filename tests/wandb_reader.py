"""What wandb's own reader finds in a run's folder."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

__all__ = ["inspect"]


def inspect(folder: Path | str | None, *options: str) -> str:
    """What ``wandb leet inspect --json`` prints.

    The command imports wandb for a second and then starts the program that is started here; a test of the main recipe
    runs the command itself.

    Args:
        folder: Of one run.
        *options: ``--summary`` for its state and its last values, instead of its records, one a line.
    """
    spec = importlib.util.find_spec("wandb")
    assert spec is not None
    assert spec.origin is not None
    program = Path(spec.origin).with_name("bin") / "wandb-core"
    (file,) = Path(str(folder)).resolve().glob("run-*.wandb")
    command = [str(program), "leet", "inspect", "--no-observability", "--json", *options]
    place = ["--run-file", str(file), str(file.parent.parent)]
    return subprocess.run([*command, *place], capture_output=True, text=True, check=True).stdout
