"""The README and the pages of docs as tests read them: their blocks, commands and links.

A comment on a page says how its blocks run: ``<!-- slow -->`` in the slow tier, ``<!-- needs lightning -->`` where that
package is installed, ``<!-- torchrun -->`` as a program of two processes.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

__all__ = ["PAGES", "ROOT", "anchors", "blocks", "commands", "links", "marks", "prose", "text_of"]

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), flags=re.S | re.M)


def marks(page: str) -> set[str]:
    return set(re.findall(r"^<!-- (slow|torchrun|needs \w+) -->$", text_of(page), flags=re.M))


def prose(page: str) -> str:
    """The page without its fenced and its indented blocks."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.S | re.M)
    return re.sub(r"^    .*$", "", text, flags=re.M)


def commands(page: str) -> list[list[str]]:
    """Every line of a shell block that starts with ``optland``, without its comment, as words."""
    indented = re.findall(
        r"^    (.*)$", re.sub(r"^```.*?^```", "", text_of(page), flags=re.S | re.M), flags=re.M
    )
    shell = [line for block in blocks(page, "sh") for line in block.splitlines()]
    lines = [line for line in [*indented, *shell] if line.startswith("optland ")]
    return [shlex.split(re.split(r"\|\||;", line)[0], comments=True) for line in lines]


def links(page: str) -> list[str]:
    """Targets of links and pictures inside the project."""
    return [
        t for t in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not t.startswith(("http://", "https://"))
    ]


def anchors(path: Path) -> set[str]:
    """The names that GitHub and MkDocs give to the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}
