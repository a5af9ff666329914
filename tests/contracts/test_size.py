"""The size counter on texts whose lines are counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from contracts import size
from contracts.size import Size, main, size_of, size_under, table

SNIPPET = '''\
"""A module.

Two lines of it hold words.
"""

# A comment is no code.
import math  # nor is one beside code, which is


class Ring:
    """One line."""

    radius = 1.0
    """An attribute's docstring."""

    def area(self) -> float:
        return (
            # inside a statement neither

            math.pi
            * self.radius**2
        )


TEXT = """a string that is used

is code, but for its blank line"""
'''


def test_a_known_snippet_has_the_lines_counted_by_hand() -> None:
    # Code: import, class, radius, def, four lines of the return, two of TEXT and its end. Doc: 3 + 1 + 1.
    assert size_of(SNIPPET) == Size(files=1, code=10, doc=5)


@pytest.mark.parametrize(
    ("source", "code", "doc"),
    [
        ("", 0, 0),
        ("# only\n\n# comments\n", 0, 0),
        ("x = 1; y = 2\n", 1, 0),
        ("x = 1", 1, 0),  # without a line end
        ("def f(): ...\n", 1, 0),
        ("class A:\n    'one' 'docstring'\n", 1, 1),
        ("x = (\n    'a'\n    'b'\n)\n", 4, 0),
        ("x = f'''{1}\n{2}'''\n", 2, 0),
        ("'a docstring'; x = 1\n", 1, 0),
    ],
)
def test_small_texts(source: str, code: int, doc: int) -> None:
    assert size_of(source) == Size(1, code, doc)


def test_folders_are_summed_and_other_files_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.py").write_text("'''Doc.'''\nx = 1\n")
    (tmp_path / "inner" / "b.py").write_text("y = 2\nz = 3\n")
    (tmp_path / "notes.md").write_text("words\n")
    assert size_under(tmp_path) == Size(2, 3, 1)
    assert table([("here", size_under(tmp_path))]).splitlines()[1].split() == ["here", "2", "3", "1", "0.33"]
    assert main([str(tmp_path), str(tmp_path / "notes.md")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2  # the head, and one row: notes.md has no Python
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere; name one that exists" in capsys.readouterr().err


def test_the_project_is_counted_without_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert all((size.ROOT / name).is_dir() for name in ("optland", "tests"))
    monkeypatch.setattr(
        size, "ROOT", tmp_path
    )  # a small project: the counter takes seconds for all of this one
    for name in ("optland", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("x = 1\n")
    assert main([]) == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert rows == [["path", "files", "code"], ["optland", "1", "1"], ["tests", "1", "1"]]
