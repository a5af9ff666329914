"""The counts of the last held-out pass of ``benchmarks/doctor.py`` for ``optland/doctor/calibration.py``.

``python benchmarks/readme.py`` puts them there with all other tables, and so does the end of ``doctor.py --report``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

RESULT = Path(__file__).resolve().parent / "results" / "doctor.json"
COUNTS = Path(__file__).resolve().parent.parent / "optland" / "doctor" / "calibration.py"


def rewritten(text: str, result: dict[str, Any]) -> str:
    """The file's text with the counts of the last pass.

    Args:
        text: Of ``calibration.py``.
        result: Of ``doctor.json``.
    """
    last = result["passes"][-1]
    rows = "".join(
        f'    "{name}": ({found}, {right}),\n' for name, (found, right) in sorted(last["counted"].items())
    )
    head, count = re.subn(
        r"(COUNTED: dict\[str, tuple\[int, int\]\] = \{\n).*?(^\})",
        lambda m: f"{m[1]}{rows}{m[2]}",
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    if count != 1:
        raise ValueError(f"{COUNTS}: it has {count} tables named COUNTED; one is needed")
    return head
