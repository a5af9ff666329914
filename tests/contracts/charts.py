"""The page docs/charts.md, made of the vocabulary: ``python tests/contracts/charts.py --write``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from optland.log.meanings import GROUPS, VOCABULARY

PAGE = Path(__file__).resolve().parents[2] / "docs" / "charts.md"

HEAD = """# Reading the charts

Every key that optland logs: what it is, where it should be, and what to do where it is not. `optland explain KEY` says
the same on the command line. In a run of yours the keys stand under `optland/`. The axis is `step`, the count of
optimizer updates. Keys in **bold** have a chart of their own in wandb; all others are in the run's table and its
record, where any of them can be drawn. A measured value may come with `<key>_error`, its standard error or residual,
and `<key>_converged`; `probe/age_<probe>` is its age in updates. Made by `python tests/contracts/charts.py --write`.
"""


def page() -> str:
    """The page as the vocabulary has it now."""
    parts = [HEAD]
    for group, about in GROUPS.items():
        rows = [
            f"| {_bold(key.name) if key.chart else _code(key.name)} | {_cell(key.meaning)} | {_cell(key.good)} | "
            f"{_cell(key.remedy)} |"
            for key in VOCABULARY
            if key.name.startswith(f"{group}/")
        ]
        parts.append(
            f"## {group}: {about}\n\n| key | what it is | good | else |\n|---|---|---|---|\n"
            + "\n".join(rows)
            + "\n"
        )
    return "\n".join(parts)


def _code(name: str) -> str:
    return f"`{name}`"


def _bold(name: str) -> str:
    return f"**`{name}`**"


def _cell(text: str) -> str:
    return re.sub(r"([|<>^*])", r"\\\1", text)


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page())
