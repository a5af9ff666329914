"""What findings say of themselves is what was counted in the last held-out pass."""

from __future__ import annotations

import json
from pathlib import Path

from optland.doctor.calibration import COUNTED

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "doctor.json"


def test_the_counts_are_those_of_the_last_pass() -> None:
    passes = json.loads(RESULT.read_text(encoding="utf-8"))["passes"]
    counted = {name: tuple(pair) for name, pair in passes[-1]["counted"].items()}
    assert counted == COUNTED, "run: python benchmarks/readme.py"
