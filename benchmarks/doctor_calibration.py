"""Write the counts of the last held-out pass of ``benchmarks/doctor.py`` into ``optland/doctor/calibration.py``.

python benchmarks/doctor_calibration.py          # rewrite the table in place; the end of doctor.py --report does it too
python benchmarks/doctor_calibration.py --check  # exit with 1 where it is not that of the last pass
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

RESULT = Path(__file__).resolve().parent / "results" / "doctor.json"
TABLE = Path(__file__).resolve().parent.parent / "optland" / "doctor" / "calibration.py"


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
        raise ValueError(f"{TABLE}: it has {count} tables named COUNTED; one is needed")
    return head


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = TABLE.read_text(encoding="utf-8")
    new = rewritten(text, json.loads(RESULT.read_text(encoding="utf-8")))
    if arguments.check:
        return int(new != text)
    TABLE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
