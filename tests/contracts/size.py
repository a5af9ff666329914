"""Code lines and docstring lines of the project, counted by tokens: ``python tests/contracts/size.py [PATH ...]``.

A code line holds a token other than a comment. Blank lines, comments and strings that stand alone (docstrings of
modules, classes, functions and attributes) are no code; a long statement counts with all its lines. Each path, a file
or a folder, is one row of the table; without paths the rows are ``optland`` and ``tests``, and
``python tests/contracts/size.py optland/*`` has one for each part of the package.

The figures are for reading: no test holds them to a limit.
"""

from __future__ import annotations

import io
import sys
import tokenize
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
NOTHING = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip
"""Tokens that are neither code nor docstring."""


class Size(NamedTuple):
    """Lines of one file or of several.

    Attributes:
        files: Python files.
        code: Lines that hold code.
        doc: Lines that hold part of a docstring.
    """

    files: int
    code: int
    doc: int

    @property
    def doc_per_code(self) -> float:
        """Docstring lines per code line; 0 where there is no code."""
        return self.doc / self.code if self.code else 0.0


def size_of(source: str) -> Size:
    """Count the lines of one file's text."""
    blank = {number for number, line in enumerate(source.split("\n"), 1) if not line.strip()}
    code: set[int] = set()
    doc: set[int] = set()
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NEWLINE:
            only_strings = all(held.type == tokenize.STRING for held in statement)
            rows = {row for held in statement for row in range(held.start[0], held.end[0] + 1)}
            (doc if only_strings else code).update(rows - blank)
            statement = []
        elif token.type not in NOTHING:
            statement.append(token)
    return Size(1, len(code), len(doc))


def size_under(path: Path) -> Size:
    """Count the lines of a Python file, or of all of them below a folder."""
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    sizes = [size_of(file.read_text(encoding="utf-8")) for file in files if file.suffix == ".py"]
    return Size(len(sizes), sum(size.code for size in sizes), sum(size.doc for size in sizes))


def table(sizes: Iterable[tuple[str, Size]]) -> str:
    """One row for each name."""
    rows = [("path", "files", "code lines", "docstring lines", "docstring per code")]
    rows += [
        (name, f"{size.files:,}", f"{size.code:,}", f"{size.doc:,}", f"{size.doc_per_code:.2f}")
        for name, size in sizes
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )  # fmt: skip


def main(names: Sequence[str]) -> int:
    """Print the table of the paths named; those without a Python file have no row."""
    paths = [Path(name) for name in names] or [ROOT / "optland", ROOT / "tests"]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        print(f"no such file or folder: {', '.join(missing)}; name one that exists", file=sys.stderr)
        return 2
    sizes = [(path.relative_to(ROOT) if not names else path, size_under(path)) for path in paths]
    print(table((str(path), size) for path, size in sizes if size.files))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
